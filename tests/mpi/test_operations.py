"""What an Operation promises, and arrays in and out, with values on other ranks."""

import array
import gc
import weakref

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm

KEYS = np.arange(24)


@pytest.fixture(params=["float32", "float64"])
def server(request):
    with lapse.Server(24, 3, request.param) as server:
        yield server
        comm.Barrier()


def test_pulls_have_the_shape_of_take(server):
    with server.worker() as kv:
        assert kv.pull(5).wait().shape == (3,)
        assert kv.pull([]).wait().shape == (0, 3)
        assert kv.pull([1, 2]).wait().shape == (2, 3)
        assert kv.pull(np.zeros((2, 0, 4), int)).wait().shape == (2, 0, 4, 3)
        assert kv.pull(KEYS.reshape(2, 3, 4)).wait().shape == (2, 3, 4, 3)
        assert kv.pull(KEYS).wait().dtype == server.dtype


def test_keys_may_be_of_any_integer_kind(server):
    with server.worker() as kv:
        kv.push(KEYS, np.repeat(KEYS, 3).astype(server.dtype)).wait()
        kv.barrier()
        expected = np.repeat([[3], [5], [8]], 3, axis=1) * comm.size
        for kind in ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">i8"]:
            np.testing.assert_array_equal(kv.pull(np.array([3, 5, 8], kind)).wait(), expected)
        strided = np.array([[3, 0], [5, 0], [8, 0]])[:, 0]
        for keys in [
            strided,
            (3, 5, 8),
            [np.int32(3), 5, 8],
            np.array([8, 5, 3])[::-1],
            memoryview(strided),
        ]:
            np.testing.assert_array_equal(kv.pull(keys).wait(), expected)
        np.testing.assert_array_equal(kv.pull(np.int16(5)).wait(), expected[1])
        np.testing.assert_array_equal(kv.pull(np.array(5)).wait(), expected[1])
        kv.barrier()


def test_keys_and_values_may_be_reused_as_soon_as_a_call_returns(server):
    with server.worker() as kv:
        keys, values = KEYS.copy(), np.ones((24, 3), server.dtype)
        for _ in range(20):
            keys[:] = KEYS
            values[:] = 1
            kv.push(keys, values)
            keys[:] = 0
            values[:] = -1000
        kv.wait_all()
        kv.barrier()
        assert (kv.pull(KEYS).wait() == 20 * comm.size).all()
        kv.barrier()


def test_out_is_filled_and_returned(server):
    with server.worker() as kv:
        kv.push(KEYS, np.ones((24, 3), server.dtype)).wait()
        kv.barrier()
        kinds = {np.dtype("f4"): "f", np.dtype("f8"): "d"}
        for out in [
            np.empty((24, 3), server.dtype),
            np.empty(72, server.dtype),
            array.array(kinds[server.dtype], [0.0] * 72),
        ]:
            assert kv.pull(KEYS, out=out).wait() is out
            assert (np.asarray(out) == comm.size).all()
        kv.barrier()


def test_values_may_be_flat_lists_buffers_or_not_contiguous(server):
    with server.worker() as kv:
        kv.push([1, 2], [[1, 2, 3], [4, 5, 6]]).wait()
        kv.push([1, 2], [1, 2, 3, 4, 5, 6]).wait()
        kv.push([1, 2], np.arange(1, 7, dtype=server.dtype)).wait()
        kv.push([1, 2], np.repeat(np.arange(1, 7, dtype=server.dtype), 2)[::2]).wait()
        kinds = {np.dtype("f4"): "f", np.dtype("f8"): "d"}
        kv.push([1, 2], array.array(kinds[server.dtype], range(1, 7))).wait()
        fortran = np.asfortranarray(np.arange(1, 7, dtype=server.dtype).reshape(2, 3))
        kv.push([1, 2], fortran).wait()
        kv.barrier()
        np.testing.assert_array_equal(kv.pull([1, 2]).wait().ravel(), 6 * comm.size * np.arange(1, 7))
        kv.barrier()


def test_waiting_again_gives_the_same_object_at_once(server):
    with server.worker() as kv:
        operation = kv.pull(KEYS)
        values = operation.wait()
        assert operation.wait() is values and operation.wait(timeout=0) is values
        assert operation.test()
        push = kv.push(KEYS, np.ones((24, 3), server.dtype))
        assert push.wait() is None and push.wait() is None
        assert kv.localize(KEYS).wait() is None


def test_wait_of_several_gives_a_list(server):
    with server.worker() as kv:
        first, push, second = kv.pull([1, 2]), kv.push(3, np.zeros(3, server.dtype)), kv.pull(4)
        results = kv.wait(first, push, second)
        assert [np.shape(result) for result in results] == [(2, 3), (), (3,)] and results[1] is None
        assert kv.wait(first) is results[0]
        assert kv.wait() == []


def test_test_makes_progress_until_the_operation_is_done(server):
    with server.worker() as kv:
        operation = kv.push(KEYS, np.ones((24, 3), server.dtype))
        while not operation.test():
            pass
        kv.barrier()
        operation = kv.localize(KEYS)
        while not operation.test():
            pass
        kv.barrier()
        assert (kv.pull(KEYS).wait() == comm.size).all()
        kv.barrier()


def test_dropped_operations_run_to_their_end(server):
    with server.worker() as kv:
        for _ in range(50):
            kv.push(KEYS, np.ones((24, 3), server.dtype))
            kv.pull(KEYS)
            kv.localize(KEYS[kv.id % 24])
            gc.collect(0)
        kv.wait_all()
        kv.barrier()
        assert (kv.pull(KEYS).wait() == 50 * comm.size).all()
        kv.barrier()


def test_the_buffer_of_a_dropped_pull_lives_until_it_is_done_and_not_longer(server):
    with server.worker() as kv:
        out = np.empty((24, 3), server.dtype)
        watched = weakref.ref(out)
        kv.pull(KEYS, out=out)
        del out
        kv.wait_all()
        kv.pull(0)  # a later call lets go of what is done
        kv.wait_all()
        gc.collect()
        assert watched() is None


def test_the_end_of_run_waits_for_what_nobody_waited_for(server):
    def work(kv):
        for key in range(24):
            kv.push(key, np.ones(3, server.dtype))

    server.run(work)
    with server.worker() as kv:
        assert (kv.pull(KEYS).wait() == comm.size).all()


def test_a_timed_out_operation_can_be_waited_for_again():
    """Nothing can be made slow on purpose, so a timeout of 0 is tried often."""
    with lapse.Server(200, 500, "float64", shared_memory=False) as server, server.worker() as kv:
        timeouts = 0
        for _ in range(30):
            operation = kv.pull(range(200))
            try:
                operation.wait(timeout=0)
            except TimeoutError as error:
                timeouts += 1
                assert "pull" in str(error) and "200" in str(error)
            assert operation.wait().shape == (200, 500)
        assert comm.size == 1 or timeouts > 0
        kv.barrier()


def test_operations_and_workers_say_what_they_are(server):
    with server.worker() as kv:
        assert f"Worker {kv.id} of {comm.size}" in repr(kv)
        operation = kv.pull(KEYS)
        assert "Operation" in repr(operation)
        operation.wait()
        assert "done" in repr(operation)
    assert "24 keys" in repr(server) and f"rank {comm.rank} of {comm.size}" in repr(server)


def test_nobody_makes_workers_or_operations(server):
    with pytest.raises(TypeError):
        lapse.Worker()
    with pytest.raises(TypeError):
        lapse.Operation()


def test_empty_calls_are_done_at_once(server):
    with server.worker() as kv:
        for keys in ([], (), np.empty(0, int), np.empty((0, 3), int)):
            count = (*np.shape(keys), 3)
            assert kv.pull(keys).test() and kv.localize(keys).test()
            assert kv.push(keys, np.empty(count, server.dtype)).test()
            assert kv.set(keys, np.empty(count, server.dtype)).test()
            assert kv.push(keys, []).test()
        assert kv.is_local([]).shape == (0,)


def test_a_bad_argument_sends_nothing_and_spoils_nothing(server):
    with server.worker() as kv:
        kv.barrier()
        with pytest.raises(IndexError):
            kv.push([*KEYS, 24], np.ones((25, 3), server.dtype))
        with pytest.raises(ValueError, match="these keys take shape"):
            kv.push(KEYS, np.ones((24, 2), server.dtype))
        with pytest.raises(IndexError):
            kv.localize([0, 1, -1])
        kv.wait_all()
        kv.barrier()
        assert (kv.pull(KEYS).wait() == 0).all()
        kv.barrier()


# Messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda kv, op: np.asarray(op), TypeError, [".wait()"]),
        (lambda kv, op: op[0], TypeError, [".wait()"]),
        (lambda kv, op: list(op), TypeError, [".wait()"]),
        (lambda kv, op: op.shape, AttributeError, ["'shape'", ".wait()"]),
        (lambda kv, op: kv.wait([op, op]), TypeError, ["list", "wait(*operations)", ".wait()"]),
        (lambda kv, op: kv.push([1], op), TypeError, ["Operation", "wait()"]),
        (lambda kv, op: kv.pull([1], out=np.empty((1, 2))), TypeError, ["float64", "np.empty", "float32"]),
        (lambda kv, op: kv.pull([[1, 2], [3]]), ValueError, ["different lengths", "[[1, 2], [3]]"]),
        (lambda kv, op: kv.push([1, 2], [[1, 2], [3]]), ValueError, ["different lengths"]),
        (lambda kv, op: kv.push([1], np.ones((1, 2), "f4"), weights="abc"), TypeError, ["weights", "'abc'"]),
    ],
)
def test_errors_name_what_is_wrong_and_the_way_out(call, error, words):
    with lapse.Server(10, 2) as server, server.worker() as kv:
        operation = kv.pull(range(10))
        with pytest.raises(error) as caught:
            call(kv, operation)
        assert all(word in str(caught.value) for word in words), caught.value
        assert "astype" not in str(caught.value) or "out" not in words
        operation.wait()


def test_errors_show_no_whole_arrays():
    with pytest.raises(TypeError) as caught:
        lapse.Server(np.arange(900.0).reshape(30, 30), 2)
    assert len(str(caught.value)) < 200 and "float64, shape (30, 30)" in str(caught.value)
