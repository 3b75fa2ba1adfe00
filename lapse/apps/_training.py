"""The course of a training run: epochs, checkpoints, the end by a signal or by time, metrics, the ``RESULT`` line.

An application trains and evaluates; when what is saved, reported and ended is decided here, the same on all ranks:

    training = Training("mf", comm, args)           # args of `_base.parse`
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
from collections.abc import Iterator

import numpy as np

from lapse.apps import _base, _plot, _resume
from lapse.apps._base import AppError
from lapse.apps._signals import Signals

log = logging.getLogger(__name__)


class Training:
    """A run, from its options to its result. Made by all ranks together, before the data are read.

    Parameters
    ----------
    app
        Its name.
    comm
        The ranks.
    args
        What `_base.parse` returned, with the shared options.
    quality
        Names of the figures that ``--plot`` draws beside the loss.
    is_logged
        Tell of each epoch, and of locality at the end.

    Attributes
    ----------
    args
        The options that count: where a run is resumed, those that it was started with.
    epoch
        How many epochs are complete.
    resumed_from
        How many were when this process began; None where it began anew.
    state
        What the application gave to `end_epoch` before the checkpoint that was found; None where it began anew.
    seconds
        Of training of the epoch at hand; known after `meet`.
    is_partial
        Whether a worker of any rank has left the epoch early; known after `meet`.
    is_interrupted
        Whether a signal ends the run; known after `meet`.

    Raises
    ------
    AppError
        On all ranks: for options that contradict a checkpoint or lack another, a folder that cannot be
        written, ``--plot`` without matplotlib.
    """

    def __init__(self, app: str, comm, args: argparse.Namespace, quality: tuple[str, ...] = (),
                 is_logged: bool = True) -> None:
        self._comm = comm
        self._quality = quality
        self._is_logged = is_logged
        self._signals = Signals()
        self.args, self._saved, self._result, was_found, self._keeps_checkpoints = _base.on_rank_0(comm, _prepare, app, args)
        self.epoch = self._saved.epoch
        self.state = self._saved.state
        self.resumed_from = self.epoch if was_found else None
        rank_0_path = self.args.metrics if comm.rank == 0 and self._result is None else None
        self._metrics = _base.collectively(comm, _base.Metrics, rank_0_path, self.resumed_from)
        self.is_partial = self.is_interrupted = False
        self.seconds = 0.0
        self._is_out_of_time = self._was_cut = False
        self._signal = None
        self._stats = []

    @property
    def seed(self) -> int:
        """For the server: its generators, which go on from epoch to epoch, shall not repeat themselves."""
        if not self.resumed_from:
            return self.args.seed
        sequence = np.random.SeedSequence((self.args.seed, self.resumed_from))
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(4))

    @property
    def history(self) -> list[dict]:
        """The figures of all epochs so far, also of those before this process."""
        return self._saved.history

    @property
    def stats(self) -> dict:
        """The counters of all ranks over the epochs of this process."""
        return _base.sum_stats(self._stats)

    def repeat_result(self) -> bool:
        """Whether the run to be resumed is finished; its ``RESULT`` is printed again then."""
        if self._result is None:
            return False
        self._signals.restore()
        if self._comm.rank == 0:
            log.info("this run is finished; to train anew, leave --resume out")
            print(f"RESULT {json.dumps(self._result)}", flush=True)
        return True

    def restore(self, server) -> None:
        """Load the values of the checkpoint, if there is one. Collective."""
        from lapse import CheckpointError

        if self.resumed_from is None:
            return
        try:
            server.load(_resume.folder_of(self.args))
        except (CheckpointError, OSError) as error:  # on all ranks
            raise AppError(_base.describe(error)) from error
        log.info("resumed after epoch %d", self.epoch)

    # Epochs -----------------------------------------------------------------------------------

    def epochs(self, server) -> Iterator[int]:
        """The numbers, from 0, of the epochs that are left; each must end with `end_epoch`. Collective."""
        self._server = server
        try:
            while not (self._is_over() or self.is_interrupted or self._is_out_of_time):
                self._begin_epoch()
                yield self.epoch
                if not self._has_ended:
                    raise RuntimeError("an epoch must end with Training.end_epoch")
        finally:
            self._signals.restore()  # all is saved
        if self._stats and self._is_logged:
            log.info(_base.locality_report(self.stats, len(self._stats)))

    def _begin_epoch(self) -> None:
        self._server.reset_stats()
        self._has_met = self._has_ended = False
        self._evaluation = 0.0
        self._start = time.perf_counter()

    def should_stop(self) -> bool:
        """For a worker with another block ahead: whether to leave the epoch now, by a signal or ``--max-runtime``."""
        stops = self._signals.received is not None or _base.out_of_time(self.args.max_runtime)
        if stops:
            self._was_cut = True
        return stops

    def meet(self) -> None:
        """End the training of an epoch: take its time and counters, agree on `is_partial` and `is_interrupted`.

        Collective; done by `evaluating` and `end_epoch` where it was not before. For those who want to know
        in between, say, to evaluate nothing when a signal came.
        """
        if self._has_met:
            return
        self._has_met = True
        self.seconds = time.perf_counter() - self._start
        self._stats.append(self._server.stats(all_ranks=True))
        self._waited = self._server.seconds_waited(all_ranks=True)
        mine = (self._was_cut, self._signals.received, _base.out_of_time(self.args.max_runtime))
        cuts, signals, times = zip(*self._comm.allgather(mine))
        self._signal = next((number for number in signals if number is not None), None)
        self.is_partial = any(cuts)
        self.is_interrupted = self._signal is not None
        self._is_out_of_time = any(times) or (self.is_partial and not self.is_interrupted)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around what counts as evaluation, not as training. Collective."""
        self.meet()
        start = time.perf_counter()
        yield
        self._evaluation += time.perf_counter() - start

    def end_epoch(self, *, loss: float | None, state: dict | None = None, is_last: bool = False, **figures) -> None:
        """Report an epoch, and save where it is time to. Collective.

        Parameters
        ----------
        loss, **figures
            For metrics and plot, the same on all ranks; numbers or None.
        state
            What fits into JSON and is to be had back as `state` by who resumes here.
        is_last
            End the training here, as after the last epoch (early stopping).
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

    def _report(self, loss, figures: dict) -> None:
        stats = self._stats[-1]
        number = self.epoch + self.is_partial
        waiting = self._waited / self._server.num_workers
        split = {"compute": max(self.seconds - waiting, 0.0), "waiting": waiting, "evaluation": self._evaluation}
        line = {"epoch": number, "seconds": self.seconds, "loss": loss, **figures}
        self.history.append({**line, "local": _base.local_share(stats), "is_partial": self.is_partial})
        self._metrics.write(**line, is_partial=self.is_partial, time=split, stats=stats)
        if self._is_logged:
            self._log(line, stats)

    def _log(self, line: dict, stats: dict) -> None:
        figures = {name: value for name, value in line.items() if name not in ("epoch", "seconds")}
        log.info("epoch %d%s: %.1f s, %s, %.1f%% of accesses local", line["epoch"], " (a part)" * self.is_partial,
                 self.seconds, _show(figures), 100 * _base.local_share(stats))

    # Checkpoints ------------------------------------------------------------------------------

    def _is_time_to_save(self) -> bool:
        if self.args.output is None:
            return False
        if self._is_over():  # of use to whoever asks for the result again, and lest an older one is taken for it
            return self._keeps_checkpoints
        every = self.args.checkpoint_every
        return self.is_interrupted or self._is_out_of_time or (every is not None and self.epoch % every == 0)

    def _save(self, state) -> None:
        self._saved.epoch, self._saved.state = self.epoch, state
        metadata = self._saved.as_metadata()
        metadata["history"] = [figures for figures in self.history if figures["epoch"] <= self.epoch]
        folder = _resume.folder_of(self.args)
        try:
            self._server.save(folder, metadata)
        except OSError as error:  # on all ranks; training is worth more than a checkpoint
            if self._is_over() or self.is_interrupted or self._is_out_of_time:
                raise AppError(f"the last checkpoint could not be written: {error}") from error
            log.warning("no checkpoint after epoch %d, training goes on: %s", self.epoch, error)
            return
        log.log(logging.INFO if self._is_logged else logging.DEBUG, "saved a checkpoint in %s", folder)

    # The end ----------------------------------------------------------------------------------

    def finish(self, **figures) -> None:
        """Print the ``RESULT`` line, after everything else. Collective.

        Raises
        ------
        SystemExit
            Instead, where a signal ended the run; see `exit_if_interrupted`.
        """
        self.exit_if_interrupted()
        line = _base.on_rank_0(self._comm, self._conclude, figures)
        if self._comm.rank == 0:
            print(line, flush=True)

    def exit_if_interrupted(self) -> None:
        """End the program where a signal ended the run: with 128 plus its number, as a shell reports it.

        To be called when the server is closed.
        """
        if self.is_interrupted:
            name = signal.Signals(self._signal).name
            log.info("ended by %s after epoch %d; %s", name, self.epoch, "continue with --resume"
                     if self.args.output else "nothing was saved, for lack of --output")
            sys.exit(128 + self._signal)

    def _conclude(self, figures: dict) -> str:
        history = self.history
        seconds = [each["seconds"] for each in history]
        figures = {"epochs": self.epoch, "resumed_from": self.resumed_from,
                   "seconds_per_epoch": sum(seconds) / max(len(seconds), 1),
                   "loss": history[-1]["loss"] if history else None, **figures}
        line = _base.result_line(self._saved.app, self._comm.size, self.args.workers, **figures)
        if self.args.plot is not None:
            _plot.draw(self.args.plot, self._saved.app, history, self._quality)
        if self._keeps_checkpoints and self._is_over():
            _resume.write_result(_resume.folder_of(self.args), json.loads(line.partition(" ")[2]))
        return line


def _prepare(app: str, args: argparse.Namespace):
    """What rank 0 finds out for all, now and not after hours: whether it can write, and what is there already."""
    for option in ("resume", "checkpoint_every"):
        if args.output is None and getattr(args, option):
            raise AppError(f"--{option.replace('_', '-')} needs --output DIR, under which checkpoints are")
    saved = result = None
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        if not os.access(args.output, os.W_OK):
            raise PermissionError(f"cannot write to {args.output}")
    if args.resume:
        saved, result = _resume.find(app, args)
        if saved is None:
            log.info("no checkpoint under %s: starting anew", args.output)
        else:
            args = _resume.take_over(args, saved.options)
    if args.plot is not None:
        _plot.require()
    keeps = args.output is not None and (
        args.resume or args.checkpoint_every is not None or _resume.folder_of(args).exists())
    return args, saved or _resume.Saved(app, _resume.encode_options(args)), result, saved is not None, keeps


def _show(figures: dict) -> str:
    def text(value):
        return "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

    return ", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in figures.items())
