"""The training run: data, server, epochs, evaluation, output.

Every step is collective over the ranks. A worker trains its own share of the triples, in an order that
depends on the seed, the epoch and its number only, so that all kinds of management train the same blocks.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import lapse
from lapse.apps import _base
from lapse.apps.kge import data, evaluate, output, placement, stdlib_graph
from lapse.apps.kge._kernel import Trainer
from lapse.apps.kge.data import Dataset, Known
from lapse.apps.kge.evaluate import Quality
from lapse.apps.kge.models import Model
from lapse.apps.kge.placement import Placement

log = logging.getLogger(__name__)

#: Purposes of random streams; with (seed, epoch, worker) they name a stream.
SHUFFLING, DROPOUT, SHARING = range(3)


@dataclass(frozen=True)
class Plan:
    """What all workers need to know.

    Attributes
    ----------
    shares
        Per worker of all ranks: the rows of ``dataset.train`` it trains.
    """

    args: argparse.Namespace
    dataset: Dataset
    known: Known
    model: Model
    placement: Placement
    shares: list[np.ndarray]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch came to, over all workers of all ranks; the same on every rank.

    Attributes
    ----------
    loss
        Mean over triples and sides, without penalties.
    computing, waiting
        Seconds, mean over workers: the arithmetic, and the calls of the server.
    """

    loss: float | None
    triples: int
    computing: float
    waiting: float
    stopped: bool


@dataclass
class Outcome:
    """What a training run came to so far; the same on every rank but for the seconds."""

    epochs: int = 0
    loss: float | None = None
    seconds: list[float] = field(default_factory=list)
    stats: list[dict] = field(default_factory=list)
    evaluating: float = 0.0

    @property
    def seconds_per_epoch(self) -> float:
        """The mean over the epochs."""
        return sum(self.seconds) / max(len(self.seconds), 1)


def run(args: argparse.Namespace, comm) -> None:
    """Train as `args` (of ``__main__``) say and print the ``RESULT`` line."""
    metrics = _base.collectively(comm, _prepare_output, args, comm.rank)
    dataset = load(comm, args.dataset)
    plan = make_plan(comm, args, dataset)
    if args.dataset is None:
        _base.on_rank_0(comm, _tell_rule, plan)
    with open_server(comm, plan) as server:
        outcome = train(server, plan, metrics)
        filtered, raw = server.run(evaluate.evaluate, plan.model, plan.known, dataset.test)[0]
        log.info("test, filtered: %s", filtered)
        log.info("test, raw: %s", raw)
        if args.dataset is None:
            _tell_completions(server, plan)
        if args.output is not None:
            server.run(output.write, plan.model, dataset, args.output, filtered.named())
            log.info("wrote the model to %s", args.output)
    if comm.rank == 0:
        print(_result(args, comm.size, outcome, filtered, raw), flush=True)


def _prepare_output(args: argparse.Namespace, rank: int) -> _base.Metrics:
    """Find out now, not after hours of training, that something cannot be written."""
    if rank != 0:
        return _base.Metrics(None)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        if not os.access(args.output, os.W_OK):
            raise PermissionError(f"cannot write to {args.output}")
    return _base.Metrics(args.metrics)


def _result(args: argparse.Namespace, ranks: int, outcome: Outcome, filtered: Quality, raw: Quality) -> str:
    return _base.result_line("kge", ranks, args.workers, epochs=outcome.epochs,
                             seconds_per_epoch=outcome.seconds_per_epoch, loss=outcome.loss, model=args.model,
                             **filtered.named(), **raw.named("_raw"))


# --- data ----------------------------------------------------------------------------------------------------------


def load(comm, folder: Path | None) -> Dataset:
    """Rank 0 reads, all have: other hosts need no copy of the files."""
    dataset = _base.on_rank_0(comm, _read, folder)
    log.info("%s entities, %s relations; triples: %s for training, %s to validate, %s to test",
             *(f"{len(x):,}" for x in (dataset.entities, dataset.relations, dataset.train, dataset.valid,
                                       dataset.test)))
    if unseen := dataset.unseen():
        log.warning("%s triples of valid and test have an entity or relation that does not occur in train", unseen)
    return dataset


def _read(folder: Path | None) -> Dataset:
    return data.read(stdlib_graph.standard_graph() if folder is None else folder)


def share_out(args: argparse.Namespace, train: np.ndarray, workers: int) -> list[np.ndarray]:
    """Which rows of `train` each worker trains: at random, or all triples of a relation together."""
    if args.partition == "random":
        order = np.random.default_rng((args.seed, SHARING)).permutation(len(train))
        return [order[worker::workers] for worker in range(workers)]
    counts = np.bincount(train[:, 1])
    worker_of = np.zeros(len(counts), dtype=np.int64)
    loads = np.zeros(workers, dtype=np.int64)
    for relation in np.argsort(-counts, kind="stable"):  # the largest first, to the worker with the least
        worker_of[relation] = loads.argmin()
        loads[worker_of[relation]] += counts[relation]
    return [np.flatnonzero(worker_of[train[:, 1]] == worker) for worker in range(workers)]


def batches(plan: Plan, worker: int, epoch: int) -> Iterator[np.ndarray]:
    """A worker's triples in an epoch, a block at a time, in each block by relation.

    A block's order does not matter for its gradients; neighbours with one relation find it in the cache.
    """
    rng = np.random.default_rng((plan.args.seed, epoch, worker, SHUFFLING))
    order = rng.permutation(plan.shares[worker])
    for first in range(0, len(order), plan.args.batch_size):
        block = plan.dataset.train[order[first : first + plan.args.batch_size]]
        yield np.ascontiguousarray(block[np.argsort(block[:, 1], kind="stable")])


# --- training --------------------------------------------------------------------------------------------------------


def make_plan(comm, args: argparse.Namespace, dataset: Dataset) -> Plan:
    """Decide what is decided once for all epochs. Collective."""
    model = Model(args.model, args.dim, args.norm, args.reciprocal_relations, len(dataset.entities),
                  len(dataset.relations))
    chosen = placement.decide(args, model, dataset.train, comm.size)
    if len(chosen.replicated_keys):
        log.info("%s of %s values are replicated, a round at least every %s triples of all ranks",
                 f"{len(chosen.replicated_keys):,}", f"{model.num_keys:,}", f"{args.sync_triples:,}")
    return Plan(args, dataset, Known(dataset.everything(), len(dataset.relations)), model, chosen,
                share_out(args, dataset.train, comm.size * args.workers))


@dataclass(frozen=True)
class Start:
    """Where values begin: normally distributed vectors, sums of squares 0."""

    std: float

    def values(self, keys, length, seed):
        """For `lapse.Server.initialize`; shape (len(keys), length)."""
        rows = np.zeros((len(keys), length))
        rows[:, : length // 2] = lapse.Normal(0.0, self.std).values(keys, length // 2, seed)
        return rows


def open_server(comm, plan: Plan) -> lapse.Server:
    """A server with the parameters where they begin."""
    args, chosen, model = plan.args, plan.placement, plan.model
    uniform = model.relation_length == model.dim
    server = lapse.Server(model.num_keys, 2 * model.dim if uniform else placement.value_lengths(model),
                          workers=args.workers, comm=comm, seed=args.seed,
                          replicated_keys=chosen.replicated_keys, replication=chosen.replication,
                          sampling=chosen.sampling)
    server.initialize(np.arange(model.num_keys), Start(args.init_std))
    return server


def train(server: lapse.Server, plan: Plan, metrics: _base.Metrics) -> Outcome:
    """Run the epochs; the server has the best model afterwards."""
    outcome, best = Outcome(), Best(plan.args.patience)
    for epoch in range(plan.args.epochs):
        server.reset_stats()
        start = time.perf_counter()
        result = server.run(train_epoch, plan, epoch)[0]
        outcome.seconds.append(time.perf_counter() - start)
        outcome.stats.append(server.stats(all_ranks=True))
        outcome.loss = result.loss
        outcome.epochs += not result.stopped
        quality, seconds = _validate(server, plan, epoch, result.stopped)
        outcome.evaluating += seconds
        if quality is not None:
            best.offer(server, epoch, quality)
        _report_epoch(server, metrics, epoch, outcome, result, quality, seconds)
        if result.stopped:
            log.info("stopped by --max-runtime in epoch %d", epoch + 1)
            break
        if best.is_enough:
            log.info("no better model in %d evaluations: stopped (--patience)", plan.args.patience)
            break
    best.restore(server, epoch)
    log.info(_base.locality_report(_base.sum_stats(outcome.stats), len(outcome.seconds)))
    return outcome


def _validate(server, plan: Plan, epoch: int, last: bool) -> tuple[Quality | None, float]:
    """The quality on valid, where it is due, and the seconds it took."""
    every = plan.args.eval_every
    last = last or epoch + 1 == plan.args.epochs
    if not every or not len(plan.dataset.valid) or not (last or (epoch + 1) % every == 0):
        return None, 0.0
    start = time.perf_counter()
    filtered, _ = server.run(evaluate.evaluate, plan.model, plan.known, plan.dataset.valid)[0]
    return filtered, time.perf_counter() - start


def _report_epoch(server, metrics, epoch, outcome: Outcome, result: EpochResult, quality: Quality | None,
                  evaluating: float) -> None:
    if server.rank != 0:
        return
    seconds, stats = outcome.seconds[-1], outcome.stats[-1]
    figures = {} if quality is None else quality.named()
    metrics.write(epoch=epoch + 1, seconds=seconds, loss=result.loss, **figures,
                  triples_per_second=result.triples / seconds, seconds_computing=result.computing,
                  seconds_waiting=result.waiting, seconds_evaluating=evaluating, stats=stats)
    log.info("epoch %d: %.1f s (%.1f computing, %.1f waiting for parameters), loss %s, %.1f%% of accesses local%s",
             epoch + 1, seconds, result.computing, result.waiting,
             "none" if result.loss is None else f"{result.loss:.4f}", 100 * _base.local_share(stats),
             "" if quality is None else f"; valid: {quality} ({evaluating:.1f} s)")


def train_epoch(kv: lapse.Worker, plan: Plan, epoch: int) -> EpochResult:
    """Train one worker's share once."""
    trainer = make_trainer(kv, plan, epoch)
    share = len(plan.shares[kv.id])
    progress = _base.Progress(f"epoch {epoch + 1}/{plan.args.epochs}", share * kv.num_workers, "triples",
                              kv.id == 0 and not plan.args.no_progress)
    stopped = False
    for block in batches(plan, kv.id, epoch):
        stopped = _base.out_of_time(plan.args.max_runtime)
        if stopped:
            break
        trainer.train(block)
        if trainer.triples:
            progress.show(trainer.triples * kv.num_workers, loss=f"{trainer.loss / trainer.triples / 2:.4f}")
    trainer.finish()
    kv.wait_replica_sync()  # what comes next reads homes and replicas alike
    progress.close()
    return _sum_up(kv, trainer, stopped)


def learning_rate(args: argparse.Namespace, epoch: int) -> float:
    """Falls linearly from epoch to epoch, to `lr_final` times `lr` in the last one."""
    done = epoch / max(args.epochs - 1, 1)
    return args.lr * (1 + (args.lr_final - 1) * done)


def make_trainer(kv: lapse.Worker, plan: Plan, epoch: int) -> Trainer:
    """The kernel for one worker and one epoch."""
    args, chosen, model = plan.args, plan.placement, plan.model
    seed = np.random.SeedSequence((args.seed, epoch, kv.id, DROPOUT)).generate_state(1, np.uint64)[0]
    return Trainer(
        kv, rate=learning_rate(args, epoch), localize=chosen.localize, lookahead=chosen.lookahead,
        model=model.name, loss=args.loss, dim=model.dim, relation_length=model.relation_length,
        num_entities=model.num_entities, num_relations=model.num_relations, reciprocal=model.reciprocal,
        block=args.batch_size, negatives=args.num_negs_per_pos, norm=model.norm, margin=args.margin,
        entity_dropout=args.entity_dropout, relation_dropout=args.relation_dropout, entity_n3=args.entity_n3,
        entity_l2=args.entity_l2, relation_n3=args.relation_n3, relation_l2=args.relation_l2, seed=int(seed))


def _sum_up(kv: lapse.Worker, trainer: Trainer, stopped: bool) -> EpochResult:
    mine = np.array([trainer.loss, trainer.triples, trainer.seconds_computing, trainer.seconds_waiting, stopped])
    loss, triples, computing, waiting, stops = kv.allreduce(mine).tolist()
    return EpochResult(loss / triples / 2 if triples else None, int(triples), computing / kv.num_workers,
                       waiting / kv.num_workers, stops > 0)


class Best:
    """Keeps the best model so far: each rank a copy of the values that it owned at that moment.

    Parameters
    ----------
    patience
        Evaluations without a better model after which it is enough; 0: never.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._epoch = -1
        self._quality: Quality | None = None
        self._worse = 0
        self._keys = self._values = None

    @property
    def is_enough(self) -> bool:
        """Whether there was no better one for too long."""
        return 0 < self._patience <= self._worse

    def offer(self, server: lapse.Server, epoch: int, quality: Quality) -> None:
        """Keep the present model if it is better; no key may be on its way. Collective."""
        if self._quality is not None and not quality.mrr > self._quality.mrr:
            self._worse += 1
            return
        self._epoch, self._quality, self._worse = epoch, quality, 0
        self._keys = server.local_keys()
        self._values = server.run(_pull_once, server.workers, self._keys)[0]

    def restore(self, server: lapse.Server, epoch: int) -> None:
        """Set the values to the best model's, where the present one (of `epoch`) is another. Collective."""
        if self._quality is None or self._epoch == epoch:
            return
        log.info("the best model is that of epoch %d: MRR %.4f on valid", self._epoch + 1, self._quality.mrr)
        server.run(_set_once, server.workers, self._keys, self._values)


def _pull_once(kv: lapse.Worker, workers: int, keys: np.ndarray) -> np.ndarray | None:
    """The values of keys, by the first worker of each rank (the others have None)."""
    return kv.pull(keys).wait() if kv.id == kv.rank * workers else None


def _set_once(kv: lapse.Worker, workers: int, keys: np.ndarray, values: np.ndarray) -> None:
    if kv.id == kv.rank * workers:
        kv.set(keys, values).wait()


# --- the graph that every machine has ------------------------------------------------------------------------------


def _tell_rule(plan: Plan) -> None:
    dataset = plan.dataset
    rule = evaluate.frequency_rule(dataset.train, dataset.test, plan.known, len(dataset.entities))
    log.info('the rule "most frequent object of this relation" has MRR %.4f on test (s, r, ?), and %.4f on both '
             "sides", rule["object"].mrr, rule["both"].mrr)


def _tell_completions(server: lapse.Server, plan: Plan) -> None:
    """Show what the model adds to a few questions."""
    questions = stdlib_graph.questions(plan.dataset)
    answers = server.run(_answer, plan, questions)[0]
    if server.rank == 0:
        for (subject, relation), entities in zip(questions, answers, strict=True):
            names = ", ".join(plan.dataset.entities[entity] for entity in entities)
            print(f"{plan.dataset.entities[subject]} {plan.dataset.relations[relation]} ?  {names}")


def _answer(kv: lapse.Worker, plan: Plan, questions: list[tuple[int, int]]) -> list[list[int]]:
    if kv.id != 0:
        return []
    train = plan.dataset.train
    answers = []
    for subject, relation in questions:
        seen = np.zeros(len(plan.dataset.entities), bool)
        seen[train[train[:, 1] == relation, 2]] = True
        seen[subject] = False
        answers.append(evaluate.complete(kv, plan.model, plan.known, subject, relation, accept=seen.__getitem__))
    return answers
