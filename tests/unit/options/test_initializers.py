"""Where values begin: by seed and key alone, with the moments that the names promise."""

import numpy as np
import pytest

import lapse
from lapse.options.initializers import as_initializer

KEYS = np.arange(4000)


def test_values_depend_on_key_and_seed_only():
    for init in (lapse.Normal(), lapse.UniformValues(-1, 1)):
        whole = init.values(KEYS, 5, seed=3)
        np.testing.assert_array_equal(init.values(KEYS[100:200], 5, seed=3), whole[100:200])
        np.testing.assert_array_equal(init.values(KEYS[::-7], 5, seed=3), whole[::-7])
        assert (init.values(KEYS, 5, seed=4) != whole).mean() > 0.99


def test_a_longer_value_begins_as_a_shorter_one():
    for init in (lapse.Normal(), lapse.UniformValues()):
        np.testing.assert_array_equal(init.values(KEYS, 9, 1)[:, :4], init.values(KEYS, 4, 1))


def test_moments_of_normal_values():
    values = lapse.Normal(3, 2).values(KEYS, 25, seed=0)
    standardized = (values - 3) / 2
    n = standardized.size
    assert abs(standardized.mean()) < 5 / np.sqrt(n)
    assert abs(standardized.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((standardized**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((standardized**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert np.isfinite(values).all()


def test_moments_of_uniform_values():
    values = lapse.UniformValues(-2, 6).values(KEYS, 25, seed=0)
    assert -2 <= values.min() < -1.99 and 5.99 < values.max() < 6
    n = values.size
    assert abs(values.mean() - 2) < 5 * np.sqrt(64 / 12 / n)
    counts, _ = np.histogram(values, bins=64, range=(-2, 6))
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * np.sqrt(2 * 63)


def test_neighbouring_keys_elements_and_seeds_are_not_correlated():
    init = lapse.Normal()
    values = init.values(KEYS, 25, seed=0)
    n = values.size
    for a, b in [
        (values[1:], values[:-1]),
        (values[:, 1:], values[:, :-1]),
        (values, init.values(KEYS, 25, seed=1)),
    ]:
        assert abs((a * b).mean()) < 5 / np.sqrt(n)
    assert len(np.unique(values)) > 0.999 * n


def test_constant_values():
    assert (lapse.Constant(2.5).values(KEYS[:3], 4, 0) == np.full((3, 4), 2.5)).all()
    assert lapse.Normal(7, 0).values(KEYS[:2], 2, 0).tolist() == [[7, 7], [7, 7]]


def test_a_function_gets_one_key_and_a_generator_of_its_own():
    seen = []

    def init(keys, rng):
        seen.append(keys.tolist())
        return rng.random(2)

    first = as_initializer(init).values(np.array([5, 9]), 2, seed=1)
    second = as_initializer(init).values(np.array([9]), 2, seed=1)
    assert seen == [[5], [9], [9]]
    assert first[1].tolist() == second[0].tolist() != first[0].tolist()


def test_a_function_may_return_the_shape_of_a_batch():
    assert as_initializer(lambda keys, rng: np.ones((1, 3))).values(np.array([1]), 3, 0).shape == (
        1,
        3,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initialize_fills_variable_lengths(dtype):
    lengths = np.arange(30) % 4 + 1
    with lapse.Server(30, lengths, dtype, seed=2) as server:
        server.initialize(range(30), lapse.Normal())
        with server.worker() as kv:
            for key in range(30):
                expected = lapse.Normal().values(np.array([key]), int(lengths[key]), 2)[0].astype(dtype)
                np.testing.assert_array_equal(kv.pull(key).wait(), expected)


def test_initialize_replaces_what_was_there_and_does_not_count():
    with lapse.Server(10, 2) as server:
        server.run(lambda kv: kv.push(range(10), np.ones((10, 2), "f4")))
        server.reset_stats()
        server.initialize(range(10), lapse.Constant(4))
        assert server.stats()["pushed_keys"] == 0
        assert (server.run(lambda kv: kv.pull(range(10)).wait())[0] == 4).all()


def test_a_function_of_an_array_of_keys():
    init = lapse.Vectorized(
        lambda keys, random: np.hstack([random.normal(1, 2, 3), keys[:, None], random.uniform(5, 6)])
    )
    whole = init.values(KEYS, 5, 3)
    assert (whole[:, 3] == KEYS).all() and (whole[:, 4] >= 5).all() and (whole[:, 4] < 6).all()
    np.testing.assert_array_equal(init.values(KEYS[::-7], 5, 3), whole[::-7])
    assert abs(whole[:, :3].mean() - 1) < 0.2 and abs(whole[:, :3].std() - 2) < 0.1
    twice = lapse.Vectorized(lambda keys, random: np.hstack([random.normal(), random.normal()])).values(KEYS, 2, 3)
    assert abs((twice[:, 0] * twice[:, 1]).mean()) < 5 / np.sqrt(len(KEYS))


def test_what_a_function_of_an_array_returns_is_checked():
    for fn, error in (
        (lambda keys, random: np.zeros(3), r"returned an array of shape \(3,\) for 3 keys of length 2"),
        (lambda keys, random: np.array([["a"] * 2] * 3), "returned <U1"),
    ):
        with pytest.raises(ValueError, match=error):
            lapse.Vectorized(fn).values(KEYS[:3], 2, 0)


def test_columns_begin_differently():
    init = lapse.Columns((lapse.Normal(), 2), (lapse.Constant(7), None), (lapse.Normal(), 2))
    values = init.values(KEYS, 6, 3)
    assert (values[:, 2:4] == 7).all()
    np.testing.assert_array_equal(values[:, :2], lapse.Normal().values(KEYS, 2, 3))
    assert abs((values[:, 0] * values[:, 4]).mean()) < 5 / np.sqrt(len(KEYS))
    assert init.values(KEYS, 4, 3).shape == (len(KEYS), 4)
    nested = lapse.Columns((init, 5), (lambda keys, rng: keys, 1))
    assert (nested.values(KEYS[:9], 6, 3)[:, 5] == KEYS[:9]).all()


def test_columns_that_do_not_fit():
    with pytest.raises(ValueError, match="have 3 columns, but values have 2"):
        lapse.Columns((lapse.Normal(), 3), (lapse.Normal(), None)).values(KEYS, 2, 0)
    with pytest.raises(ValueError, match="have 3 columns, but values have 4"):
        lapse.Columns((lapse.Normal(), 3)).values(KEYS, 4, 0)
    with pytest.raises(TypeError, match=r"a pair \(init, columns\), not Normal"):
        lapse.Columns(lapse.Normal())
    with pytest.raises(ValueError, match="None for one at most"):
        lapse.Columns((lapse.Normal(), None), (lapse.Normal(), None))
    with pytest.raises(ValueError, match="at least one part"):
        lapse.Columns()


def test_vectors_of_a_file(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "v.txt").write_text(
        "6 3\n" + "".join(f"w{i} {' '.join(map(repr, row))}\n" for i, row in enumerate(vectors.tolist()))
    )
    rows = b"".join(b"w%d " % i + row.tobytes() + b"\n" for i, row in enumerate(vectors))
    (tmp_path / "v.bin").write_bytes(b"6 3\n" + rows)
    for name in ("v.npy", "v.txt", "v.bin"):
        init = lapse.FromFile(tmp_path / name)
        np.testing.assert_array_equal(init.values(np.array([5, 0]), 3, 0), vectors[[5, 0]])
        assert init.words == (None if name == "v.npy" else [f"w{i}" for i in range(6)])
        with pytest.raises(ValueError, match="has 6 vectors, none for number 6: give rest="):
            init.values(np.arange(8), 3, 0)
        with pytest.raises(ValueError, match="have 3 elements, but values have 4"):
            init.values(np.arange(2), 4, 0)
    init = lapse.FromFile(tmp_path / "v.npy", rest=lapse.Constant(2))
    np.testing.assert_array_equal(init.values(np.arange(4, 8), 3, 0), [*vectors[4:], [2] * 3, [2] * 3])
    np.save(tmp_path / "w.npy", vectors[0])
    with pytest.raises(ValueError, match=r"float32, shape \(3,\): vectors are rows"):
        lapse.FromFile(tmp_path / "w.npy")
    with pytest.raises(FileNotFoundError):
        lapse.FromFile(tmp_path / "none.npy")


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: lapse.Normal(float("nan")), "mean is nan"),
        (lambda: lapse.Normal(0, float("inf")), "std is inf"),
        (lambda: lapse.Normal(0, -1), "std is -1"),
        (lambda: lapse.UniformValues(1, -1), "low is 1"),
        (lambda: lapse.UniformValues(0, float("inf")), "high inf"),
    ],
)
def test_distributions_without_finite_numbers_are_refused(make, error):
    with pytest.raises(ValueError, match=error):
        make()
