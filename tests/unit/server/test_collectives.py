"""Workers of one rank that do not make the same collective calls: an error, never a hang."""

import pytest

import lapse


@pytest.fixture
def server():
    with lapse.Server(4, 1, "float64", workers=3) as server:
        yield server


def test_a_worker_that_returns_while_others_are_in_barrier(server):
    with pytest.raises(lapse.LapseError, match="barrier"):
        server.run(lambda kv: kv.barrier() if kv.id else None)


def test_a_worker_that_returns_while_others_are_in_setup(server):
    def work(kv):
        if kv.id != 1:
            with kv.setup():
                pass

    with pytest.raises(lapse.LapseError, match="setup"):
        server.run(work)


@pytest.mark.parametrize(
    "one, other",
    [
        (lambda kv: kv.barrier(), lambda kv: kv.allreduce(1)),
        (lambda kv: kv.allreduce(1), lambda kv: kv.allreduce(1, op="max")),
        (lambda kv: kv.setup().__enter__(), lambda kv: kv.barrier()),
    ],
)
def test_different_calls_name_both(server, one, other):
    with pytest.raises(lapse.LapseError) as caught:
        server.run(lambda kv: one(kv) if kv.id == 2 else other(kv))
    assert "worker" in str(caught.value)


def test_an_exception_inside_setup_reaches_those_who_wait_at_its_end(server):
    def work(kv):
        with kv.setup():
            if kv.id == 1:
                raise KeyError("inside setup")

    with pytest.raises(KeyError, match="inside setup"):
        server.run(work)


def test_a_failed_server_repeats_its_error_until_it_is_closed(server):
    def work(kv):
        if kv.id == 1:
            raise ZeroDivisionError("first")
        kv.barrier()

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="first"):
            server.run(work)
    for call in (server.stats, server.local_keys, lambda: server.owner(0)):
        with pytest.raises(ZeroDivisionError, match="first"):
            call()
    server.close()
    with pytest.raises(lapse.ClosedError):
        server.run(work)


def test_an_exception_of_a_dropped_operations_worker_does_not_hang(server):
    def work(kv):
        kv.pull(range(4))
        kv.localize(range(4))
        raise ValueError(f"of worker {kv.id}")

    with pytest.raises(ValueError, match="of worker"):
        server.run(work)


def test_allreduce_in_the_main_thread_of_a_rank_alone():
    with lapse.Server(4, 1) as server, server.worker() as kv:
        assert kv.allreduce(5) == 5
        kv.barrier()
        with kv.setup():
            kv.set(0, [2.0])
        assert kv.pull(0).wait() == [2.0]
