"""Some of the jobs of `faults.py`; `make faults` runs more of them."""

import pytest

import faults

SEEDS = range(30, 60)


@pytest.mark.deadline(240)
def test_injected_faults_end_named_or_go_on_exact():
    outcomes = faults.run_all(SEEDS, jobs=5, between_hosts=faults.can_emulate_hosts() is None)
    print(faults.table(outcomes))
    wrong = [outcome for outcome in outcomes if not outcome.is_good]
    assert not wrong, "\n".join(
        f"seed {outcome.seed}, {outcome.fault.kind}: {outcome.word}\n{outcome.output}" for outcome in wrong
    )
