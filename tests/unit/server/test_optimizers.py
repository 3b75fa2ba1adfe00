"""Optimizers that a server applies: the formulas in NumPy, torch's own where it is installed, and odd arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lapse
from lapse import optim
from lapse.bench import _kernel

ROWS, LENGTH = 7, 13


class Reference:
    """The formulas, element by element in float64; a row to which no gradient comes does not change."""

    def __init__(self, optimizer, values):
        self.optimizer, self.values = optimizer, values.astype(np.float64)
        self.squares = np.full_like(self.values, getattr(optimizer, "initial_accumulator_value", 0))
        self.means = self.squares[:, :1].copy()
        self.moments = np.zeros((2, *values.shape))
        self.steps = np.zeros(len(values))

    def step(self, keys, gradients, lr, number=0):
        distinct, positions = np.unique(keys, return_inverse=True)
        sums = np.zeros((len(distinct), self.values.shape[1]))
        np.add.at(sums, positions, gradients)
        for key, g in zip(distinct, sums + self.optimizer.weight_decay * self.values[distinct]):
            self.values[key] -= getattr(self, type(self.optimizer).__name__)(key, g, lr, number)

    def SGD(self, key, g, lr, number):
        return lr * g

    def Adagrad(self, key, g, lr, number):
        self.squares[key] += g * g
        return lr * g / (np.sqrt(self.squares[key]) + self.optimizer.eps)

    def RowWiseAdagrad(self, key, g, lr, number):
        self.means[key] += np.mean(g * g)
        return lr * g / (np.sqrt(self.means[key]) + self.optimizer.eps)

    def Adam(self, key, g, lr, number):
        beta1, beta2 = self.optimizer.betas
        self.steps[key] = steps = max(self.steps[key] + 1, number)
        self.moments[0, key] = beta1 * self.moments[0, key] + (1 - beta1) * g
        self.moments[1, key] = beta2 * self.moments[1, key] + (1 - beta2) * g * g
        first = self.moments[0, key] / (1 - beta1**steps)
        second = self.moments[1, key] / (1 - beta2**steps)
        # torch.optim.SparseAdam adds eps before the correction
        return lr * first / (np.sqrt(second) + self.optimizer.eps / np.sqrt(1 - beta2**steps))


OPTIMIZERS = [
    optim.SGD(lr=0.1),
    optim.SGD(lr=0.1, weight_decay=0.01),
    optim.Adagrad(lr=0.1),
    optim.Adagrad(lr=0.1, weight_decay=0.01, initial_accumulator_value=0.5, eps=1e-3),
    optim.RowWiseAdagrad(lr=0.1),
    optim.RowWiseAdagrad(lr=0.1, weight_decay=0.01, initial_accumulator_value=0.5, eps=1e-3),
    optim.Adam(lr=0.1),
    optim.Adam(lr=0.1, weight_decay=0.01, betas=(0.8, 0.95), eps=1e-4),
]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_steps_follow_the_formulas(optimizer, dtype, tolerance):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(ROWS, LENGTH)).astype(dtype)
    reference = Reference(optimizer, values)
    with lapse.Server(ROWS, LENGTH, dtype, optimizer=optimizer) as server, server.worker() as kv:
        kv.set(range(ROWS), values).wait()
        for step in range(100):
            keys = rng.integers(0, ROWS - 1, size=rng.integers(1, 12))  # the last one gets none; others are repeated
            gradients = rng.normal(size=(len(keys), LENGTH)).astype(dtype)
            lr = None if step % 3 else 0.01 * (step + 1)
            number = None if step % 5 else 1 + step * 1000  # far beyond what a value counts, and what is tabulated
            kv.apply_gradients(keys, gradients, lr, number).wait()
            reference.step(keys, gradients.astype(np.float64), optimizer.lr if lr is None else lr, number or 0)
        result = kv.pull(range(ROWS)).wait()
    np.testing.assert_allclose(result, reference.values, rtol=tolerance, atol=tolerance)
    assert (result[-1] == values[-1]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [o for o in OPTIMIZERS if type(o) is not optim.RowWiseAdagrad], ids=str)
def test_steps_are_those_of_torch(optimizer, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    values = rng.normal(size=(ROWS, LENGTH)).astype(dtype)
    parameter = torch.nn.Parameter(torch.from_numpy(values.copy()))
    options = {name: value for name, value in vars(optimizer).items() if name != "weight_decay"}
    if type(optimizer) is optim.Adam and not optimizer.weight_decay:
        theirs, is_sparse = torch.optim.SparseAdam([parameter], **options), True
    elif type(optimizer) is optim.Adam:
        pytest.skip("torch's SparseAdam has no weight decay, and its Adam adds eps elsewhere")
    else:
        theirs = getattr(torch.optim, type(optimizer).__name__)([parameter], **vars(optimizer))
        is_sparse = not optimizer.weight_decay
    with lapse.Server(ROWS, LENGTH, dtype, optimizer=optimizer) as server, server.worker() as kv:
        kv.set(range(ROWS), values).wait()
        for step in range(100):
            keys = rng.integers(0, ROWS, size=5)  # row 0 is not among the first ones
            keys = keys[keys > 0] if step < 20 else keys
            keys = keys if is_sparse else np.concatenate([np.arange(ROWS), keys])
            gradients = torch.from_numpy(rng.normal(size=(len(keys), LENGTH)).astype(dtype))
            kv.apply_gradients(keys, gradients, step=step + 1).wait()
            indices = torch.from_numpy(keys[None])
            parameter.grad = torch.sparse_coo_tensor(
                indices, gradients, parameter.shape, check_invariants=True
            ).coalesce()
            parameter.grad = parameter.grad if is_sparse else parameter.grad.to_dense()
            theirs.step()
        result = kv.pull(range(ROWS)).wait()
    np.testing.assert_allclose(result, parameter.detach().numpy(), rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(0, 4), min_size=0, max_size=40), st.sampled_from([3, [1, 4, 2, 3, 7]]), st.data())
def test_gradients_of_repeated_keys_are_summed(keys, lengths, data):
    lengths_of = [lengths] * 5 if isinstance(lengths, int) else lengths
    gradients = [
        np.array(data.draw(st.lists(st.integers(-9, 9), min_size=lengths_of[key], max_size=lengths_of[key])))
        for key in keys
    ]
    expected = {key: np.zeros(lengths_of[key]) for key in keys}
    for key, gradient in zip(keys, gradients):
        expected[key] -= gradient
    with lapse.Server(5, lengths, "float64", optimizer=optim.SGD(lr=1.0)) as server, server.worker() as kv:
        flat = np.concatenate([np.empty(0), *gradients])
        kv.apply_gradients(keys, flat).wait()
        for key, value in expected.items():
            assert (kv.pull([key]).wait().ravel() == value).all()
        assert server.stats()["pushed_keys"] == len(expected)


def test_a_large_call_with_repeated_keys():
    rng = np.random.default_rng(5)
    keys = rng.zipf(1.2, 100_000) % 20_000
    gradients = rng.integers(-3, 4, size=(len(keys), 16)).astype(np.float32)
    expected = np.zeros((20_000, 16))
    np.add.at(expected, keys, -gradients)
    with lapse.Server(20_000, 16, optimizer=optim.SGD(lr=1.0)) as server, server.worker() as kv:
        kv.apply_gradients(keys, gradients).wait()
        assert (kv.pull(range(20_000)).wait() == expected).all()


def test_values_are_seen_without_their_states():
    with lapse.Server(3, 4, optimizer=optim.Adam(lr=1.0)) as server, server.worker() as kv:
        kv.apply_gradients([0, 1], np.ones((2, 4), "f4")).wait()
        assert server.value_length(1) == 4 and kv.pull([0, 1, 2]).wait().shape == (3, 4)
        kv.push([0], np.full((1, 4), 2, "f4")).wait()
        np.testing.assert_allclose(kv.pull([0, 1, 2]).wait()[:, 0], [1, -1, 0], atol=1e-6)
        kv.set([0], np.zeros((1, 4), "f4")).wait()
        assert (kv.pull(0).wait() == 0).all()


def test_setting_a_value_keeps_its_state_and_initializing_begins_it_anew():
    optimizer = optim.Adagrad(lr=1.0)
    gradient = np.full((1, 2), 3, "f4")
    with lapse.Server(1, 2, optimizer=optimizer) as server, server.worker() as kv:
        kv.apply_gradients([0], gradient).wait()
        kv.set([0], np.zeros((1, 2), "f4")).wait()
        kv.apply_gradients([0], gradient).wait()
        np.testing.assert_allclose(kv.pull(0).wait(), -np.sqrt(0.5), rtol=1e-6)
        server.initialize([0], lapse.Constant(0))
        kv.apply_gradients([0], gradient).wait()
        np.testing.assert_allclose(kv.pull(0).wait(), -1, rtol=1e-6)


def test_a_gradient_that_is_no_number_spoils_its_own_key_only():
    with lapse.Server(2, 2, optimizer=optim.Adagrad()) as server, server.worker() as kv:
        kv.apply_gradients([0, 1], [[np.nan, 1], [1, 1]]).wait()
        assert np.isnan(kv.pull([0, 1]).wait()).tolist() == [[True, False], [False, False]]


def test_a_rate_of_zero_changes_nothing_but_the_state():
    with lapse.Server(1, 2, optimizer=optim.Adagrad(lr=1.0)) as server, server.worker() as kv:
        kv.apply_gradients([0], np.ones((1, 2), "f4"), lr=0).wait()
        assert (kv.pull(0).wait() == 0).all()
        kv.apply_gradients([0], np.ones((1, 2), "f4")).wait()
        np.testing.assert_allclose(kv.pull(0).wait(), -np.sqrt(0.5), rtol=1e-6)


def test_gradients_of_a_kernel():
    keys = np.array([0, 1, 0, 2, 2, 2])
    with lapse.Server(3, 4, optimizer=optim.SGD(lr=0.5)) as server, server.worker() as kv:
        _kernel.access(kv, _kernel.GRADIENT, keys, 3, np.full((3, 4), 2, np.float32))
        assert kv.pull([0, 1, 2]).wait()[:, 0].tolist() == [-2, -1, -3]
    with lapse.Server(3, 4) as server, server.worker() as kv:
        with pytest.raises(ValueError, match="key 0, which has no optimizer"):
            _kernel.access(kv, _kernel.GRADIENT, keys, 3, np.zeros((3, 4), np.float32))


def test_without_a_step_a_value_counts_its_own():
    gradient = np.ones((1, 2), "f4")
    with lapse.Server(2, 2, optimizer=optim.Adam(lr=1.0)) as server, server.worker() as kv:
        for _ in range(50):
            kv.apply_gradients([0], gradient).wait()
        before = kv.pull(0).wait()
        kv.apply_gradients([0], gradient, step=3).wait()  # it has made more
        kv.apply_gradients([1], gradient).wait()
        np.testing.assert_allclose(kv.pull([0, 1]).wait(), [before - 1, [-1, -1]], rtol=1e-5)


@pytest.mark.parametrize("optimizer", [optim.Adam(lr=0.1)], ids=str)
def test_parts_of_a_step_come_to_what_it_is(optimizer):
    """Workers have different elements of a gradient, so that there are no products of two parts."""
    rng = np.random.default_rng(6)
    with lapse.Server(2, 12, "float64", optimizer=optimizer) as server, server.worker() as kv:
        for step in range(1, 20):
            whole = rng.normal(size=(1, 12))
            kv.apply_gradients([0], whole, step=step).wait()
            for part in range(3):
                kv.apply_gradients([1], np.where(np.arange(12) % 3 == part, whole, 0), step=step).wait()
        np.testing.assert_allclose(*kv.pull([0, 1]).wait(), rtol=1e-12)


def test_bad_calls():
    with lapse.Server(3, 2) as server, server.worker() as kv:
        with pytest.raises(ValueError, match=r"key 1, which has no optimizer: .*optimizer=lapse.optim.Adagrad\(\)"):
            kv.apply_gradients([1], np.zeros((1, 2), "f4"))
    with lapse.Server(3, 2, optimizer=optim.SGD()) as server, server.worker() as kv:
        gradient = np.zeros((1, 2), "f4")
        with pytest.raises(IndexError, match="key 3 is outside the range 0 .. 2"):
            kv.apply_gradients([3], gradient)
        with pytest.raises(TypeError, match="gradients are float64, but the server holds float32"):
            kv.apply_gradients([1], gradient.astype("f8"))
        with pytest.raises(ValueError, match=r"gradients have shape \(1, 2\)"):
            kv.apply_gradients([1, 2], gradient)
        for lr, error in ((-1, ValueError), (np.nan, ValueError), (np.inf, ValueError), ("1", TypeError)):
            with pytest.raises(error, match="lr"):
                kv.apply_gradients([1], gradient, lr=lr)
        for step, error in ((0, ValueError), (2**32, ValueError), (1.5, TypeError)):
            with pytest.raises(error, match="step"):
                kv.apply_gradients([1], gradient, step=step)
        kv.apply_gradients([], np.zeros((0, 2), "f4")).wait()


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: optim.Optimizer(), "use lapse.optim.SGD"),
        (lambda: optim.SGD(lr=-1), "lr is -1"),
        (lambda: optim.SGD(weight_decay=np.nan), "weight_decay is nan"),
        (lambda: optim.Adagrad(eps=np.inf), "eps is inf"),
        (lambda: optim.Adagrad(initial_accumulator_value="a"), "initial_accumulator_value must be a number"),
        (lambda: optim.Adam(betas=0.9), "betas must be two numbers"),
        (lambda: optim.Adam(betas=(0.9, 1)), r"betas are \(0.9, 1.0\), but must be below 1"),
        (lambda: optim.Adam(betas=(-0.1, 0.9)), r"betas\[0\] is -0.1"),
    ],
)
def test_bad_optimizers(make, error):
    with pytest.raises((TypeError, ValueError), match=error):
        make()


def test_bad_arguments_of_the_server():
    with pytest.raises(TypeError, match=r"optimizer is the class SGD: give an instance, as in lapse.optim.SGD\(\)"):
        lapse.Server(3, 2, optimizer=optim.SGD)
    with pytest.raises(TypeError, match="optimizer must be an optimizer of lapse.optim"):
        lapse.Server(3, 2, optimizer="adam")
    with pytest.raises(TypeError, match="value_lengths is None: give a number"):
        lapse.Server(3)
