"""Floor 4. The random streams of a rank's workers: what `Worker.rng` and the samplers draw from.

They go on from one run to the next, and from a checkpoint to the server that loads it with as many workers. With
another number of workers there is no stream to go on with: each worker then gets a new one, which depends on those that
were saved, so that what was drawn before is not drawn again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lapse.sampling._draws import Generator
from lapse.sampling._sampler import Sampler

_PURPOSE = 0  # of `Worker.rng`; those of samplers are above it


class Streams:
    """The streams of one rank.

    Parameters
    ----------
    seed : int
    ids : range
        The workers of this rank.
    num_workers : int
        Of all ranks.
    samplers : sequence of Sampler or None
        One for each worker of this rank.
    """

    def __init__(self, seed: int, ids: range, num_workers: int, samplers: Sequence[Sampler | None]) -> None:
        self._seed, self._ids, self._num_workers = seed, ids, num_workers
        self._samplers = list(samplers)
        self._generators: dict[int, np.random.Generator] = {}

    def generator(self, worker: int) -> np.random.Generator:
        """The one of a worker of this rank; it is made when it is used for the first time."""
        if worker not in self._generators:
            self._generators[worker] = np.random.default_rng([self._seed, worker])
        return self._generators[worker]

    def state(self) -> list[dict[str, Any]]:
        """Where the streams of this rank's workers are: for `restored`, and for JSON."""
        return [
            {
                "worker": worker,
                "rng": _plain(self.generator(worker).bit_generator.state),
                "sampling": [_plain(stream.state) for stream in _streams_of(sampler)],
            }
            for worker, sampler in zip(self._ids, self._samplers)
        ]

    def restored(self, saved: list[dict[str, Any]]) -> list[tuple[dict, list[dict]]]:
        """Where the streams of this rank's workers are to go on, for `adopt`.

        Parameters
        ----------
        saved : list of dict
            What `state` returned on all ranks; empty if nothing was saved.

        Raises
        ------
        Exception
            Of whatever kind, when it is something else.
        """
        if len(saved) == self._num_workers:
            by_worker = {int(each["worker"]): each for each in saved}
            return [self._go_on(by_worker[worker], sampler) for worker, sampler in zip(self._ids, self._samplers)]
        salt = zlib.crc32(repr(saved).encode())
        return [self._begin(salt, worker, sampler) for worker, sampler in zip(self._ids, self._samplers)]

    def _go_on(self, saved: dict[str, Any], sampler: Sampler | None) -> tuple[dict, list[dict]]:
        generator = np.random.default_rng(0)
        generator.bit_generator.state = saved["rng"]
        streams = _streams_of(sampler)
        if len(saved["sampling"]) != len(streams):  # another scheme
            return dict(generator.bit_generator.state), self._begin(0, int(saved["worker"]), sampler)[1]
        return dict(generator.bit_generator.state), [_checked(state) for state in saved["sampling"]]

    def _begin(self, salt: int, worker: int, sampler: Sampler | None) -> tuple[dict, list[dict]]:
        states: list[Any] = [
            np.random.SFC64(np.random.SeedSequence((self._seed, salt), spawn_key=(worker, purpose))).state
            for purpose, _ in enumerate(_streams_of(sampler), _PURPOSE + 1)
        ]
        state: Any = np.random.default_rng([self._seed, worker, salt, _PURPOSE]).bit_generator.state
        return state, states

    def adopt(self, states: list[tuple[dict, list[dict]]]) -> None:
        """Go on where `restored` says. Keys that a pool has drawn ahead are not used any more."""
        for worker, sampler, (own, others) in zip(self._ids, self._samplers, states):
            self.generator(worker).bit_generator.state = own
            for stream, state in zip(_streams_of(sampler), others):
                stream.state = state
            if sampler is not None:
                sampler.begin_anew()


def _streams_of(sampler: Sampler | None) -> list[Generator]:
    return [] if sampler is None else sampler.streams()


def _plain(value: Any) -> Any:
    """A state of NumPy's as JSON can hold it."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return [int(item) for item in value]
    return int(value) if isinstance(value, np.integer) else value


def _checked(saved: dict[str, Any]) -> dict[str, Any]:
    """The state of a sampler's stream, after NumPy has accepted it."""
    source = np.random.SFC64(0)
    words = np.array(saved["state"]["state"], dtype=np.uint64)
    state: Any = {**saved, "state": {"state": words}}
    source.state = state
    return dict(source.state)
