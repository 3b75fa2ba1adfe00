"""Alternating solvers: an epoch solves all rows while columns are fixed, then all columns while rows are fixed.

Least squares, for ratings (Zhou et al. 2008) and for counts of implicit feedback (Hu, Koren, Volinsky 2008), takes the
solution of each row's normal equations; Gibbs sampling (`posterior`) draws from the distribution around it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

import lapse
from lapse.apps._shared import streams
from lapse.apps._shared.files import pull_rows
from lapse.apps._shared.metrics import local_share
from lapse.apps._shared.options import pace_options
from lapse.apps._shared.progress import Progress
from lapse.apps._shared.training import Training
from lapse.apps.mf import draws, held_out, posterior, ranking, scores
from lapse.apps.mf._solver import Equations, Solver
from lapse.apps.mf.evaluation import evaluate
from lapse.apps.mf.plan import Plan, part_of
from lapse.apps.mf.posterior import Moments, Prior
from lapse.apps.mf.schedule import EVERYBODY
from lapse.apps.mf.side_information import INFORMED, SideInformation
from lapse.apps.mf.sides import Side

#: Purposes of random streams (see `streams`), by the side: its prior, its values; and the noise.
PRIOR, VALUES, NOISE = {"row": 10, "column": 11}, {"row": 12, "column": 13}, 14
EFFECTS = {"row": 15, "column": 16}
#: Ratings between two checks of the clock and of signals.
RATINGS_AT_ONCE = 1 << 17
#: Values that are pulled at once for sums over them.
SUMMED_AT_ONCE = 16384


class Alternation:
    """A run of an alternating solver.

    Parameters
    ----------
    server, plan, training
        Of the run.

    Attributes
    ----------
    state
        What a checkpoint needs besides the values of the server.
    """

    def __init__(self, server: lapse.Server, plan: Plan, training: Training) -> None:
        self._server, self._plan, self._training = server, plan, training
        self.state = training.state or {"noise": posterior.FIRST_PRECISION, "samples": 0, "kept": 0, "priors": {}}
        self._squares: float | None = None  # of the errors of all training ratings, if the sampler knows it
        if plan.placement.moves:
            server.run(localize_own, plan)

    def train(self, epoch: int) -> dict:
        """Train an epoch; returns figures of all workers. Collective."""
        plan, training = self._plan, self._training
        counted, squares, priors = self._server.run(train_epoch, self._server, plan, training, epoch, self.state)[0]
        self._squares = None
        if plan.args.solver == "gibbs" and counted == plan.matrix.num_training:
            self._note_draw(epoch, squares, priors)
        return {"ratings": counted}

    def _note_draw(self, epoch: int, squares: float, priors: dict[str, Prior]) -> None:
        """After a complete epoch of the sampler: draw the noise, and let the values count for the predictions."""
        args, samples, kept = self._plan.args, self.state["samples"], self.state.get("kept", 0)
        self._squares = squares
        rng = streams.generator(args.seed, epoch, EVERYBODY, NOISE)
        if epoch >= args.burn_in:
            self._server.run(held_out.add_sample, self._plan)
            if draws.is_kept(self._plan, samples):
                self._server.run(draws.keep, self._plan, kept)
                kept += 1
            samples += 1
        self.state = {
            "noise": posterior.draw_noise(squares, self._plan.matrix.num_training, rng),
            "samples": samples,
            "kept": kept,
            "priors": {name: prior.state for name, prior in priors.items()},
        }

    def evaluate(self, is_due: bool) -> dict:
        """The figures of quality of the present values, and of the mean over draws. Collective.

        Without `is_due` those that take longer than an epoch are left out.
        """
        plan, server = self._plan, self._server
        if plan.args.implicit:
            return evaluate_implicit(server, plan, is_due)
        knows_loss = plan.args.solver == "gibbs" and self._squares is not None
        figures = evaluate(server, plan, on_training=is_due or not knows_loss, on_held_out=is_due or knows_loss)
        if self._squares is not None and not is_due:
            figures["loss"] = self._squares / plan.matrix.num_training  # there is no penalty
        if plan.args.solver == "gibbs":
            if self.state["samples"] and "rmse" in figures and plan.matrix.num_held_out:
                figures["sample_rmse"] = figures["rmse"]
                figures |= server.run(held_out.evaluate, plan, self.state["samples"])[0]
            figures["noise"] = 1 / math.sqrt(self.state["noise"])
        return figures


def localize_own(kv: lapse.Worker, plan: Plan) -> None:
    """Localize the rows and columns of a worker; they stay on its rank."""
    assert plan.sides is not None
    for side in plan.sides:
        kv.localize(side.keys_of(kv.id)).wait()


def train_epoch(
    kv: lapse.Worker, server: lapse.Server, plan: Plan, training: Training, epoch: int, state: dict
) -> tuple[int, float, dict[str, Prior]]:
    """Solve the rows and then the columns of a worker; `state` is that of the `Alternation`.

    Returns
    -------
    ratings
        Of all workers: how many there are, or 0 if the epoch was left early.
    squares
        Of the sampler: the sum of squared errors of all ratings at the end.
    priors
        Of the sampler: what was drawn, by the side.
    """
    assert plan.sides is not None
    total = plan.matrix.num_training
    progress = Progress.of_epoch(kv, plan.args, epoch, 2 * total, "ratings")
    done, counts, priors = 0, np.zeros(2), {}
    for side, other in (plan.sides, plan.sides[::-1]):
        lines = side.lines[kv.id - kv.rank * plan.args.workers]
        known = find_known(kv, plan, side, other, epoch, state)
        solver = make_solver(kv, plan, side, other, epoch, known)
        if known.prior is not None:
            priors[side.name] = known.prior
        bounds = lines.cut(RATINGS_AT_ONCE).tolist()
        stops = False
        for first, end in itertools.pairwise(bounds):
            if stops := training.should_stop():
                break
            solver.solve(first, end)
            progress.show(
                done + solver.solved / max(len(lines.values), 1) * total,
                lambda: {"local": f"{100 * local_share(server.stats()):.0f}%"},
            )
        solver.finish()
        training.note_computing(solver.computing_seconds)
        # the barrier between the sides, at which all agree whether to go on
        if kv.allreduce(int(stops), op="max"):
            break
        done += total
        counts = np.array([solver.solved, solver.squares])
    progress.close()
    ratings, squares = kv.allreduce(counts * (done == 2 * total)).tolist()
    return int(ratings), squares, priors


class Known(NamedTuple):
    """What is known of the values of a side without their ratings.

    Attributes
    ----------
    equations
        The same for all of them.
    prior
        Of the sampler.
    row_means
        Of the sampler with side information: see `Solver`.
    """

    equations: Equations
    prior: Prior | None = None
    row_means: np.ndarray | None = None


def make_solver(kv: lapse.Worker, plan: Plan, side: Side, other: Side, epoch: int, known: Known) -> Solver:
    """The kernel for a worker's lines of a side."""
    lines = side.lines[kv.id - kv.rank * plan.args.workers]
    is_drawn = plan.args.solver == "gibbs"
    return Solver(
        kv,
        known.equations,
        lines.starts,
        lines.others,
        lines.values,
        first_key=int(side.keys_of(kv.id)[0]) if len(lines) else 0,
        first_other_key=other.first_key,
        num_others=len(other),
        batch=plan.args.batch,
        row_means=known.row_means,
        seed=streams.start(plan.args.seed, epoch, EVERYBODY, VALUES[side.name]) if is_drawn else None,
        **pace_options(plan.args),
    )


def find_known(kv: lapse.Worker, plan: Plan, side: Side, other: Side, epoch: int, state: dict) -> Known:
    """What is known of the values of a side without their ratings. Collective over all workers."""
    args, model = plan.args, plan.model
    if args.solver == "gibbs":
        return draw_known(kv, plan, side, other, epoch, state)
    if args.implicit:  # every cell without a rating has confidence 1 in 0
        products = moments_of(kv, plan, other).products
        prior = products + args.regularization * np.eye(model.rank)
        return Known(Equations(rank=model.rank, biases=False, implicit=True, scale=args.alpha, prior=prior))
    return Known(
        Equations(
            rank=model.rank,
            biases=model.biases,
            mean=plan.mean,
            regularization=args.regularization,
            bias_regularization=args.bias_regularization,
        )
    )


def draw_known(kv: lapse.Worker, plan: Plan, side: Side, other: Side, epoch: int, state: dict) -> Known:
    """Draw what values of a side come from. Collective over all workers."""
    model, rng = plan.model, streams.generator(plan.args.seed, epoch, EVERYBODY, PRIOR[side.name])
    if side.name in INFORMED[plan.args.side_information]:
        last = Prior.of(state.get("priors", {}).get(side.name), model.length)
        values = np.empty((len(side.keys_of(kv.id)), model.length), np.float32)
        kv.pull(side.keys_of(kv.id), out=values).wait()
        row_means, effects = draw_effects(kv, plan, side, other, epoch, values, last)
        prior = posterior.draw_prior(
            moments_of_all(kv, [values - row_means], len(side), model.length),
            rng,
            moments_of_all(kv, [effects], len(other), model.length),
            last.strength,
        )
    else:
        prior, row_means = posterior.draw_prior(moments_of(kv, plan, side), rng), None
    equations = Equations(
        rank=model.rank,
        biases=model.biases,
        mean=plan.mean,
        scale=state["noise"],
        prior=prior.precision,
        shift=prior.precision @ prior.mean,
    )
    return Known(equations, prior, row_means)


def draw_effects(
    kv: lapse.Worker, plan: Plan, side: Side, other: Side, epoch: int, values: np.ndarray, last: Prior
) -> tuple[np.ndarray, np.ndarray]:
    """See `SideInformation.draw`; a worker's lines have these values. Collective over all workers."""
    first, end = side.bounds[kv.id : kv.id + 2].tolist()
    information = SideInformation(
        other.lines[kv.id - kv.rank * plan.args.workers],
        plan.matrix.row_counts if side.name == "row" else plan.matrix.column_counts,
        slice(first, end),
        plan.model.length,
    )
    keys = side.first_key + first, other.first_key + int(other.bounds[kv.id])
    return information.draw(kv, values, last, keys, streams.start(plan.args.seed, epoch, EVERYBODY, EFFECTS[side.name]))


def moments_of(kv: lapse.Worker, plan: Plan, side: Side) -> Moments:
    """Sums over the values of all lines of a side, the same on all workers. Collective over all workers."""
    blocks = pull_rows(kv, side.keys_of(kv.id), SUMMED_AT_ONCE)
    return moments_of_all(kv, blocks, len(side), plan.model.length)


def moments_of_all(kv: lapse.Worker, blocks: Iterable[np.ndarray], count: int, length: int) -> Moments:
    """Sums over `count` values of all workers, of which this one has some. Collective over all workers."""
    sums = np.zeros((length + 1, length))
    for values in blocks:
        some = Moments.of(values)
        sums[0] += some.total
        sums[1:] += some.products
    sums = kv.allreduce(sums)
    return Moments(count, sums[0], sums[1:])


# --- implicit feedback -----------------------------------------------------------------------------


def evaluate_implicit(server: lapse.Server, plan: Plan, is_due: bool = True) -> dict:
    """The loss over all cells, and the figures of `ranking`, which are left out without `is_due`. Collective."""
    return server.run(_evaluate_implicit, plan, is_due)[0]


def _evaluate_implicit(kv: lapse.Worker, plan: Plan, is_due: bool) -> dict:
    assert plan.sides is not None
    kv.barrier()
    row_moments, column_moments = (moments_of(kv, plan, side) for side in plan.sides)
    training = part_of(kv, plan, plan.matrix.training)
    mine = _loss_of_ratings(plan.args.alpha * training.values, scores.predict(kv, plan, training))
    loss = kv.allreduce(mine) + (row_moments.products * column_moments.products).sum()
    loss += plan.args.regularization * sum(np.trace(moments.products) for moments in (row_moments, column_moments))
    return {"loss": float(loss / plan.matrix.num_training), **ranking.evaluate(kv, plan, is_due)}


def _loss_of_ratings(confidence: np.ndarray, predicted: np.ndarray) -> float:
    """What ratings add to the loss of a matrix of zeros that is believed with confidence 1."""
    wanted = (confidence > 0).astype(np.float64)
    return float(((1 + confidence) * (wanted - predicted) ** 2 - predicted**2).sum())
