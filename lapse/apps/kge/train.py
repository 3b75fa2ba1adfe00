"""The training run: data, server, epochs, evaluation, output.

Every step is collective over the ranks. A worker trains its own share of the triples, in an order that depends on the
seed, the epoch and its number only, so that all management techniques train the same blocks.
"""

from __future__ import annotations

import argparse
import functools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared import job, search, streams
from lapse.apps._shared.files import write_model
from lapse.apps._shared.memory import Room
from lapse.apps._shared.options import pace_options
from lapse.apps._shared.placement import NormalThenZero, Ranks, log_replicated, make_server
from lapse.apps._shared.progress import Progress
from lapse.apps._shared.recording import MOST_KEYS
from lapse.apps._shared.training import Training
from lapse.apps.kge import data, evaluate, full, model_io, placement, stdlib_graph
from lapse.apps.kge._kernel import Trainer
from lapse.apps.kge.data import Dataset, Known
from lapse.apps.kge.models import Model
from lapse.apps.kge.options import epochs_for, searched
from lapse.apps.kge.plan import DROPOUT, SHARING, SHUFFLING, Plan, kernel_options, learning_rate
from lapse.server import checkpoint

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

FLOAT_BYTES = 4


def run(args: argparse.Namespace, comm: Intracomm) -> None:
    """Train as the options say and print the ``RESULT`` line."""
    dataset = None
    if search.is_wanted(args):
        dataset = load(comm, args)
        args.epochs = epochs_for(args, len(dataset.train))
        args = search.choose("kge", comm, args, *searched(args), functools.partial(score_of, comm, dataset))
    training = Training("kge", comm, args, quality=("mrr",))
    if training.repeat_result():
        return
    args = training.args
    dataset = dataset or load(comm, args)
    args.epochs = epochs_for(args, len(dataset.train))
    plan = make_plan(comm, args, dataset)
    if args.dataset is None:
        job.on_rank_0(comm, _log_rule, plan)
    best = job.collectively(comm, Best, training, comm.rank)
    figures = {}
    training.note_hot_keys(most_frequent(dataset), plan.placement.replicated_keys)
    with open_server(comm, plan, training.seed) as server:
        training.restore(server)
        train(server, plan, training, best)
        if not training.is_interrupted:
            figures = conclude(server, plan, best)
    training.finish(model=args.model, **figures)
    if training.epoch >= args.epochs or best.is_enough:  # otherwise it may be resumed, and needs it
        best.forget()


def score_of(comm: Intracomm, dataset: Dataset, args: argparse.Namespace) -> float | None:
    """The best MRR on the validation triples of a training with these options, for ``--search``. Collective."""
    if not len(dataset.valid):
        raise job.AppError("--search: the data set has no validation triples")
    args.eval_every = args.eval_every or args.epochs
    training = Training("kge", comm, args, is_logged=False)
    plan = make_plan(comm, args, dataset)
    best = Best(training, comm.rank)
    with open_server(comm, plan, training.seed) as server:
        train(server, plan, training, best)
    training.exit_if_interrupted()
    return max((each["mrr"] for each in training.history if each.get("mrr") is not None), default=None)


def most_frequent(dataset: Dataset) -> list[tuple[str, int]]:
    """The entities and relations of most training triples: their names and keys."""
    counts = np.concatenate(
        [
            np.bincount(dataset.train[:, [0, 2]].reshape(-1), minlength=len(dataset.entities)),
            np.bincount(dataset.train[:, 1], minlength=len(dataset.relations)),
        ]
    )
    names = [*dataset.entities, *dataset.relations]
    return [(names[key], key) for key in np.argsort(-counts, kind="stable")[:MOST_KEYS].tolist()]


def conclude(server: lapse.Server, plan: Plan, best: Best) -> dict:
    """Evaluate and write the best model; returns the figures for the ``RESULT`` line. Collective."""
    best.restore(server)
    found = evaluate_all(server, plan, plan.dataset.test)
    log.info("test, filtered: %s", found.filtered)
    log.info("test, raw: %s", found.raw)
    for name, sides in found.categories.items():
        for side, quality in sides.items():
            log.info("test, %s of %s relations, filtered: %s", side, name, quality)
    if plan.args.dataset is None:
        _print_completions(server, plan)
    if plan.args.output is not None:
        about = plan.model, plan.dataset, found.filtered.named()
        write_model(
            server, plan.args.output, model_io.ABOUT, model_io.write, *about, obsolete=[model_io.INVERSE + ".npy"]
        )
    return found.named()


def evaluate_all(server: lapse.Server, plan: Plan, triples: np.ndarray) -> evaluate.Evaluation:
    """The figures of triples, by all workers. Collective."""
    return server.run(evaluate.evaluate, plan.model, plan.known, triples, plan.categories)[0]


# --- data ----------------------------------------------------------------------------------------------------------


def load(comm: Intracomm, args: argparse.Namespace) -> Dataset:
    """Read on rank 0 and send to all ranks: other hosts need no copy of the files."""
    dataset = job.on_rank_0(comm, _read, args, Room.of(comm))
    for note in dataset.notes:
        log.info(note)
    log.info(
        "%s entities, %s relations; triples: %s train, %s valid, %s test",
        *(f"{len(x):,}" for x in (dataset.entities, dataset.relations, dataset.train, dataset.valid, dataset.test)),
    )
    if comm.rank == 0:
        for doubt in data.doubts(dataset):
            log.warning(doubt)
    return dataset


def _read(args: argparse.Namespace, room: Room) -> Dataset:
    if args.dataset is None:
        if args.columns is not None:
            raise job.AppError("--columns requires --dataset DIR")
        return data.read(stdlib_graph.standard_graph())

    def allow(entities: int, relations: int) -> None:
        model = Model(args.model, args.dim, args.norm, args.reciprocal_relations, entities, relations)
        vectors, more = (2, "as many sums of squares") if args.optimizer == "adagrad" else (3, "two moments of each")
        numbers = vectors * (model.dim * entities + model.relation_length * model.relation_keys)
        each = vectors * model.dim
        if full.is_chosen(args):
            numbers += full.COPIES * model.dim * entities
            each, more = each + full.COPIES * model.dim, f"{more} and {full.COPIES} copies for products of matrices"
        room.check(
            f"{entities:,} entities and {relations:,} relations x {each} numbers (--dim {model.dim}, and {more}) "
            f"x {FLOAT_BYTES} bytes",
            numbers * FLOAT_BYTES,
            model.num_keys,
            "choose a smaller --dim or more hosts; or, if most ids are unused, renumber them without gaps, or give the "
            "triples as names (.txt), of which only those that occur take memory",
        )

    return data.read(args.dataset, args.columns, allow)


def assign_triples(args: argparse.Namespace, train: np.ndarray, workers: int) -> list[np.ndarray]:
    """The rows of `train` that each worker trains: at random, or all triples of a relation together."""
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
    """The triples of a worker in an epoch, a block at a time, sorted by relation.

    The order within a block does not change its gradients; neighbors with the same relation find it in the cache.
    """
    rng = streams.generator(plan.args.seed, epoch, worker, SHUFFLING)
    order = rng.permutation(plan.shares[worker])
    for first in range(0, len(order), plan.args.batch_size):
        block = plan.dataset.train[order[first : first + plan.args.batch_size]]
        yield np.ascontiguousarray(block[np.argsort(block[:, 1], kind="stable")])


# --- training --------------------------------------------------------------------------------------------------------


def make_plan(comm: Intracomm, args: argparse.Namespace, dataset: Dataset) -> Plan:
    """Make the decisions that hold for all epochs. Collective."""
    model = Model(
        args.model, args.dim, args.norm, args.reciprocal_relations, len(dataset.entities), len(dataset.relations)
    )
    chosen = placement.decide(args, model, dataset.train, Ranks.of(comm))
    log_replicated(chosen, model.num_keys, "values", placement.describe_pace(args))
    return Plan(
        args,
        dataset,
        Known(dataset.everything(), len(dataset.relations)),
        evaluate.categories_of(dataset.train, len(dataset.relations)),
        model,
        chosen,
        assign_triples(args, dataset.train, comm.size * args.workers),
    )


def start_values(args: argparse.Namespace) -> NormalThenZero:
    """Initial values: normally distributed vectors, and with AdaGrad as many sums of squares, which are 0."""
    vectors = placement.vectors_of_value(args.optimizer)
    return NormalThenZero(lambda length: length // vectors, args.init_std)


def open_server(comm: Intracomm, plan: Plan, seed: int) -> lapse.Server:
    """A server with the initial values."""
    model = plan.model
    lengths = placement.value_lengths(model, plan.args.optimizer)
    server = make_server(
        comm,
        plan.args,
        plan.placement,
        model.num_keys,
        int(lengths[0]) if model.relation_length == model.dim else lengths,
        seed,
    )
    server.initialize(np.arange(model.num_keys), start_values(plan.args))
    return server


def train(server: lapse.Server, plan: Plan, training: Training, best: Best) -> None:
    """Run the remaining epochs."""
    work = full.prepare(server, plan) if full.is_chosen(plan.args) else None
    for epoch in training.epochs(server):
        best.is_present = False
        rate = learning_rate(plan.args, epoch, best.total_worse)
        if work is None:
            loss = server.run(train_epoch, plan, training, epoch, rate)[0]
        else:
            loss = server.run(full.train_epoch, plan, training, epoch, rate, work)[0]
        training.meet()
        figures = {}
        if _is_to_validate(plan, training, epoch):
            with training.evaluating():
                filtered = evaluate_all(server, plan, plan.dataset.valid).filtered
                assert filtered.mrr is not None  # there are valid triples
                best.offer(server, epoch + 1, filtered.mrr)
            figures = filtered.named()
        if best.is_enough:
            log.info("no improvement in %d evaluations: stopping early (--patience)", plan.args.patience)
        training.end_epoch(loss=loss, state=best.state, is_last=best.is_enough, **figures)


def _is_to_validate(plan: Plan, training: Training, epoch: int) -> bool:
    every = plan.args.eval_every
    if not every or not len(plan.dataset.valid) or training.is_interrupted:
        return False
    return training.is_partial or (epoch + 1) % every == 0 or epoch + 1 == plan.args.epochs


def train_epoch(kv: lapse.Worker, plan: Plan, training: Training, epoch: int, rate: float) -> float | None:
    """Train the share of a worker once.

    Returns the mean loss over triples and sides of all workers, without penalties.
    """
    if len(plan.placement.replicated_keys):
        kv.pace_rounds(**plan.placement.pace(epoch)._asdict())
    trainer = make_trainer(kv, plan, epoch, rate)
    share = len(plan.shares[kv.id])
    progress = Progress.of_epoch(kv, plan.args, epoch, share * kv.num_workers, "triples")
    for block in batches(plan, kv.id, epoch):
        if training.should_stop():
            break
        trainer.train(block)
        if trainer.triples:
            progress.show(
                trainer.triples * kv.num_workers, lambda: {"loss": f"{trainer.loss / trainer.triples / 2:.4f}"}
            )
    trainer.finish()
    training.note_computing(trainer.computing_seconds)
    progress.close()
    loss, triples = kv.allreduce(np.array([trainer.loss, trainer.triples])).tolist()
    return loss / triples / 2 if triples else None


def make_trainer(kv: lapse.Worker, plan: Plan, epoch: int, rate: float | None = None) -> Trainer:
    """The kernel for one worker and one epoch, by default with the learning rate of its schedule."""
    args, chosen = plan.args, plan.placement
    seed = streams.start(args.seed, epoch, kv.id, DROPOUT)
    return Trainer(
        kv,
        rate=learning_rate(args, epoch) if rate is None else rate,
        localize=chosen.localize,
        lookahead=chosen.lookahead,
        optimizer=args.optimizer,
        **pace_options(args),
        negatives=args.num_negs_per_pos,
        **kernel_options(plan, seed),
    )


class Best:
    """Keeps the best model so far.

    With an output folder it is saved there as a checkpoint, so that a resumed run has it, too; otherwise each rank
    keeps a copy of the values that it owned at that moment.

    Parameters
    ----------
    training
        The run: its options, and whether it is resumed.
    rank
        The rank of this process.

    Attributes
    ----------
    worse, total_worse
        Number of evaluations without improvement: in a row, and at all.
    is_present
        Whether the values in the server are those of the best model.
    """

    FOLDER = "checkpoint-best"

    def __init__(self, training: Training, rank: int) -> None:
        self._rank = rank
        self._patience = training.args.patience
        output: Path | None = training.args.output
        self._folder = None if output is None else output / self.FOLDER
        state = training.state or {}
        self.worse, self.total_worse = state.get("worse", 0), state.get("total_worse", 0)
        self._epoch = 0
        self._mrr: float | None = None
        self._keys: np.ndarray | None = None
        self._values: np.ndarray | None = None
        self.is_present = False
        if training.resumed_from is None:
            self.forget()
        elif folder := self._saved_folder():
            found = checkpoint.read_manifest(folder)["metadata"]
            self._epoch, self._mrr = found.get("epoch"), found.get("mrr")
            if not isinstance(self._epoch, int) or not isinstance(self._mrr, float):
                raise lapse.CheckpointError(f"{folder} is a checkpoint, but not of a best model: remove it")

    def _saved_folder(self) -> Path | None:
        return self._folder if self._folder is not None and (self._folder / "CURRENT").is_file() else None

    @property
    def state(self) -> dict:
        """What a checkpoint needs."""
        return {"worse": self.worse, "total_worse": self.total_worse}

    @property
    def is_enough(self) -> bool:
        """Whether there was no improvement for as many evaluations as ``--patience`` says."""
        return 0 < self._patience <= self.worse

    def offer(self, server: lapse.Server, epoch: int, mrr: float) -> None:
        """Keep the current model if it is better. Collective."""
        if self._mrr is not None and not mrr > self._mrr:
            self.worse += 1
            self.total_worse += 1
            return
        self._epoch, self._mrr, self.worse, self.is_present = epoch, mrr, 0, True
        if self._folder is not None:
            try:
                server.save(self._folder, {"epoch": epoch, "mrr": mrr})
            except OSError as error:  # on all ranks
                raise job.AppError(f"the best model so far could not be saved in {self._folder}: {error}") from error
            return
        self._keys = server.local_keys()
        self._values = server.run(_pull_once, server.workers, self._keys)[0]

    def restore(self, server: lapse.Server) -> None:
        """Set the values to those of the best model, unless it is the current one. Collective."""
        if self._mrr is None or self.is_present:
            return
        log.info("the best model is that of epoch %d: MRR %.4f on valid", self._epoch, self._mrr)
        if self._folder is not None:
            try:
                server.load(self._folder)
            except (lapse.CheckpointError, OSError) as error:  # on all ranks
                raise job.AppError(job.describe(error)) from error
        else:
            server.run(_set_once, server.workers, self._keys, self._values)

    def forget(self) -> None:
        """Remove the saved model: the run is complete, or another one starts here."""
        if self._rank == 0 and (folder := self._saved_folder()):
            shutil.rmtree(folder, ignore_errors=True)


def _pull_once(kv: lapse.Worker, workers: int, keys: np.ndarray) -> np.ndarray | None:
    """The values of keys, pulled by the first worker of each rank (the others return None)."""
    return kv.pull(keys).wait() if kv.id == kv.rank * workers else None


def _set_once(kv: lapse.Worker, workers: int, keys: np.ndarray, values: np.ndarray) -> None:
    if kv.id == kv.rank * workers:
        kv.set(keys, values).wait()


# --- the graph that every machine has ------------------------------------------------------------------------------


def _log_rule(plan: Plan) -> None:
    dataset = plan.dataset
    rule = evaluate.frequency_rule(dataset.train, dataset.test, plan.known, len(dataset.entities))
    log.info(
        'the rule "most frequent object of this relation" has MRR %.4f on test (s, r, ?), and %.4f on both sides',
        rule["object"].mrr,
        rule["both"].mrr,
    )


def _print_completions(server: lapse.Server, plan: Plan) -> None:
    """Print the answers of the model to a few questions."""
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
