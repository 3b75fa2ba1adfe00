"""Floor 6. `Prefetcher`: batches whose rows come while the batches before them are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from lapse.base.checks import check_int
from lapse.torch._rows import Distinct
from lapse.torch.traffic import Needs, Place, Rows, Traffic, traffic_of
from lapse.torch.transfers import Upload, upload_of
from lapse.worker._arrays import convert_keys

if TYPE_CHECKING:
    from lapse.worker._worker import Worker

BatchT = TypeVar("BatchT")

MAX_LOOKAHEAD = 1_000_000
MAX_KEY = 2**63 - 1
NO_KEYS = np.empty(0, np.int64)


@dataclass(frozen=True)
class _Found:
    """The keys of a batch, each once: by the first key of their table, and those of which the table is not known."""

    of_tables: dict[int, Needs]
    others: np.ndarray

    @property
    def keys(self) -> list[np.ndarray]:
        """All of them, in arrays that have no key in common."""
        parts = [*(needs.keys for needs in self.of_tables.values()), self.others]
        return [part for part in parts if len(part)]


@dataclass
class _Coming(Generic[BatchT]):
    """A batch that is not handed out yet."""

    batch: BatchT
    future: Future[_Found]
    found: _Found | None = None  # once its keys are localized
    rows: dict[int, Rows] = field(default_factory=dict)  # by the first key of their table, once they are pulled

    def is_local(self, kv: Worker) -> bool:
        """Whether all rows are here."""
        return self.found is None or all(kv.is_local(keys).all() for keys in self.found.keys)


class Prefetcher(Generic[BatchT]):
    """Iterates over batches, and brings the rows that the next ones need.

    The keys of the next `lookahead` batches are localized: they move to this rank, while earlier batches are computed.
    The rows of the next batch alone are pulled, unless all are here, so that `Embedding` and `EmbeddingBag` find them
    when it comes; they lack at most the gradients of one step.

    Parameters
    ----------
    loader : iterable
        Batches, of whatever type: a `torch.utils.data.DataLoader` or any other iterable. Each batch is taken from it
        once, in its order, `lookahead` batches before it is handed out.
    kv : Worker
        The worker of this thread.
    keys : callable
        ``keys(batch)``: the keys of the rows that a batch needs, as an array or tensor of integers of any shape, or a
        list of such; see `Table.keys`. Keys may repeat.
    lookahead : int
        From 1 on. More batches cost memory, and take keys from other ranks sooner than necessary.
    sync : bool
        Pull nothing ahead: rows lack no gradients of this worker. For modules with ``sync=True``.

    Raises
    ------
    Exception
        What the loader or `keys` raises, after the batches before it.

    Examples
    --------
    >>> for ids, labels in Prefetcher(loader, kv, keys=lambda batch: users.keys(batch[0])):     # doctest: +SKIP
    ...     loss_of(model(ids), labels).backward()

    Notes
    -----
    To localize what later batches need is the latency hiding of Renz-Wieland et al., PVLDB 13(12), 2020; the bound of
    one step on what rows lack is the rule of Ho et al., *More Effective Distributed ML via a Stale Synchronous Parallel
    Parameter Server*, NIPS 2013.
    """

    def __init__(
        self,
        loader: Iterable[BatchT],
        kv: Worker,
        keys: Callable[[BatchT], Any],
        lookahead: int = 8,
        *,
        sync: bool = False,
    ) -> None:
        if not callable(keys):
            raise TypeError(f"keys must be a function of a batch that returns its keys, not {type(keys).__name__}")
        self.loader, self.sync = loader, sync
        self.lookahead = check_int(lookahead, "lookahead", 1, MAX_LOOKAHEAD)
        self._kv, self._keys = kv, keys

    def __len__(self) -> int:
        """The number of batches, if the loader knows it."""
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[BatchT]:
        """The batches of the loader, in its order."""
        traffic = traffic_of(self._kv)
        source = _Source(self.loader)
        coming: deque[_Coming[BatchT]] = deque()
        with _Finder(traffic) as finder:
            try:
                while self._look_ahead(source, coming, finder):
                    current = coming.popleft()
                    if not self.sync:
                        self._hand_out(traffic, current, coming)
                    yield current.batch
                if source.error is not None:
                    raise source.error
            finally:
                traffic.ahead = {}
        traffic.settle()

    def _look_ahead(self, source: _Source[BatchT], coming: deque[_Coming[BatchT]], finder: _Finder) -> bool:
        """Take batches until enough are on their way; whether there is one."""
        while len(coming) <= self.lookahead and source.is_open:
            for batch in source.take():
                try:
                    parts = self._parts_of(batch)
                except Exception as error:
                    source.fail(error)
                else:
                    coming.append(_Coming(batch, finder.find(parts)))
        self._localize(source, coming)
        return bool(coming)

    def _parts_of(self, batch: BatchT) -> list[np.ndarray]:
        """The keys of a batch as they are given: one array, or several; copies, since the caller may change its own."""
        given = self._keys(batch)
        are_several = isinstance(given, (list, tuple)) and any(np.ndim(part) for part in given)
        return [convert_keys(part, MAX_KEY).flatten() for part in (given if are_several else [given])]

    def _localize(self, source: _Source[BatchT], coming: deque[_Coming[BatchT]]) -> None:
        """Localize the keys of those batches of which they are known, and at least of the next one."""
        for number, batch in enumerate(coming):
            if batch.found is not None:
                continue
            if number > 1 and not batch.future.done():
                break
            try:
                batch.found = batch.future.result()
                for keys in batch.found.keys:
                    self._kv.localize(keys)
            except Exception as error:  # after the batches before it
                source.fail(error)
                while len(coming) > number:
                    coming.pop()
                break

    def _hand_out(self, traffic: Traffic, current: _Coming[BatchT], coming: deque[_Coming[BatchT]]) -> None:
        if traffic.runs_ahead:
            self._hand_out_to_device(traffic, current)
        else:
            traffic.settle()  # what is pulled now may lack the gradients of the batch that is handed out, and no others
            if not current.rows:
                self._pull(traffic, current, traffic.begun)
            # Rows that are here are read when they are used: read now, they would lack a step, and nothing would be
            # saved.
            if coming and not coming[0].is_local(self._kv):
                self._pull(traffic, coming[0], traffic.begun)
        traffic.ahead = current.rows
        traffic.handed_out_at = traffic.begun

    def _hand_out_to_device(self, traffic: Traffic, current: _Coming[BatchT]) -> None:
        """Pull a batch and start its upload, while the device computes the batch before.

        The gradients of that one are not waited for, as their device would have nothing to do until they have come down
        and these rows have gone up. So the rows may lack them, and none of those before.
        """
        traffic.settle(traffic.handed_out_at)
        self._pull(traffic, current, traffic.handed_out_at)
        for first, rows in current.rows.items():
            device = traffic.places[first].device
            if device is not None:
                rows.wait()
                rows.upload = Upload.start(rows.values, device)

    def _pull(self, traffic: Traffic, batch: _Coming[BatchT], number: int) -> None:
        """Start to pull the rows of the tables for which there are modules; `number` gradients have been applied."""
        assert batch.found is not None
        for first, place in traffic.places.items():
            needs = batch.found.of_tables.get(first)
            keys = _within(batch.found.others, place) if needs is None else needs.keys
            if len(keys):
                values = place.empty(len(keys))
                operation = self._kv.pull(keys, out=values.numpy().reshape(-1))
                batch.rows[first] = Rows(keys, values, operation, number, needs)


class _Source(Generic[BatchT]):
    """An iterator that keeps its error until the batches before it are handed out."""

    def __init__(self, loader: Iterable[BatchT]) -> None:
        self._iterator = iter(loader)
        self.is_open = True
        self.error: Exception | None = None

    def take(self) -> list[BatchT]:
        """The next batch, or nothing at the end."""
        try:
            return [next(self._iterator)]
        except StopIteration:
            self.is_open = False
        except Exception as error:
            self.fail(error)
        return []

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.is_open, self.error = False, error


class _Finder:
    """Finds what batches need of each table, in a thread of its own, which holds no GIL while it does."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic, self._distinct = traffic, Distinct()
        self._thread = ThreadPoolExecutor(1, "lapse-prefetcher")

    def __enter__(self) -> _Finder:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def find(self, parts: list[np.ndarray]) -> Future[_Found]:
        """The keys of a batch by tables, if each part has keys of one table."""
        return self._thread.submit(self._found_in, [part for part in parts if len(part)])

    def _found_in(self, parts: list[np.ndarray]) -> _Found:
        by_table: dict[int, list[np.ndarray]] = {}
        for part in parts:
            table = self._table_of(part)
            if table is None:
                given = np.concatenate(parts)
                keys, _, bad = self._distinct.of(given, MAX_KEY, 0)
                # What is outside any range is refused by `localize`, which knows the server's.
                return _Found({}, keys if bad < 0 else given)
            by_table.setdefault(table.first, []).append(part)
        places = self._traffic.places
        return _Found({first: self._needs_of(places[first], of) for first, of in by_table.items()}, NO_KEYS)

    def _table_of(self, part: np.ndarray) -> Place | None:
        """The table that has all of these keys."""
        least, most = part.min(), part.max()
        tables = list(self._traffic.places.values())
        return next((table for table in tables if table.first <= least and most < table.end), None)

    def _needs_of(self, table: Place, parts: list[np.ndarray]) -> Needs:
        given = parts[0] if len(parts) == 1 else np.concatenate(parts)
        keys, places, _ = self._distinct.of(given, MAX_KEY, 0)
        return Needs(given, keys, places, None if table.device is None else upload_of(places, table.device))


def _within(keys: np.ndarray, place: Place) -> np.ndarray:
    """Those keys that belong to a table."""
    inside = (keys >= place.first) & (keys < place.end)
    return keys if inside.all() else keys[inside]
