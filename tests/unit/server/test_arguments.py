"""Every error of the contract, with its type and what its text must name, on one rank."""

import numpy as np
import pytest

import lapse
from lapse.base import environment


@pytest.fixture
def server():
    with lapse.Server(10, 2, "float32", seed=5) as server:
        yield server


@pytest.fixture
def kv(server):
    with server.worker() as kv:
        yield kv


BAD_KEYS = [
    10,
    -1,
    [0, 10],
    [3, -1, 2],
    np.array([[0, 1], [2, 10]]),
    np.array([10], "u1"),
    np.array(-1),
]
HUGE_KEYS = [2**63, -(2**70), [2**63], [0, 2**64], np.array([2**63], np.uint64)]
NOT_KEYS = [
    True,
    [True, False],
    np.array([True]),
    1.0,
    [0.0],
    np.array([]),
    np.array([1.0], "f4"),
    "1",
    None,
    {1, 2},
    np.array([1, 2], dtype=object),
    np.float64(1),
]


def calls(kv):
    """Every call that takes keys, as functions of the keys alone."""

    def values(keys):
        return np.zeros((*np.shape(keys), 2), "f4")

    return {
        "pull": kv.pull,
        "push": lambda keys: kv.push(keys, values(keys)),
        "set": lambda keys: kv.set(keys, values(keys)),
        "localize": kv.localize,
        "is_local": kv.is_local,
        "pull_if_local": lambda keys: kv.pull_if_local(keys, out=values(keys)),
    }


def server_calls(server):
    return {
        "owner": server.owner,
        "value_length": server.value_length,
        "initialize": lambda keys: server.initialize(keys, lapse.Constant(1)),
    }


@pytest.mark.parametrize("keys", BAD_KEYS, ids=repr)
@pytest.mark.parametrize("name", ["pull", "push", "set", "localize", "is_local", "pull_if_local"])
def test_keys_outside_the_range_are_named_with_the_range(kv, name, keys):
    bad = next(key for key in np.ravel(keys).tolist() if not 0 <= key < 10)
    with pytest.raises(IndexError, match=rf"key {bad} .*0 .. 9"):
        calls(kv)[name](keys)


@pytest.mark.parametrize("keys", HUGE_KEYS, ids=repr)
@pytest.mark.parametrize("name", ["pull", "push", "set", "localize", "is_local"])
def test_keys_beyond_64_bits_are_named_with_the_range(kv, name, keys):
    bad = np.ravel(np.array(keys, dtype=object))[-1]
    with pytest.raises(IndexError, match=rf"key {bad} .*0 .. 9"):
        calls(kv)[name](keys)


@pytest.mark.parametrize("keys", NOT_KEYS, ids=repr)
@pytest.mark.parametrize("name", ["pull", "push", "set", "localize", "is_local"])
def test_keys_that_are_not_integers_are_a_type_error(kv, name, keys):
    with pytest.raises(TypeError, match="keys must be integers, not"):
        calls(kv)[name](keys)


@pytest.mark.parametrize("keys", BAD_KEYS, ids=repr)
@pytest.mark.parametrize("name", ["owner", "value_length", "initialize"])
def test_the_servers_own_calls_check_the_range(server, name, keys):
    with pytest.raises(IndexError, match=r"0 .. 9"):
        server_calls(server)[name](keys)


@pytest.mark.parametrize("keys", [1.5, [0.5, 1.0], [True], np.array([1.0])], ids=repr)
@pytest.mark.parametrize("name", ["owner", "value_length", "initialize"])
def test_the_servers_own_calls_take_integers_only(server, name, keys):
    with pytest.raises(TypeError, match="integers"):
        server_calls(server)[name](keys)


def test_an_empty_list_needs_no_dtype(server, kv):
    assert kv.pull([]).wait().shape == (0, 2)
    assert len(server.owner([])) == 0 and len(server.value_length([])) == 0


@pytest.mark.parametrize(
    "values",
    [
        np.ones(2),
        np.ones(2, "i4"),
        np.ones(2, "f2"),
        np.ones(2, ">f4"),
        np.ones(2, bool),
        np.ones(2, complex),
        np.float64(1),
    ],
    ids=lambda v: str(v.dtype),
)
@pytest.mark.parametrize("name", ["push", "set"])
def test_values_of_another_dtype_name_both(kv, name, values):
    with pytest.raises(TypeError) as caught:
        getattr(kv, name)(0, values)
    assert str(np.asarray(values).dtype) in str(caught.value) and "float32" in str(caught.value)


@pytest.mark.parametrize("values", ["ab", b"abcdefgh", None, {1.0}, object, [1j, 1], ["a", "b"], ["1", "2"]], ids=repr)
@pytest.mark.parametrize("name", ["push", "set"])
def test_values_that_are_no_numbers_are_refused(kv, name, values):
    with pytest.raises((TypeError, ValueError), match="updates|values"):
        getattr(kv, name)(0, values)


@pytest.mark.parametrize(
    "values",
    [
        np.ones(3, "f4"),
        np.ones((2, 1), "f4"),
        np.ones((1, 2), "f4"),
        [1.0],
        1.0,
        [[1.0, 2.0]],
        np.empty(0, "f4"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["push", "set"])
def test_a_wrong_number_of_values_names_both_counts(kv, name, values):
    with pytest.raises(ValueError, match="elements") as caught:
        getattr(kv, name)(0, values)
    assert f"{np.size(values)} elements" in str(caught.value) and "2 elements" in str(caught.value)


def test_values_of_a_transposed_shape_are_refused(kv):
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        kv.push([1, 2, 3], np.ones((2, 3), "f4"))


def test_repeated_keys_of_a_set_are_checked_as_others(kv):
    with pytest.raises(IndexError, match="key 10"):
        kv.set([10, 10], np.ones((2, 2), "f4"))
    with pytest.raises(ValueError, match="3 elements"):
        kv.set([1, 1], np.ones(3, "f4"))
    with pytest.raises(TypeError, match="float64"):
        kv.set([1, 1], np.ones((2, 2)))


@pytest.mark.parametrize("call", ["pull", "pull_if_local"])
def test_an_out_that_cannot_be_written_is_refused(kv, call):
    call = getattr(kv, call)
    read_only = np.ones(2, "f4")
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        call(0, out=read_only)
    with pytest.raises(ValueError, match="contiguous"):
        call(0, out=np.ones(4, "f4")[::2])
    with pytest.raises(ValueError, match="contiguous"):
        call([1, 2], out=np.ones((2, 2), "f4").T)
    with pytest.raises(ValueError, match=r"\(3 elements\).*\(2 elements\)"):
        call(0, out=np.ones(3, "f4"))
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        call(0, out=np.ones((1, 2), "f4"))
    with pytest.raises(TypeError, match="float64.*float32"):
        call(0, out=np.ones(2))
    with pytest.raises(TypeError, match="list"):
        call(0, out=[0.0, 0.0])


def test_a_refused_call_changes_nothing(kv):
    kv.set(0, [3.0, 4.0]).wait()
    for keys, values in [([0, 10], np.ones((2, 2), "f4")), (0, np.ones(3, "f4")), (0, np.ones(2))]:
        with pytest.raises((IndexError, ValueError, TypeError)):
            kv.push(keys, values)
    assert kv.pull(0).wait().tolist() == [3.0, 4.0]


BAD_SERVERS = [
    ({"num_keys": 0}, ValueError, "num_keys is 0"),
    ({"num_keys": -3}, ValueError, "num_keys is -3"),
    ({"num_keys": 2**32}, ValueError, "num_keys is 4294967296"),
    ({"num_keys": 4.0}, TypeError, "num_keys.*4.0"),
    ({"num_keys": True}, TypeError, "num_keys.*True"),
    ({"num_keys": "4"}, TypeError, "num_keys"),
    ({"value_lengths": 0}, ValueError, "value_lengths is 0"),
    ({"value_lengths": -1}, ValueError, "value_lengths is -1"),
    ({"value_lengths": 1.5}, TypeError, "value_lengths.*1.5"),
    ({"value_lengths": None}, TypeError, "value_lengths.*None"),
    ({"value_lengths": [1, 2]}, ValueError, r"value_lengths.*\(2,\).*4"),
    ({"value_lengths": [[1, 1], [1, 1]]}, ValueError, r"value_lengths.*\(2, 2\)"),
    ({"value_lengths": [1, 1, 0, 1]}, ValueError, "value_lengths has 0 at key 2"),
    ({"value_lengths": [1, 1, 1, -5]}, ValueError, "value_lengths has -5 at key 3"),
    ({"value_lengths": [1.0] * 4}, TypeError, "value_lengths.*float64"),
    ({"value_lengths": [True] * 4}, TypeError, "value_lengths.*bool"),
    ({"value_lengths": []}, (ValueError, TypeError), "value_lengths"),
    ({"dtype": "int32"}, ValueError, "dtype is 'int32'.*float32.*float64"),
    ({"dtype": "no such type"}, ValueError, "dtype is 'no such type'"),
    ({"dtype": ">f4"}, ValueError, "dtype is '>f4'"),
    ({"workers": 0}, ValueError, "workers is 0"),
    ({"workers": 1.0}, TypeError, "workers.*1.0"),
    ({"max_in_flight": 0}, ValueError, "max_in_flight is 0"),
    ({"max_in_flight": 1e6}, TypeError, "max_in_flight"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"seed": 2**64}, ValueError, "seed is"),
    ({"seed": None}, TypeError, "seed.*None"),
    ({"shared_memory": 1}, TypeError, "shared_memory.*1"),
    ({"comm": "world"}, TypeError, "comm.*str"),
]


@pytest.mark.parametrize("change, error, text", BAD_SERVERS, ids=lambda x: repr(x) if isinstance(x, dict) else "")
def test_a_bad_constructor_argument_is_named_and_leaves_nothing_behind(change, error, text):
    with pytest.raises(error, match=text):
        lapse.Server(**{"num_keys": 4, "value_lengths": 1, **change})
    with lapse.Server(4, 1) as server, server.worker() as kv:
        assert kv.pull([0, 3]).wait().shape == (2, 1)


def test_values_that_no_memory_can_hold_are_a_memory_error():
    with pytest.raises(MemoryError):
        lapse.Server(10**8, 2**29)
    lapse.Server(4, 1).close()


def test_every_seed_that_is_accepted_can_be_used():
    for seed in [0, 1, 2**31, 2**32 + 5, 2**61 - 1, 2**61]:
        try:
            server = lapse.Server(3, 2, seed=seed)
        except ValueError:
            assert seed >= 2**61 - 1
            continue
        with server:
            server.initialize(range(3), lapse.Normal())
            server.initialize(range(3), lambda keys, rng: rng.random(2))
            server.run(lambda kv: kv.rng.random())


@pytest.mark.parametrize("value", ["2", "yes", "-1"])
def test_a_bad_environment_switch_is_an_error(monkeypatch, value):
    monkeypatch.setenv("LAPSE_SHARED_MEMORY", value)
    with pytest.raises(ValueError, match=f"LAPSE_SHARED_MEMORY is '{value}'"):
        lapse.Server(4, 1)


@pytest.mark.parametrize("value", ["0", "two", "-1", "1.5"])
def test_a_bad_size_of_sharing_groups_is_an_error(monkeypatch, value):
    monkeypatch.setenv("LAPSE_SHARED_MEMORY_RANKS", value)
    with pytest.raises(ValueError, match=f"LAPSE_SHARED_MEMORY_RANKS is '{value}'"):
        lapse.Server(4, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float32, float, np.dtype("f8")])
def test_numpy_names_of_the_two_dtypes_are_known(dtype):
    with lapse.Server(2, 1, dtype) as server:
        assert server.dtype == np.dtype(dtype)


def test_initializers_check_what_they_are_given(server):
    with pytest.raises(ValueError, match="std is -1"):
        lapse.Normal(0, -1)
    with pytest.raises(ValueError, match="low is 2"):
        lapse.UniformValues(2, 1)
    with pytest.raises(TypeError, match="init must be"):
        server.initialize([0], 3.0)


def test_an_initial_value_of_a_wrong_length_names_key_and_counts(server):
    with pytest.raises(ValueError, match="3 elements for key 4.* 2"):
        server.initialize([4], lambda keys, rng: np.zeros(3))


def test_allreduce_names_an_unknown_operation(kv):
    with pytest.raises(ValueError, match="'median'.*'sum'"):
        kv.allreduce(1, op="median")


# After the end ------------------------------------------------------------------------------------


def test_every_call_of_a_closed_server_is_a_closed_error():
    server = lapse.Server(4, 1)
    server.close()
    server.close()
    for call in [
        lambda: server.run(print),
        lambda: server.worker().__enter__(),
        lambda: server.owner(0),
        lambda: server.initialize([0], lapse.Constant(1)),
        server.local_keys,
        server.stats,
        server.bytes_sent_to,
        server.reset_stats,
        server.seconds_waited,
        server.waiting_times,
        lambda: server.save("none"),
        lambda: server.load("none"),
        server.__enter__,
    ]:
        with pytest.raises(lapse.ClosedError, match="closed"):
            call()
    assert "closed" in repr(server)


def every_call_of(kv):
    return [
        lambda: kv.pull(0),
        lambda: kv.push(0, [1.0, 1.0]),
        lambda: kv.set(0, [1.0, 1.0]),
        lambda: kv.localize(0),
        lambda: kv.pull_if_local(0, out=np.zeros(2, "f4")),
        lambda: kv.is_local(0),
        kv.wait_all,
        kv.barrier,
        lambda: kv.allreduce(1),
        lambda: kv.setup().__enter__(),
    ]


def test_a_worker_after_its_run_is_closed(server):
    kv, operation = server.run(lambda kv: (kv, kv.pull(0)))[0]
    for call in every_call_of(kv):
        with pytest.raises(lapse.ClosedError, match="after its run"):
            call()
    assert operation.wait().tolist() == [0.0, 0.0]  # what is done stays readable


def test_a_worker_after_its_with_block_is_closed(server):
    with server.worker() as kv:
        pass
    for call in every_call_of(kv):
        with pytest.raises(lapse.ClosedError):
            call()


def test_a_worker_whose_server_was_closed_is_closed():
    server = lapse.Server(4, 2)
    entered = server.worker()
    kv = entered.__enter__()
    server.close()
    for call in every_call_of(kv):
        with pytest.raises(lapse.ClosedError):
            call()


def test_worker_is_for_one_worker_a_rank():
    with lapse.Server(4, 1, workers=2) as server:
        with pytest.raises(ValueError, match="workers=1.* 2"), server.worker():
            pass
        assert server.run(lambda kv: kv.id) == [0, 1]


def test_two_runs_at_once_are_refused(server):
    with server.worker():
        with pytest.raises(RuntimeError, match="run"):
            server.run(print)
        with pytest.raises(RuntimeError, match="worker"), server.worker():
            pass
    assert server.run(lambda kv: kv.id) == [0]


def test_our_errors_are_runtime_errors():
    for error in (lapse.RemoteError, lapse.CommError, lapse.ClosedError):
        assert issubclass(error, lapse.LapseError)
    assert issubclass(lapse.LapseError, RuntimeError)


@pytest.mark.parametrize("value", ["0", "0.5", "-3", "fast", "nan", "inf", "100000"])
def test_a_dilation_that_is_none(monkeypatch, value):
    monkeypatch.setenv("LAPSE_DILATION", value)
    with pytest.raises(ValueError, match=f"LAPSE_DILATION is '{value}'.*from 1 to 10,000"):
        lapse.Server(3, 1)


def test_dilated_rounds_are_rarer(monkeypatch):
    monkeypatch.setenv("LAPSE_DILATION", "50")
    assert environment.dilation() == 50
    with lapse.Server(3, 1) as server, server.worker() as kv:
        kv.push([1], [[2.0]])
        assert kv.pull([1]).wait() == 2
    monkeypatch.setenv("LAPSE_DILATION", "")
    assert environment.dilation() == 1
