"""Whether counts conform to probabilities, with a stated risk of a false alarm."""

import numpy as np

RISK = 1e-7  # of one call; no test makes more than ten, so that its risk stays below 1e-6


def assert_conform(counts, probabilities):
    """Pearson's statistic of `counts` is no larger than chance allows.

    Where the counts conform it is distributed (nearly: at least 10 are expected for each key that
    can come) as chi-square with d degrees of freedom, which exceeds d + 2 sqrt(d x) + 2 x with a
    probability of at most exp(-x) (Laurent and Massart, *Adaptive Estimation of a Quadratic
    Functional by Model Selection*, Annals of Statistics 28(5), 2000, lemma 1).
    """
    counts, probabilities = np.asarray(counts, float), np.asarray(probabilities, float)
    expected = counts.sum() * probabilities / probabilities.sum()
    possible = expected > 0
    assert not counts[~possible].any(), f"impossible keys {np.flatnonzero(counts * ~possible)}"
    assert expected[possible].min() >= 10, "too few draws for this test"
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom, x = possible.sum() - 1, -np.log(RISK)
    limit = freedom + 2 * np.sqrt(freedom * x) + 2 * x
    assert statistic <= limit, f"{statistic:.1f} where at most {limit:.1f} is likely"
