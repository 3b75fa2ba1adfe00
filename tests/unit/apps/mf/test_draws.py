"""Which draws of the sampler are kept for the model."""

import itertools

import pytest

from lapse.apps.mf import draws, options
from lapse.apps.mf.plan import Plan, kept_draws


def plan_of(*given):
    args = options.parse(["--solver", "gibbs", *map(str, given)])
    return Plan(args, None, None, None)


@pytest.mark.parametrize("samples, kept", [(180, 20), (180, 7), (3, 20), (20, 20), (21, 20), (1, 1)])
def test_they_are_spread_evenly_and_the_last_one_is_among_them(samples, kept):
    plan = plan_of("--epochs", samples + 5, "--burn-in", 5, "--kept-draws", kept, "--output", "model")
    chosen = [sample for sample in range(samples) if draws.is_kept(plan, sample)]
    assert len(chosen) == kept_draws(plan.args) == min(samples, kept) and chosen[-1] == samples - 1
    gaps = {after - before for before, after in itertools.pairwise(chosen)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_without_a_model_none_is_kept():
    assert kept_draws(plan_of().args) == 0
    assert not any(draws.is_kept(plan_of(), sample) for sample in range(180))
