"""What a user chooses of sampling."""

import pytest

import lapse

NEGATIVES = lapse.Uniform(0, 100)


@pytest.mark.parametrize(
    "scheme, parameter, value",
    [
        ("naive", "reuse", 4),
        ("naive", "group_size", 10),
        ("preloc", "postpone", True),
        ("local", "reuse", 2),
    ],
)
def test_a_parameter_without_effect_is_refused(scheme, parameter, value):
    with pytest.raises(ValueError, match=f'{parameter}={value} has no effect with the scheme "{scheme}": leave it out'):
        lapse.Sampling(scheme, NEGATIVES, **{parameter: value})


def test_every_parameter_has_an_effect_on_pools():
    assert lapse.Sampling("pool", NEGATIVES, reuse=4, group_size=10, postpone=True).reuse == 4
