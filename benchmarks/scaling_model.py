"""How fast training would be on 8 to 1,000 hosts: a cost model of rounds of replicas, from measured primitives.

    .venv/bin/python benchmarks/scaling_model.py                                word2vec, a synthetic text
    .venv/bin/python benchmarks/scaling_model.py --corpus text.txt --hosts 1,2,4,8 --dilation 50
    .venv/bin/python benchmarks/scaling_model.py --app kge --dataset fb15k-237 --epoch 6

All values are replicated, each host has one rank with one worker, and all hosts are alike. Between two rounds a worker
computes. A round begins when the work of one is done; while it is under way a worker does so much more at most (--late:
half of it in word2vec, nothing in the first epochs of kge). So an epoch takes the number of rounds x the longer one of

    the work of a round
    the round itself + the part of the work that has to wait for it

A round takes, with n hosts,

    three trips of a message    (the first rank's end wakes the others, contributions to the homes, sums back)
    + bytes / bandwidth         of the contributions, and of the sums
    + CPU per message           2 (n - 1) received and as many sent per rank
    + CPU per record            of a key's contribution or sum: written, sent, received and added
    + combining                 at the homes: of the keys that changed, and of the curvature (word2vec)

How many keys take part in a round, and how many ranks have changed each of them, follows from the application's own
placement for the text or graph at hand: the rates and levels of all keys, and how often a part of the text uses them. A
larger text (--words) has the same words, each as many times more often.

The primitives are options; their defaults were measured on a virtual machine with 2 cores (docs/scaling.md says how).
With --dilation D everything that a dilated run does not stretch, the CPU time of messages and of the server, counts
1/D, so that the table can be compared with `python -m lapse bench scaling --dilation D`.

Columns: seconds of an epoch (not dilated), speed-up against one host, what share of the ideal that is; rounds of an
epoch; megabytes and messages that a host sends per epoch; microseconds of computing between two rounds, and of a round;
the parts of a round in per cent; the share of the time that a worker does not compute; megabytes of memory per rank,
at most.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

#: Workers wait at so many times the work after which a round begins.
SLACK = 1.5
#: Bytes of a record's head, of a weight (with the adaptive rule a contribution has two, a sum one), and of each packet.
RECORD, WEIGHT, FRAME = 8, 4, 24
PACKET = 262_144
#: Messages one after another in a round.
TRIPS = 3
#: Blocks of an outbox, to each other rank, that are kept while it has nothing to send.
SPARE_BLOCKS = 4
#: Of more values a home adds a part to the curvature.
MOST_VALUES = 1024
#: What a worker does for a replica, in microseconds: word2vec borrows and returns it, kge pulls it and pushes to it.
ACCESS = {"word2vec": 0.09, "kge": 0.25}
HOSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
PARTS = ("trips", "bytes", "messages", "records", "combining")


@dataclass(frozen=True)
class Primitives:
    """What the parts cost: microseconds, of CPU where nothing else is said.

    Attributes
    ----------
    delay
        Of the network, one way.
    look
        How long a rank does not look for messages, on average, while a round is near (its thread sleeps).
    gigabits
        Rate of a host, per second.
    message, record
        Sending and receiving one; a record is one key's contribution or sum.
    access
        What a worker does for a replica: `ACCESS`.
    combine, gather
        For each key of a home: to combine its contributions. For each value of the curvature: to add it when that is
        renewed.
    directions
        To compute the directions of the curvature.
    renewal
        In every so many-th round.
    dilation
        The costs of CPU count 1 / dilation.
    steps
        Of an exchange. 1: every rank sends to every other one. 2, which the server does not do: ranks are in rows and
        columns, and what is for another row goes first to the right column: fewer messages, each record twice.
    """

    delay: float
    look: float
    gigabits: float
    message: float
    record: float
    access: float
    combine: float
    gather: float
    directions: float
    renewal: int = 4
    dilation: float = 1.0
    steps: int = 1

    def cpu(self, microseconds: float) -> float:
        """What some CPU time of messages counts."""
        return microseconds / self.dilation


@dataclass(frozen=True)
class Training:
    """An epoch, and how its keys are replicated.

    Attributes
    ----------
    items
        Words or triples.
    item
        Microseconds of computing that one takes, on several hosts.
    alone
        Microseconds that one takes on one host, all in all.
    begin
        Items of all ranks together after which a round begins.
    uses
        Per key: how many units of the epoch use it. (A unit is what lies between a pull and a push.)
    levels
        Per key: level k takes part in every 2^k-th round.
    bytes
        Per key: of its value on the wire.
    length
        Elements of a value, for the memory.
    has_curvature
        Whether homes combine along the curvature.
    late
        How much of the work of a round workers do at most while one is under way (1: `SLACK` alone bounds it).
    vectors
        Of each replica, besides those of homes: 3, or 4 if workers borrow it.
    """

    items: float
    item: float
    alone: float
    begin: float
    uses: np.ndarray
    levels: np.ndarray
    bytes: np.ndarray
    length: np.ndarray
    has_curvature: bool
    late: float = 1.0
    vectors: int = 3

    def scaled(self, items: float) -> Training:
        """The same with more or fewer items."""
        return replace(self, items=items, uses=self.uses * (items / self.items))

    def memory(self, hosts: int) -> float:
        """Megabytes of a rank: the vectors of each replica, two more of those at home, and what is sent from."""
        values = 4.0 * self.length.sum() * (self.vectors + 2 / hosts)
        return (values + PACKET * (1 + SPARE_BLOCKS) * (hosts - 1)) / 1e6


@dataclass(frozen=True)
class Kind:
    """The rounds in which the same levels take part: their share, and what a round of them costs one rank.

    Attributes
    ----------
    share
        Of all rounds.
    seconds
        Microseconds of each of `PARTS`.
    bytes, messages
        Sent by a rank.
    worker
        Microseconds in which the worker itself sends contributions.
    """

    share: float
    seconds: dict[str, float]
    bytes: float
    messages: float
    worker: float

    @property
    def time(self) -> float:
        """Microseconds of the whole round."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Estimate:
    """A row of the table."""

    hosts: int
    seconds: float
    rounds: float
    megabytes: float
    messages: float
    computing: float
    round: float
    parts: dict[str, float]
    waiting: float
    memory: float


def estimate(training: Training, costs: Primitives, hosts: int) -> Estimate:
    """An epoch on so many hosts."""
    if hosts == 1:
        nothing = dict.fromkeys(PARTS, 0.0)
        seconds = training.items * training.alone / 1e6
        return Estimate(1, seconds, 0, 0, 0, 0, 0, nothing, 0, 4 * training.length.sum() / 1e6)
    accesses = training.uses.sum() / training.items
    per_item = (training.item + costs.cpu(accesses * costs.access)) / hosts  # of all ranks together
    between, most = training.begin, training.begin * (SLACK if training.late >= 1 else 1)
    for _ in range(20):  # the more lies between two rounds, the more keys have changed, and the longer they take
        kinds = kinds_of_rounds(training, costs, hosts, between)
        work = [min(max(kind.time / per_item, training.begin), most) for kind in kinds]
        between = mean(kinds, work)
    behind = max(1 - training.late, 0) * training.begin * per_item  # work that has to wait for the round
    periods = [max(items * per_item + kind.worker, kind.time + behind) for kind, items in zip(kinds, work, strict=True)]
    period, rounds = mean(kinds, periods), training.items / between
    parts = {name: mean(kinds, [kind.seconds[name] for kind in kinds]) for name in PARTS}
    return Estimate(
        hosts,
        (rounds * period + trip(costs) * np.log2(hosts)) / 1e6,  # all meet at its end
        rounds,
        rounds * mean(kinds, [kind.bytes for kind in kinds]) / 1e6,
        rounds * mean(kinds, [kind.messages for kind in kinds]),
        between * per_item,
        sum(parts.values()),
        parts,
        1 - between * per_item / period,
        training.memory(hosts),
    )


def mean(kinds: list[Kind], figures: list[float]) -> float:
    """Over all rounds."""
    return sum(kind.share * figure for kind, figure in zip(kinds, figures, strict=True))


def trip(costs: Primitives) -> float:
    """Of a small message, until it is seen."""
    return costs.delay + costs.look


def kinds_of_rounds(training: Training, costs: Primitives, hosts: int, between: float) -> list[Kind]:
    """All kinds, if so many items of all ranks lie between two rounds."""
    highest = int(training.levels.max(initial=0))
    span = between * 2.0**training.levels  # items of all ranks in which a key gathers
    uses = training.uses * (span / training.items)
    changed = -np.expm1(-uses / hosts)  # the chance that a rank has changed it
    summed = -np.expm1(-uses)  # that any has
    kinds = []
    for level in range(highest + 1):
        share = 2.0 ** -(level + 1) if level < highest else 2.0**-level
        part = training.levels <= level
        kinds.append(kind_of_round(training, costs, hosts, share, changed * part, summed * part))
    return kinds


def kind_of_round(
    training: Training, costs: Primitives, hosts: int, share: float, changed: np.ndarray, summed: np.ndarray
) -> Kind:
    """One kind of rounds, with the chances that a key has been changed on a rank, and on any."""
    others = hosts - 1
    contributed = changed.sum() * others / hosts  # records that a rank sends, and that its home receives
    sums = summed.sum() * others / hosts  # records of sums that a home sends, and about as many that a rank receives
    weight = WEIGHT if training.has_curvature else 0
    to_homes = ((training.bytes + RECORD + 2 * weight) * changed).sum() * others / hosts + FRAME * others
    back = ((training.bytes + RECORD + weight) * summed).sum() * others / hosts + FRAME * others
    to_homes, back = costs.steps * to_homes, costs.steps * back
    partners = costs.steps * (hosts ** (1 / costs.steps) - 1)
    messages = partners * (max(1, to_homes / partners / PACKET) + max(1, back / partners / PACKET))
    combining = 0.0
    if training.has_curvature:
        keys = len(training.uses)
        values = keys / (1 + keys // MOST_VALUES)  # of all homes
        combining = summed.sum() / hosts * costs.combine + (values * costs.gather + costs.directions) / costs.renewal
    seconds = {
        "trips": TRIPS * costs.steps * trip(costs),
        "bytes": 8e-3 * (to_homes + back) / costs.gigabits,
        "messages": costs.cpu(messages * costs.message),
        "records": costs.cpu(costs.steps * (contributed + sums) * costs.record),
        "combining": costs.cpu(combining),
    }
    return Kind(share, seconds, to_homes + back, messages, costs.cpu(contributed * costs.record / 2))


# --- applications --------------------------------------------------------------------------------------------------


def word2vec(args: argparse.Namespace, others: list[str]) -> Training:
    """By the placement of the application, for its options."""
    from lapse import _mpi_loader
    from lapse.apps._shared.placement import PACE
    from lapse.apps.word2vec import options, placement, train

    comm = _mpi_loader.load().COMM_SELF
    corpus = ["--corpus", str(args.corpus)] if args.corpus else ["--synthetic-words", str(args.synthetic_words)]
    app = options.parse([*corpus, *(["--min-count", "1"] if not args.corpus else []), *others])
    text = train.read_text(comm, app)
    usage = placement.survey_usage(comm, app, text, placement.LONG_UNIT)
    words = placement.words_per_round(app, text)
    rates = placement.expected_weights(app, text) * words * PACE
    levels = np.clip(np.floor(np.log2(placement.ENOUGH_WEIGHT / np.maximum(rates, 1e-12))), 0, 14)
    keys = 2 * len(text.vocabulary)
    print(f"{keys:,} keys of {app.dim} floats, {text.words:,} words, a round every {words * PACE:,.0f} to {words:,}")
    return Training(
        items=text.words,
        item=args.item_us or 0.28,
        alone=args.alone_us or 0.31,
        begin=words * PACE,
        uses=usage.together,
        levels=levels,
        bytes=np.full(keys, app.dim * (2 if app.wire == "bfloat16" else 4)),
        length=np.full(keys, app.dim),
        has_curvature=app.combine == "adaptive",
        late=0.5,
        vectors=4,
    )


def kge(args: argparse.Namespace, others: list[str]) -> Training:
    """By the placement of the application, in the epoch that was asked for."""
    from lapse.apps.kge import data, options, placement, stdlib_graph
    from lapse.apps.kge.models import Model

    app = options.parse(others)
    dataset = data.read(args.dataset or stdlib_graph.standard_graph())
    counts = len(dataset.entities), len(dataset.relations)
    model = Model(app.model, app.dim, app.norm, app.reciprocal_relations, *counts)
    usage = placement.expect_usage(app, model, dataset.train)
    lengths = placement.value_lengths(model)
    item = args.item_us or 8.0
    is_first = args.epoch <= placement.FIRST_EPOCHS
    rounds = placement.ROUNDS_AT_FIRST if is_first else placement.ROUNDS_LATER
    print(f"{model.num_keys:,} keys, {4e-6 * lengths.sum():.0f} MB, {len(dataset.train):,} triples, {rounds} rounds")
    return Training(
        items=len(dataset.train),
        item=item,
        alone=args.alone_us or item + args.access_us / args.dilation * usage.together.sum() / len(dataset.train),
        begin=len(dataset.train) / rounds,
        uses=usage.together,
        levels=np.zeros(model.num_keys),
        bytes=lengths * (2 if app.wire == "bfloat16" else 4),
        length=lengths,
        has_curvature=False,
        late=0.0 if is_first else 1.0,
    )


APPS = {"word2vec": word2vec, "kge": kge}


# --- program -------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="further options are those of the application, such as --dim or --sample",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--app", choices=APPS, default="word2vec", help="what is trained (default: word2vec)")
    add("--hosts", type=numbers, default=HOSTS, metavar="N,N", help="numbers of hosts (default: 1 to 1,000)")
    add("--corpus", type=Path, metavar="FILE", help="word2vec: the text (default: a synthetic one)")
    add("--synthetic-words", type=int, default=100_000, metavar="N", help="word2vec: its vocabulary (default: 100,000)")
    add("--dataset", type=Path, metavar="DIR", help="kge: the graph (default: that of the standard library)")
    add("--epoch", type=int, default=6, metavar="N", help="kge: from 1; rounds are rarer from the 6th on (default: 6)")
    add("--items", type=float, metavar="N", help="words or triples of an epoch (default: those of the text or graph)")
    costs = parser.add_argument_group("primitives, in microseconds")
    for name, default, help_text in (
        ("item-us", None, "computing of a word (0.28) or triple (8)"),
        ("alone-us", None, "the same on one host, all in all: a word (0.31) or triple (that, and the accesses)"),
        ("access-us", None, "CPU of borrowing and returning a replica (0.09), or, for kge, of pull and push (0.25)"),
        ("delay-us", 25.0, "delay of the network, one way (25)"),
        ("look-us", 10.0, "until a thread that sleeps sees a message (10)"),
        ("message-us", 15.0, "CPU of a message, sent and received (15)"),
        ("record-us", 0.9, "CPU of a record, sent and received (0.9)"),
        ("combine-us", 0.5, "combining the contributions to a key (0.5)"),
        ("gather-us", 0.26, "adding a key's value to the curvature (0.26)"),
        ("directions-us", 47.0, "computing the directions of the curvature (47)"),
        ("gigabits", 10.0, "rate of a host, per second (10)"),
        ("dilation", 1.0, "as in a run in dilated time: costs of CPU count 1 / X (1)"),
    ):
        costs.add_argument(f"--{name}", type=float, default=default, metavar="X", help=help_text)
    add("--late", type=float, metavar="X", help="work during a round, as a share of that between two; 1: 1.5 in all")
    add("--steps", type=int, choices=(1, 2), default=1, help="2: what an exchange by rows and columns would gain")
    add("--plot", type=Path, metavar="FILE", help="draw the speed-up (needs matplotlib: pip install 'lapse[plot]')")
    return parser


def numbers(text: str) -> list[int]:
    """Positive numbers, separated by commas."""
    found = sorted({int(word) for word in text.split(",")} | {1})
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"{text} has a number below 1")
    return found


def primitives(args: argparse.Namespace) -> Primitives:
    """Those of the options."""
    return Primitives(
        delay=args.delay_us,
        look=args.look_us,
        gigabits=args.gigabits,
        message=args.message_us,
        record=args.record_us,
        access=args.access_us,
        combine=args.combine_us,
        gather=args.gather_us,
        directions=args.directions_us,
        dilation=args.dilation,
        steps=args.steps,
    )


HEADER = (
    f"{'hosts':>5}{'s/epoch':>11}{'speed-up':>9}{'ideal':>7}{'rounds':>8}{'MB/host':>8}{'messages':>10}"
    f"{'between':>9}{'round':>8}  {'  '.join(f'{name:>9}' for name in PARTS)}{'waiting':>9}{'memory':>8}"
)


def line(row: Estimate, one: float) -> str:
    """A line of the table."""
    parts = "  ".join(f"{100 * row.parts[name] / max(row.round, 1e-9):>8.0f}%" for name in PARTS)
    return (
        f"{row.hosts:>5}{row.seconds:>11.4g}{one / row.seconds:>9.1f}{one / row.seconds / row.hosts:>7.0%}"
        f"{row.rounds:>8.0f}{row.megabytes:>8.1f}{row.messages:>10,.0f}{row.computing:>9,.0f}{row.round:>8,.0f}"
        f"  {parts}{row.waiting:>9.0%}{row.memory:>8,.0f}"
    )


def plot(path: Path, rows: list[Estimate], one: float) -> None:
    """Draw the speed-up, and the ideal."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no display
    except ImportError:
        sys.exit("error: --plot needs matplotlib: pip install 'lapse[plot]'")
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="hosts", ylabel="speed-up")
    hosts = [row.hosts for row in rows]
    axes.plot(hosts, hosts, color="gray", linewidth=0.8, label="ideal")
    axes.plot(hosts, [one / row.seconds for row in rows], marker="o", label="model")
    axes.legend()
    figure.savefig(path)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args, others = make_parser().parse_known_args(argv)
    if args.access_us is None:
        args.access_us = ACCESS[args.app]
    training = APPS[args.app](args, others)
    if args.late is not None:
        training = replace(training, late=args.late)
    if args.items:
        training = training.scaled(args.items)
    rows = [estimate(training, primitives(args), hosts) for hosts in args.hosts]
    one = rows[0].seconds
    print(HEADER, *(line(row, one) for row in rows), sep="\n")
    if args.plot:
        plot(args.plot, rows, one)


if __name__ == "__main__":
    main()
