"""Floor 6. `Prefetcher`: batches whose rows come while the batches before them are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from lapse.base.checks import check_int
from lapse.torch._rows import Distinct
from lapse.torch.traffic import Place, Rows, Traffic, traffic_of
from lapse.worker._arrays import convert_keys

if TYPE_CHECKING:
    from lapse.worker._worker import Worker

BatchT = TypeVar("BatchT")

MAX_LOOKAHEAD = 1_000_000
MAX_KEY = 2**63 - 1


@dataclass
class _Coming(Generic[BatchT]):
    """A batch that is not handed out yet."""

    batch: BatchT
    keys: np.ndarray
    rows: dict[int, Rows] = field(default_factory=dict)  # by the first key of their table, once they are pulled


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
        self._kv, self._keys, self._distinct = kv, keys, Distinct()

    def __len__(self) -> int:
        """The number of batches, if the loader knows it."""
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[BatchT]:
        """The batches of the loader, in its order."""
        traffic = traffic_of(self._kv)
        source = _Source(self.loader)
        coming: deque[_Coming[BatchT]] = deque()
        try:
            while self._look_ahead(source, coming):
                current = coming.popleft()
                if not self.sync:
                    self._hand_out(traffic, current, coming)
                yield current.batch
            if source.error is not None:
                raise source.error
        finally:
            traffic.ahead = {}
        traffic.settle()

    def _look_ahead(self, source: _Source[BatchT], coming: deque[_Coming[BatchT]]) -> bool:
        """Take batches until enough are on their way; whether there is one."""
        while len(coming) <= self.lookahead and source.is_open:
            for batch in source.take():
                try:
                    keys = self._keys_of(batch)
                except Exception as error:
                    source.fail(error)
                else:
                    self._kv.localize(keys)
                    coming.append(_Coming(batch, keys))
        return bool(coming)

    def _keys_of(self, batch: BatchT) -> np.ndarray:
        """The distinct keys of a batch."""
        given = self._keys(batch)
        are_several = isinstance(given, (list, tuple)) and any(np.ndim(part) for part in given)
        flat = [convert_keys(part, MAX_KEY).reshape(-1) for part in (given if are_several else [given])]
        keys = flat[0] if len(flat) == 1 else np.concatenate(flat)
        # What is outside the server's range is refused by `localize`, which knows it.
        distinct, _, bad = self._distinct.of(keys, MAX_KEY, 0)
        return distinct if bad < 0 else keys

    def _hand_out(self, traffic: Traffic, current: _Coming[BatchT], coming: deque[_Coming[BatchT]]) -> None:
        traffic.settle()  # what is pulled now may lack the gradients of the batch that is handed out, and no others
        if not current.rows:
            self._pull(traffic, current)
        # Rows that are here are read when they are used: read now, they would lack a step, and nothing would be saved.
        if coming and not self._kv.is_local(coming[0].keys).all():
            self._pull(traffic, coming[0])
        traffic.ahead = current.rows
        traffic.handed_out_at = traffic.begun

    def _pull(self, traffic: Traffic, batch: _Coming[BatchT]) -> None:
        """Start to pull the rows of the tables for which there are modules."""
        for first, place in traffic.places.items():
            keys = _within(batch.keys, place)
            if len(keys):
                values = place.empty(len(keys))
                operation = self._kv.pull(keys, out=values.numpy().reshape(-1))
                batch.rows[first] = Rows(keys, values, operation, traffic.begun)


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


def _within(keys: np.ndarray, place: Place) -> np.ndarray:
    """Those keys that belong to a table."""
    inside = (keys >= place.first) & (keys < place.end)
    return keys if inside.all() else keys[inside]
