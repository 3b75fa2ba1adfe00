"""The course of a training run: epochs, checkpoints, the end by a signal or by time, metrics, the ``RESULT`` line.

An application trains and evaluates; when to save, to report and to stop is decided here, alike on all ranks::

    training = Training("mf", comm, args)           # args of `options.parse`
    if training.repeat_result():                    # --resume of a finished run
        return
    with lapse.Server(..., seed=training.seed) as server:
        server.initialize(...)
        training.restore(server)
        for epoch in training.epochs(server):
            loss = server.run(train_epoch, training, epoch)[0]      # asks training.should_stop() before each block
            with training.evaluating():
                rmse = evaluate(server)
            training.end_epoch(loss=loss, rmse=rmse)
    training.finish(rmse=rmse)

Random streams derive from (seed, epoch, worker, purpose), so that nothing about them needs saving.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lapse.apps._shared import checkpoints, files, job, plot, report
from lapse.apps._shared.checkpoints import Saved
from lapse.apps._shared.job import AppError, on_rank_0_only
from lapse.apps._shared.locks import Lock
from lapse.apps._shared.metrics import Metrics, local_share, locality_report
from lapse.apps._shared.recording import HotKeys, Recording
from lapse.apps._shared.signals import Signals

if TYPE_CHECKING:
    import lapse
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: The file that says that a run writes into a folder.
LOCK = ".lapse-lock"


class Training:
    """A run, from its options to its result. Created by all ranks together, before the data are read.

    Parameters
    ----------
    app
        The name of the application.
    comm
        The ranks.
    args
        What `options.parse` returned, with the shared options.
    quality
        Names of the figures that ``--plot`` draws in addition to the loss.
    is_logged
        Whether to log each epoch, and locality at the end.

    Attributes
    ----------
    args
        The options in effect: if a run is resumed, those that it was started with.
    epoch
        Number of complete epochs.
    resumed_from
        Number of epochs that were complete when this process started; None if it started from scratch.
    state
        What the application passed to `end_epoch` before the checkpoint that was found; None if there is none.
    seconds
        Training time of the current epoch; known after `meet`.
    is_partial
        Whether a worker of any rank has left the epoch early; known after `meet`.
    is_interrupted
        Whether a signal stops the run; known after `meet`.

    Raises
    ------
    AppError
        On all ranks: for options that contradict a checkpoint or require another option, a folder that cannot be
        written, ``--plot`` without matplotlib.
    """

    def __init__(
        self, app: str, comm: Intracomm, args: argparse.Namespace, quality: tuple[str, ...] = (), is_logged: bool = True
    ) -> None:
        self._comm = comm
        self._quality = quality
        self._is_logged = is_logged
        self._signals = Signals()
        self._locks = on_rank_0_only(comm, _lock_outputs, args) or []
        self.args, self._saved, self._result, was_found, self._keeps_checkpoints = job.on_rank_0(
            comm, _prepare, app, args
        )
        self.epoch = self._saved.epoch
        self.state = self._saved.state
        self.resumed_from = self.epoch if was_found else None
        rank_0_path = self.args.metrics if comm.rank == 0 and self._result is None else None
        self._metrics = job.collectively(comm, Metrics, rank_0_path, self.resumed_from)
        self.is_partial = self.is_interrupted = False
        self.seconds = 0.0
        self._is_out_of_time = self._was_cut = False
        self._signal: int | None = None
        self._stats: list[dict] = []
        self._recording = Recording()

    @property
    def seed(self) -> int:
        """The seed of the server: its generators run on from epoch to epoch, and must not repeat in a resumed run."""
        if not self.resumed_from:
            return self.args.seed
        sequence = np.random.SeedSequence((self.args.seed, self.resumed_from))
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(4))

    @property
    def history(self) -> list[dict]:
        """The figures of all epochs so far, including those before this process."""
        return self._saved.history

    @property
    def stats(self) -> dict:
        """The counters of all ranks over the epochs of this process."""
        total: Counter = Counter()
        for stats in self._stats:
            total.update(stats)
        return total

    def note_hot_keys(self, named: Sequence[tuple[str, int]], replicated: np.ndarray) -> None:
        """Say which keys are used most, for ``--report``, alike on all ranks.

        Parameters
        ----------
        named
            What the report calls them, and the keys; the most used ones first.
        replicated
            All keys that are replicated.
        """
        self._recording.hot_keys = HotKeys.of(named, replicated)

    def repeat_result(self) -> bool:
        """Whether the run to be resumed is finished; if so, print its ``RESULT`` again."""
        if self._result is None:
            return False
        self._signals.restore()
        self._release_locks()
        if self._comm.rank == 0:
            log.info("this run is finished; omit --resume to train from scratch")
            if self.args.report is not None:
                report.write(self.args.report, self._result, self.history, self._recording)
            print(f"RESULT {json.dumps(self._result)}", flush=True)
        return True

    def restore(self, server: lapse.Server) -> None:
        """Load the values of the checkpoint, if there is one. Collective."""
        from lapse import CheckpointError

        if self.resumed_from is None:
            return
        try:
            server.load(checkpoints.folder_of(self.args))
        except (CheckpointError, OSError) as error:  # on all ranks
            raise AppError(job.describe(error)) from error
        log.info("resumed after epoch %d", self.epoch)

    # Epochs -----------------------------------------------------------------------------------

    def epochs(self, server: lapse.Server) -> Iterator[int]:
        """The numbers (from 0) of the remaining epochs; each must end with `end_epoch`. Collective."""
        self._server = server
        self._signals.note()
        try:
            while not (self._is_over() or self.is_interrupted or self._is_out_of_time):
                self._begin_epoch()
                yield self.epoch
                if not self._has_ended:
                    raise RuntimeError("an epoch must end with Training.end_epoch")
        finally:
            self._signals.restore()  # everything is saved
        if self._stats and self._is_logged:
            log.info(locality_report(self.stats, len(self._stats)))

    def _begin_epoch(self) -> None:
        self._server.reset_stats()
        self._has_met = self._has_ended = False
        self._evaluation = 0.0
        self._computing: list[float] = []
        self._start = time.perf_counter()

    def should_stop(self) -> bool:
        """For a worker before each block: whether to leave the epoch, because of a signal or ``--max-runtime``."""
        stops = self._signals.received is not None or job.out_of_time(self.args.max_runtime)
        if stops:
            self._was_cut = True
        return stops

    def note_computing(self, seconds: float) -> None:
        """For a worker at the end of an epoch: how long its kernel has computed (see `Pipeline`; 0: not timed)."""
        self._computing.append(seconds)

    def meet(self) -> None:
        """End the training of an epoch: take its time and counters, agree on `is_partial` and `is_interrupted`.

        Collective. `evaluating` and `end_epoch` call it if it has not been called: only needed by an application that
        decides something in between, for example not to evaluate after a signal.
        """
        if self._has_met:
            return
        self._has_met = True
        self.seconds = time.perf_counter() - self._start
        self._stats.append(self._server.stats(all_ranks=True))
        self._waited = self._server.waiting_times(all_ranks=True)
        out_of_time = job.out_of_time(self.args.max_runtime)
        mine = (self._was_cut, self._signals.received, out_of_time, sum(self._computing))
        cuts, signals, times, computing = zip(*self._comm.allgather(mine))
        self._signal = next((number for number in signals if number is not None), None)
        self.is_partial = any(cuts)
        self.is_interrupted = self._signal is not None
        self._computed = sum(computing)
        self._is_out_of_time = any(times) or (self.is_partial and not self.is_interrupted)
        if self.args.report is not None:
            number = self.epoch + 1
            self._recording.add(self._comm, self._server, number, self._times(sum(self._computing), False))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The body counts as evaluation, not as training. Collective."""
        self.meet()
        start = time.perf_counter()
        yield
        self._evaluation += time.perf_counter() - start

    def end_epoch(
        self, *, loss: float | None, state: dict | None = None, is_last: bool = False, **figures: float | None
    ) -> None:
        """Report an epoch, and save a checkpoint if one is due. Collective.

        Parameters
        ----------
        loss, **figures
            For metrics and plot, the same on all ranks; numbers or None.
        state
            Anything that fits into JSON; a run that is resumed here gets it back as `state`.
        is_last
            Stop the training here, as after the last epoch (early stopping).
        """
        self.meet()
        self._has_ended = True
        if not self.is_partial:
            self.epoch += 1
        self._saved.is_over = self._is_over() or is_last
        self._report(loss, figures)
        if self._is_time_to_save():
            self._save(state)

    def _is_over(self) -> bool:
        return self._saved.is_over or self.epoch >= self.args.epochs

    def _report(self, loss: float | None, figures: dict) -> None:
        stats = self._stats[-1]
        number = self.epoch + self.is_partial
        line = {"epoch": number, "seconds": self.seconds, "loss": loss, **figures}
        self.history.append({**line, "local": local_share(stats), "is_partial": self.is_partial})
        self._metrics.write(**line, is_partial=self.is_partial, time=self._split(), stats=stats)
        if self._is_logged:
            self._log(line, stats)

    def _split(self) -> dict[str, float]:
        """The seconds of the mean worker in this epoch, and those of the evaluation after it."""
        return {**self._times(self._computed, True), "evaluation": self._evaluation}

    def _times(self, computed: float, of_all_ranks: bool) -> dict[str, float]:
        """What the mean worker, of all ranks or of this one, has spent the training of this epoch with."""
        times = self._waited if of_all_ranks else self._server.waiting_times()
        workers = self._server.num_workers if of_all_ranks else self.args.workers
        waited = {f"waiting_for_{reason}": seconds for reason, seconds in times.items()}
        split = {name: seconds / workers for name, seconds in {"compute": computed, **waited}.items()}
        return {**split, "rest": max(self.seconds - sum(split.values()), 0.0)}

    def _log(self, line: dict, stats: dict) -> None:
        figures = {name: value for name, value in line.items() if name not in ("epoch", "seconds")}
        log.info(
            "epoch %d%s: %.1f s, %s, %.1f%% of accesses local",
            line["epoch"],
            " (partial)" * self.is_partial,
            self.seconds,
            _show(figures),
            100 * local_share(stats),
        )

    # Checkpoints ------------------------------------------------------------------------------

    def _is_time_to_save(self) -> bool:
        if self.args.output is None:
            return False
        if self._is_over():  # so that --resume repeats the result, and does not continue from an older checkpoint
            return self._keeps_checkpoints
        every = self.args.checkpoint_every
        return self.is_interrupted or self._is_out_of_time or (every is not None and self.epoch % every == 0)

    def _save(self, state: dict | None) -> None:
        self._saved.epoch, self._saved.state = self.epoch, state
        metadata = self._saved.as_metadata()
        metadata["history"] = [figures for figures in self.history if figures["epoch"] <= self.epoch]
        folder = checkpoints.folder_of(self.args)
        try:
            self._server.save(folder, metadata)
        except OSError as error:  # on all ranks; losing a checkpoint is better than losing the training
            if self._is_over() or self.is_interrupted or self._is_out_of_time:
                raise AppError(f"the last checkpoint could not be written: {error}") from error
            log.warning("no checkpoint after epoch %d, training continues: %s", self.epoch, error)
            return
        log.log(logging.INFO if self._is_logged else logging.DEBUG, "saved a checkpoint in %s", folder)

    # The end ----------------------------------------------------------------------------------

    def finish(self, **figures: Any) -> None:
        """Print the ``RESULT`` line, after everything else. Collective.

        Raises
        ------
        SystemExit
            Instead, if a signal stopped the run; see `exit_if_interrupted`.
        """
        self.exit_if_interrupted()
        line = job.on_rank_0(self._comm, self._conclude, figures)
        self._release_locks()
        if self._comm.rank == 0:
            print(line, flush=True)

    def exit_if_interrupted(self) -> None:
        """Exit if a signal stopped the run, with 128 plus its number, as shells report it; for after the server."""
        if self._signal is not None:
            self._release_locks()
            name = signal.Signals(self._signal).name
            log.info(
                "stopped by %s after epoch %d; %s",
                name,
                self.epoch,
                "continue with --resume" if self.args.output else "nothing was saved because --output was not given",
            )
            sys.exit(128 + self._signal)

    def _release_locks(self) -> None:
        for lock in self._locks:
            lock.release()

    def _conclude(self, figures: dict) -> str:
        history = self.history
        seconds = [each["seconds"] for each in history]
        result = {
            "app": self._saved.app,
            "ranks": self._comm.size,
            "workers": self.args.workers,
            "resumed_from": self.resumed_from,
            "epochs": self.epoch,
            "seconds_per_epoch": sum(seconds) / max(len(seconds), 1),
            "loss": history[-1]["loss"] if history else None,
            **figures,
        }
        if self.args.plot is not None:
            plot.draw(self.args.plot, self._saved.app, history, self._quality)
        if self.args.report is not None:
            report.write(self.args.report, result, history, self._recording)
        if self._keeps_checkpoints and self._is_over():
            checkpoints.write_result(checkpoints.folder_of(self.args), result)
        return "RESULT " + json.dumps(result)


def _lock_outputs(args: argparse.Namespace) -> list[Lock]:
    """What rank 0 does first: make sure that no other run writes where this one will."""
    locks = []
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        if not os.access(args.output, os.W_OK):
            raise PermissionError(f"cannot write to {args.output}: choose another --output")
        locks.append(Lock(args.output / LOCK, f"--output {args.output}"))
        files.finish_replacing(args.output)
    if args.metrics is not None and (args.metrics.is_file() or not args.metrics.exists()):
        metrics = args.metrics.absolute()
        locks.append(Lock(metrics.with_name(metrics.name + LOCK), f"--metrics {args.metrics}"))
    return locks


def _prepare(app: str, args: argparse.Namespace) -> tuple[argparse.Namespace, Saved, dict | None, bool, bool]:
    """What rank 0 checks for all ranks before the training: whether it can write, and what exists already."""
    for option in ("resume", "checkpoint_every"):
        if args.output is None and getattr(args, option):
            raise AppError(f"--{option.replace('_', '-')} requires --output DIR, the folder of checkpoints")
    saved = result = None
    if args.resume:
        saved, result = checkpoints.find(app, args)
        if saved is None:
            log.info("no checkpoint under %s: starting from scratch", args.output)
        else:
            args = checkpoints.take_over(args, saved.options)
    if args.plot is not None:
        plot.require(args.plot)
    if args.report is not None:
        report.require(args.report)
    keeps = args.output is not None and (
        args.resume or args.checkpoint_every is not None or checkpoints.folder_of(args).exists()
    )
    return args, saved or Saved(app, checkpoints.encode_options(args)), result, saved is not None, keeps


def _show(figures: dict) -> str:
    def text(value: float | None) -> str:
        return "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

    return ", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in figures.items())
