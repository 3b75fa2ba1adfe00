"""``--report FILE``: a page about a training, in one file that needs no network.

Shows the figures of the result, loss and quality over the epochs, where accesses were answered, the bytes between
ranks, what each rank spent its time with, and where hot keys were. What each rank did is known of the epochs of the
process that writes the page only; figures by epoch are those of the whole run.
"""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from string import Template

from lapse.apps._shared import charts
from lapse.apps._shared.files import write_text
from lapse.apps._shared.job import AppError
from lapse.apps._shared.recording import Recording

#: The identifier of the page's data: everything that is shown, and the result, in JSON.
DATA = "report-data"
#: Figures of an epoch that are not of quality.
_NOT_QUALITY = ("epoch", "seconds", "loss", "local", "is_partial")
#: Epochs in the table of hot keys, at most.
MOST_COLUMNS = 20
_SHARES = ("on the rank", "in shared memory", "waited for a relocation", "by messages")
_TIMES = {
    "compute": "computing",
    "waiting_for_values": "waiting for values",
    "waiting_for_rounds": "waiting for replicas",
    "waiting_for_meetings": "waiting for other workers",
    "rest": "the rest",
}

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #ddd; --heat: #d62728; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #161616; --faint: #3a3a3a; } }
body { font: 15px/1.4 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2em auto;
       max-width: 72em; padding: 0 1em; }
section { display: flex; flex-wrap: wrap; gap: 1.5em; align-items: flex-start; }
h2 { border-bottom: 1px solid var(--faint); margin-top: 1.6em; }
figure { margin: 0; flex: 1 1 26em; max-width: 34em; overflow-x: auto; }
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--ink); }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.axis { stroke: var(--ink); fill: none; } .mark { stroke: var(--faint); }
.line { fill: none !important; stroke-width: 1.6; }
table { border-collapse: collapse; } th, td { padding: .15em .6em; text-align: right; font-weight: normal; }
th[scope=row] { text-align: left; } td { font-variant-numeric: tabular-nums; }
.heat td { background: color-mix(in srgb, var(--heat) var(--share), var(--paper)); } .heat .none { opacity: .5; }
.grid td { text-align: center; min-width: 1.4em; color: #fff; border: 1px solid var(--paper); }
.grid .every { color: var(--ink); background: var(--faint); }
.legend span { margin-right: 1em; white-space: nowrap; } .legend span::before { content: "\\25a0 "; }
$colors
</style>
</head>
<body>
<h1>$title</h1>
$body
<script type="application/json" id="$data_name">$data</script>
</body>
</html>
""")
_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#d62728", "#8c564b", "#17becf", "#7f7f7f")


def require(path: Path) -> None:
    """Raise now rather than after hours of training, for a file that cannot be written."""
    folder = path.absolute().parent
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise AppError(f"--report {path}: cannot write to {path if path.is_dir() else folder}")


def write(path: Path, result: dict, history: list[dict], recording: Recording) -> None:
    """Write the page; it takes the place of an older one.

    Parameters
    ----------
    result
        What the ``RESULT`` line says.
    history
        The figures of each epoch, with ``epoch``, ``loss`` and ``local``.
    recording
        What each rank did.
    """
    write_text(path, page(result, history, recording))


def page(result: dict, history: list[dict], recording: Recording) -> str:
    """The page; see `write`."""
    title = f"{result['app']} on {result['ranks']} rank{'s' * (result['ranks'] != 1)}"
    sections = [
        ("Result", [_result(result)]),
        ("Loss and quality", _quality(history)),
        ("Where accesses were answered", _locality(recording)),
        ("Bytes between ranks", _bytes(recording)),
        ("Time", _time(history, recording)),
        ("Where hot keys were", _hot_keys(recording)),
    ]
    body = "".join(
        f"<h2>{name}</h2>\n<section>{''.join(parts) or '<p>No figures.</p>'}</section>\n" for name, parts in sections
    )
    data = {"result": result, "history": history, "epochs": recording.epochs}
    return _PAGE.substitute(
        title=escape(title),
        body=body,
        colors="\n".join(
            f".c{i} {{ fill: {color}; stroke: {color}; }} .k{i}::before {{ color: {color}; }} "
            f".b{i} {{ background: {color}; }}"
            for i, color in enumerate(_COLORS)
        ),
        data_name=DATA,
        data=json.dumps(data).replace("<", "\\u003c"),  # no end tag inside
    )


def _result(result: dict) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(name.replace('_', ' '))}</th>"
        f'<td data-name="{escape(name, quote=True)}">{escape(_shown(value))}</td></tr>'
        for name, value in result.items()
    )
    return f'<table id="result">{rows}</table>'


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return charts.number(value)
    return "none" if value is None else str(value)


def _quality(history: list[dict]) -> list[str]:
    names = list(dict.fromkeys(name for each in history for name in each))
    shown = ["loss", *(name for name in names if name not in _NOT_QUALITY)]
    found = {name: _points(history, name) for name in shown}
    return [charts.lines(name.replace("_", " "), {name: points}) for name, points in found.items() if points]


def _points(history: list[dict], name: str) -> list[tuple[float, float]]:
    values = [(each["epoch"], each.get(name)) for each in history]
    return [(epoch, value) for epoch, value in values if isinstance(value, int | float)]


# --- what each rank did ------------------------------------------------------------------------------------------


def shares_of(counters: dict[str, int]) -> list[float]:
    """The shares of pulled, pushed and sampled keys by how they were reached, in the order of the charts; in percent.

    Sampled keys that were not on the rank count as reached by messages.
    """
    keys = local = shared = waited = 0
    for kind in ("pulled", "pushed", "sampled"):
        keys += counters[f"{kind}_keys"]
        local += counters[f"{kind}_local"]
        shared += counters.get(f"{kind}_shared", 0)
        waited += counters.get(f"{kind}_in_transit", 0)
    parts = (local - shared, shared, waited, keys - local - waited)
    return [100 * part / keys if keys else 0.0 for part in parts]


def _sum(epochs: list[dict]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in epochs:
        for rank in each["ranks"]:
            for name, value in rank["counters"].items():
                total[name] = total.get(name, 0) + value
    return total


def _locality(recording: Recording) -> list[str]:
    epochs = recording.epochs
    if not epochs:
        return []
    ranks = range(len(epochs[0]["ranks"]))
    by_epoch = [shares_of(_sum([each])) for each in epochs]
    by_rank = [shares_of(_sum([{"ranks": [each["ranks"][rank]]} for each in epochs])) for rank in ranks]
    series = {
        name: [(each["epoch"], shares[i]) for each, shares in zip(epochs, by_epoch, strict=True)]
        for i, name in enumerate(_SHARES)
    }
    moved = {
        name: [(each["epoch"], _sum([each])[counter]) for each in epochs]
        for name, counter in (("keys relocated", "relocations_in"), ("values sent for replicas", "replica_keys_sent"))
    }
    parts = {name: [shares[i] for shares in by_rank] for i, name in enumerate(_SHARES)}
    return [
        charts.lines("share of accesses, by epoch, in percent", series),
        charts.bars("share of accesses, by rank", [f"rank {rank}" for rank in ranks], parts, "%"),
        charts.lines("relocation and replication, all ranks", moved),
    ]


def _bytes(recording: Recording) -> list[str]:
    if not recording.epochs:
        return []
    names = [f"rank {rank}" for rank in range(len(recording.epochs[0]["ranks"]))]
    return [charts.heat("messages of all epochs", names, bytes_between(recording), "bytes")]


def bytes_between(recording: Recording) -> list[list[int]]:
    """The bytes from each rank to each rank, over all recorded epochs."""
    tables = [[rank["bytes_sent_to"] for rank in each["ranks"]] for each in recording.epochs]
    return [[sum(values) for values in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


def _time(history: list[dict], recording: Recording) -> list[str]:
    charted = [charts.lines("seconds", {"seconds": _points(history, "seconds")})]
    if recording.epochs:
        ranks = range(len(recording.epochs[0]["ranks"]))
        parts = {
            shown: [sum(each["ranks"][rank]["times"].get(name, 0.0) for each in recording.epochs) for rank in ranks]
            for name, shown in _TIMES.items()
        }
        names = [f"rank {rank}" for rank in ranks]
        charted.append(charts.bars("seconds of the mean worker, all epochs", names, parts, "s"))
    return charted


def _hot_keys(recording: Recording) -> list[str]:
    hot, epochs = recording.hot_keys, recording.epochs
    if hot is None or not epochs:
        return []
    every = -(-len(epochs) // MOST_COLUMNS)
    epochs = epochs[::-1][::every][::-1]  # the last one among them
    rows = [
        (name, [-1 if is_replicated else each["owners"][i] for each in epochs])
        for i, (name, is_replicated) in enumerate(zip(hot.names, hot.is_replicated, strict=True))
    ]
    legend = ["The rank that owned each key at the end of each epoch; all: every host has a replica."]
    return [charts.grid("the most used keys", [str(each["epoch"]) for each in epochs], rows, legend)]
