"""`lapse.torch` on several ranks: rows that come ahead, equal dense layers, and errors of one rank."""

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm

torch = pytest.importorskip("torch", reason="needs PyTorch, which is not installed: pip install 'lapse[torch]'")
import lapse.torch as lt  # noqa: E402

pytestmark = pytest.mark.skipif(comm.size > 4, reason="rank count: more ranks would show nothing else")
torch.set_num_threads(1)
nn = torch.nn
ROWS, LENGTH = 300, 4


def make_tables(optimizer=None):
    optimizer = lapse.optim.SGD(lr=1.0) if optimizer is None else optimizer
    table = lapse.Table(ROWS, LENGTH, optimizer=optimizer)
    return lapse.Tables(users=table, items=lapse.Table(50, 2 * LENGTH, optimizer=optimizer))


@pytest.fixture
def tables():
    return make_tables()


@pytest.fixture
def kv(tables):
    with lapse.Server(tables) as server, server.worker() as kv:
        yield kv


def batches_of(kv, count, seed=0):
    rng = np.random.default_rng((seed, kv.id))
    return [torch.from_numpy(rng.integers(0, ROWS, (5, 3))) for _ in range(count)]


@pytest.mark.parametrize("lookahead", [1, 3, 50])
def test_batches_come_once_and_in_their_order(kv, tables, lookahead):
    given = batches_of(kv, 20)
    prefetcher = lt.Prefetcher(given, kv, tables["users"].keys, lookahead)
    assert len(prefetcher) == 20
    for _ in range(2):
        assert [id(batch) for batch in prefetcher] == list(map(id, given))
    assert list(lt.Prefetcher([], kv, tables["users"].keys)) == []
    assert len(list(lt.Prefetcher(iter(given), kv, lambda batch: [], lookahead))) == 20


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("prefetched", [False, True])
def test_every_gradient_counts_once(kv, tables, prefetched, device):
    """Wherever rows are meanwhile: sums of ones are exact."""
    users, items = tables["users"], tables["items"]
    a, b = lt.Embedding(kv, users, device=device), lt.EmbeddingBag(kv, items, "sum", device=device)
    given = batches_of(kv, 15)
    counts = np.zeros(ROWS + 50)
    keys = lambda batch: [users.keys(batch), items.keys(batch % 50)]  # noqa: E731
    for batch in lt.Prefetcher(given, kv, keys, 2) if prefetched else given:
        (a(batch).sum() + b(batch % 50).sum()).backward()
        np.add.at(counts, batch.numpy(), 1)
        np.add.at(counts, ROWS + (batch % 50).numpy(), 1)
    lt.flush(kv)
    counts = kv.allreduce(counts)
    np.testing.assert_array_equal(a.to_local().weight.detach(), np.repeat(-counts[:ROWS, None], LENGTH, 1))
    np.testing.assert_array_equal(b.to_local().weight.detach(), np.repeat(-counts[ROWS:, None], 2 * LENGTH, 1))
    kv.barrier()


def test_gradients_of_replicated_rows_count_once(tables):
    users, counts = tables["users"], np.zeros(ROWS)
    pace = lapse.Replication(max_pending=50)
    with lapse.Server(tables, replicated_keys=users.keys(range(0, ROWS, 2)), replication=pace) as server:
        with server.worker() as kv:
            module = lt.Embedding(kv, users)
            for batch in lt.Prefetcher(batches_of(kv, 15), kv, users.keys, 2):
                module(batch).sum().backward()
                np.add.at(counts, batch.numpy(), 1)
            lt.flush(kv)
            total = kv.allreduce(counts)
            np.testing.assert_array_equal(module.to_local().weight.detach(), np.repeat(-total[:, None], LENGTH, 1))
            kv.barrier()


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("prefetched", [False, True])
@pytest.mark.parametrize("sync", [False, True])
def test_rows_lack_the_gradients_of_one_step_at_most(kv, tables, sync, prefetched, device):
    """Of this worker: it adds -1 to rows of its own in each step, and looks at what the next step reads."""
    users = tables["users"]
    module = lt.Embedding(kv, users, sync=sync, device=device)
    batch = torch.arange(kv.id, ROWS, kv.num_workers)[:20]
    are_all_here = kv.is_local(users.keys()).all()  # for good: ranks share memory, or there is only one
    given = [batch] * 30
    loader = lt.Prefetcher(given, kv, users.keys, 4, sync=sync) if prefetched else given
    for step, ids in enumerate(loader):
        rows = module(ids)
        if sync or are_all_here:
            assert (rows == -step).all()
        else:
            assert ((rows == -step) | (rows == 1 - step)).all(), (step, rows[:3])
        rows.sum().backward()
    module.eval()
    assert (module(batch) == -30).all()
    kv.barrier()


def test_an_evaluation_between_two_batches_sees_all_gradients(kv, tables):
    users = tables["users"]
    module, ids = lt.Embedding(kv, users), torch.arange(kv.id, ROWS, kv.num_workers)[:20]
    for step, batch in enumerate(lt.Prefetcher([ids] * 10, kv, users.keys, 2)):
        module(batch).sum().backward()
        with torch.no_grad():
            assert (module(batch) == -1 - step).all()
    kv.barrier()


def numbered_rows(kv, users):
    """A module that is not trained, over rows that have their numbers as elements."""
    if kv.id == 0:
        kv.set(users.keys(), np.repeat(np.arange(ROWS, dtype="f4"), LENGTH)).wait()
    kv.barrier()
    return lt.Embedding(kv, users).requires_grad_(False)


def test_rows_that_are_not_among_the_announced_keys_are_pulled(kv, tables):
    users = tables["users"]
    module = numbered_rows(kv, users)
    announced = lambda batch: users.keys(batch[:2])  # noqa: E731
    for batch in lt.Prefetcher(batches_of(kv, 10), kv, announced):
        for ids in (batch, batch[:2], batch[:2].flip(0), batch[1:2], batch[2:]):
            np.testing.assert_array_equal(module(ids)[..., 0], ids)
    kv.barrier()


def test_a_batch_may_be_changed_before_it_is_used(kv, tables):
    """Its keys were looked at long before, in the same memory."""
    users = tables["users"]
    module = numbered_rows(kv, users)
    assert users.first == 0
    for ids in lt.Prefetcher(batches_of(kv, 10), kv, lambda batch: batch):
        ids.add_(1).remainder_(ROWS)
        np.testing.assert_array_equal(module(ids)[..., 0], ids)
    kv.barrier()


def test_a_prefetcher_brings_rows_to_this_rank(kv, tables):
    users, mine = tables["users"], torch.arange(comm.rank, ROWS, comm.size).split(10)
    assert len(list(lt.Prefetcher(mine, kv, users.keys, 2))) == len(mine)
    kv.wait_all()
    assert kv.is_local(users.keys(torch.cat(mine))).all()
    kv.barrier()


# What ends early --------------------------------------------------------------------------------------


def test_an_error_of_the_loader_comes_after_the_batches_before_it(kv, tables):
    def loader():
        yield from batches_of(kv, 6)
        raise OSError("the disk is gone")

    def keys(batch):
        nonlocal asked
        asked += 1
        if asked == 4:
            raise KeyError("no such batch")
        return tables["users"].keys(batch)

    seen, asked = [], 0
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in lt.Prefetcher(loader(), kv, tables["users"].keys):
            seen.append(batch)  # noqa: PERF402  (what came before the error)
    assert len(seen) == 6
    seen.clear()
    with pytest.raises(KeyError, match="no such batch"):
        for batch in lt.Prefetcher(batches_of(kv, 9), kv, keys):
            seen.append(batch)  # noqa: PERF402
    assert len(seen) == 3
    with pytest.raises(IndexError, match="id 300 is outside the range 0 .. 299 of table 'users'"):
        list(lt.Prefetcher([torch.tensor([ROWS])], kv, tables["users"].keys))
    with pytest.raises(IndexError, match="key -5 is outside the range"):
        list(lt.Prefetcher([0], kv, lambda batch: [-5]))
    with pytest.raises(TypeError, match="keys must be integers"):
        list(lt.Prefetcher([0], kv, lambda batch: [0.5]))
    kv.barrier()


def test_a_loop_may_be_left(kv, tables):
    module = lt.Embedding(kv, tables["users"])
    for _ in range(3):
        for batch in lt.Prefetcher(batches_of(kv, 20), kv, tables["users"].keys):
            module(batch).sum().backward()
            break
    kv.wait_all()
    kv.barrier()


def broken_after(batches, count):
    """A loader that raises in between."""
    yield from batches[:count]
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "part, kind, text",
    [
        ("table", FloatingPointError, "table 'users'"),
        ("dense", FloatingPointError, "the gradient of (weight|bias)"),
        ("loader", OSError, "the disk is gone"),
        ("id", IndexError, f"id {ROWS} is outside the range"),
    ],
)
def test_an_error_of_one_rank_ends_the_run_on_all(tables, part, kind, text):
    def train(kv):
        is_last = kv.id == kv.num_workers - 1
        module = lt.Embedding(kv, tables["users"])
        layer = nn.Linear(LENGTH, 1)
        dense = lt.Dense(layer, torch.optim.SGD(layer.parameters(), lr=0.1), kv)
        given = [torch.arange(10)] * 5
        if is_last and part == "id":
            given[3] = torch.tensor([ROWS])
        loader = broken_after(given, 3) if is_last and part == "loader" else given
        for step, ids in enumerate(lt.Prefetcher(loader, kv, lambda ids: ids)):
            dense.zero_grad()
            rows = module(ids)
            loss = dense(rows.detach() if part == "dense" else rows).sum()
            (loss * (float("nan") if is_last and step == 2 and part in ("table", "dense") else 1)).backward()
            dense.step()

    with lapse.Server(tables) as server:
        with pytest.raises(kind if comm.rank == comm.size - 1 else lapse.RemoteError, match=text):
            server.run(train)


# Dense layers -----------------------------------------------------------------------------------------


def make_layers(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def all_equal(kv, module):
    flat = torch.cat([value.detach().reshape(-1) for value in module.state_dict().values()]).numpy()
    return np.array_equal(kv.allreduce(flat, "max"), kv.allreduce(flat, "min"))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_gradients_of_dense_layers_are_averaged(kv, optimizer):
    """As one process would compute it over the batches of all."""
    layers, alone = make_layers(kv.id), make_layers(0)
    dense = lt.Dense(layers, optimizer(layers.parameters(), lr=0.05), kv)
    single = optimizer(alone.parameters(), lr=0.05)
    for step in range(5):
        inputs = torch.from_numpy(np.random.default_rng(step).normal(size=(kv.num_workers, 6, 3)).astype("f4"))
        dense.zero_grad()
        dense(inputs[kv.id]).pow(2).mean().backward()
        dense.step()
        single.zero_grad()
        alone(inputs).pow(2).mean().backward()
        single.step()
    dense.join()
    for ours, theirs in zip(layers.parameters(), alone.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert all_equal(kv, layers)


@pytest.mark.parametrize("every", [None, 1, 3])
def test_workers_may_have_different_numbers_of_batches(kv, every):
    layers = make_layers(kv.id)
    dense = lt.Dense(layers, torch.optim.Adam(layers.parameters(), lr=0.05), kv, every)
    for epoch in range(3):
        for _ in range((kv.id + epoch) % 3 * 4):
            dense.zero_grad()
            dense(torch.randn(6, 3)).pow(2).mean().backward()
            dense.step()
        dense.join()
        assert all_equal(kv, layers)


def test_parameters_without_a_gradient_are_left_alone(kv):
    layers = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(3)])
    dense = lt.Dense(layers, torch.optim.Adam(layers.parameters(), lr=0.05, weight_decay=0.1), kv)
    before = [layer.weight.detach().clone() for layer in layers]
    for _ in range(3):
        dense.zero_grad()
        (layers[0](torch.ones(2)) + (layers[1](torch.ones(2)) if kv.id == 0 else 0)).sum().backward()
        dense.step()
    dense.join()
    changed = [not torch.equal(layer.weight, old) for layer, old in zip(layers, before)]
    assert changed == [True, True, False] and all_equal(kv, layers)


def test_sparse_gradients_of_dense_layers_are_refused(kv):
    layers = nn.Embedding(5, 2, sparse=True)
    dense = lt.Dense(layers, torch.optim.SGD(layers.parameters(), lr=0.1), kv)
    dense(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="the gradient of weight is sparse"):
        dense.step()
    kv.barrier()


def test_buffers_are_averaged_at_the_end(kv):
    layers = nn.BatchNorm1d(3)
    dense = lt.Dense(layers, torch.optim.SGD(layers.parameters(), lr=0.1), kv)
    dense(torch.full((4, 3), float(kv.id))).sum().backward()
    dense.step()
    dense.join()
    torch.testing.assert_close(layers.running_mean, torch.full((3,), 0.1 * np.mean(range(kv.num_workers)).item()))


def test_dense_layers_are_saved_with_the_tables(tmp_path):
    path = comm.bcast(tmp_path) / "model"
    tables = make_tables(lapse.optim.Adam(lr=0.01))

    def step(module, dense):
        dense.zero_grad()
        dense(module(torch.arange(6))).pow(2).sum().backward()
        dense.step()
        lt.flush(dense.kv)

    results = []
    for is_resumed in (False, True):
        with lapse.Server(tables) as server, server.worker() as kv:
            module = lt.Embedding(kv, tables["users"], sync=True)
            layers = nn.Linear(LENGTH, 1)
            dense = lt.Dense(layers, torch.optim.Adam(layers.parameters()), kv)
            if is_resumed:
                metadata = server.load(path)
                assert metadata["epoch"] == 1
                dense.restore(metadata["dense"])
            else:
                if kv.id == 0:
                    kv.set(tables["users"].keys(), np.ones(ROWS * LENGTH, "f4")).wait()
                kv.barrier()
                step(module, dense)
                dense.join()
                kv.barrier()
                server.save(path, {"epoch": 1, "dense": dense.state()})
            if kv.id == 0:  # alone: other ranks' steps would come in an order of chance
                module(torch.arange(4, 9)).sum().backward()  # for some rows the first one: Adam knows its number
                lt.flush(kv)
            kv.barrier()
            results.append((module.to_local().weight.detach(), layers.weight.detach().clone()))
            kv.barrier()
    for first, second in zip(*results):
        torch.testing.assert_close(first, second)
    comm.Barrier()
