"""Checkpoints with tables and the states of optimizers, on one rank."""

import json

import numpy as np
import pytest
import safetensors.numpy

import lapse
from lapse import optim


def tables(users=10, items=6, swap=False, **more):
    given = {
        "users": lapse.Table(users, 3, lapse.Normal(), optim.Adagrad(lr=1.0)),
        "items": lapse.Table(items, more.pop("length", 3), lapse.Constant(5), more.pop("optimizer", optim.Adam())),
        **more,
    }
    return lapse.Tables(dict(reversed(given.items())) if swap else given)


def train(server, kv, steps=3):
    for name, table in server.tables.items():
        keys = table.keys(range(table.num_rows // 2))  # of the others, no state is begun
        gradients = np.random.default_rng(len(name)).normal(size=(len(keys) * table.length)).astype(np.float32)
        for _ in range(steps):
            kv.apply_gradients(keys, gradients).wait()


def rows(kv, table, ids=None):
    return kv.pull(table.keys(ids)).wait().reshape(-1, table.length)


def save(path, tables, state=True):
    """Save after some steps; what two more steps come to."""
    with lapse.Server(tables) as server, server.worker() as kv:
        train(server, kv)
        server.save(path, state=state)
        saved = {name: rows(kv, table) for name, table in tables.items()}
        train(server, kv, 2)
        return saved, {name: rows(kv, table) for name, table in tables.items()}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("length", [3, 4])
def test_values_and_states_come_back(tmp_path, length, swap):
    saved, after = save(tmp_path / "ck", tables(length=length))
    ours = tables(length=length, swap=swap)
    with lapse.Server(ours) as server, server.worker() as kv:
        train(server, kv, 5)
        server.load(tmp_path / "ck")
        for name, table in ours.items():
            np.testing.assert_array_equal(rows(kv, table), saved[name])
        train(server, kv, 2)
        for name, table in ours.items():
            np.testing.assert_array_equal(rows(kv, table), after[name])


def test_tables_grow_and_new_ones_begin(tmp_path):
    saved, after = save(tmp_path / "ck", tables())
    ours = tables(users=40, items=7, third=lapse.Table(4, 2, lapse.Constant(9)), swap=True)
    with lapse.Server(ours) as server, server.worker() as kv:
        fresh = rows(kv, ours["users"])
        server.load(tmp_path / "ck")
        np.testing.assert_array_equal(rows(kv, ours["users"], range(10)), saved["users"])
        np.testing.assert_array_equal(rows(kv, ours["users"], range(10, 40)), fresh[10:])
        np.testing.assert_array_equal(rows(kv, ours["items"], range(6)), saved["items"])
        assert (rows(kv, ours["items"], [6]) == 5).all() and (rows(kv, ours["third"]) == 9).all()
        keys = ours["users"].keys(range(5))
        gradients = np.random.default_rng(5).normal(size=(5, 3)).astype(np.float32)
        for _ in range(2):
            kv.apply_gradients(keys, gradients.ravel()).wait()
        np.testing.assert_array_equal(rows(kv, ours["users"], range(5)), after["users"][:5])


def test_a_checkpoint_without_states_begins_them_anew(tmp_path):
    saved, _ = save(tmp_path / "ck", tables(), state=False)
    file = next((tmp_path / "ck").glob("step-*/rank-*.safetensors"))
    assert set(safetensors.numpy.load_file(file)) == {"keys", "values"}
    for optimizer in (optim.Adam(), optim.SGD(), None):
        ours = tables(optimizer=optimizer)
        with lapse.Server(ours) as server, server.worker() as kv:
            kv.apply_gradients(ours["users"].keys([0]), np.full((1, 3), 2, "f4")).wait()
            server.load(tmp_path / "ck")
            np.testing.assert_array_equal(rows(kv, ours["items"]), saved["items"])
            kv.apply_gradients(
                ours["users"].keys([0]), np.full((1, 3), 2, "f4")
            ).wait()  # the first step of AdaGrad: lr
            np.testing.assert_allclose(rows(kv, ours["users"], [0]), saved["users"][:1] - 1, rtol=1e-5, atol=1e-6)
    with lapse.Server(16, 3) as server, server.worker() as kv:  # one without tables
        server.load(tmp_path / "ck")
        np.testing.assert_array_equal(kv.pull(range(16)).wait(), np.concatenate([saved["users"], saved["items"]]))


def test_another_learning_rate_fits(tmp_path):
    with lapse.Server(3, 2, optimizer=optim.Adagrad(lr=0.1)) as server:
        server.save(tmp_path / "ck")
    with lapse.Server(3, 2, optimizer=optim.Adagrad(lr=0.2)) as server:
        server.load(tmp_path / "ck")


@pytest.mark.parametrize(
    "ours, error",
    [
        (lambda: tables(optimizer=optim.SGD()), r"optimizer Adam\(.*betas.*\) for table 'items', .* has SGD"),
        (lambda: tables(optimizer=optim.Adam(eps=0.5)), r"eps=1e-08\) for table 'items', .*eps=0.5"),
        (lambda: tables(optimizer=None), r"Adam.* has none: use the same, or save with state=False"),
        (lambda: tables(users=9), "table 'users' has 10 rows in the checkpoint, but 9"),
        (lambda: tables(length=4), "rows of table 'items' have 3 elements in the checkpoint, but 4"),
        (lambda: lapse.Tables(users=tables()["users"]), "has a table 'items', but this server has 'users'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, ours, error):
    save(tmp_path / "ck", tables())
    with lapse.Server(ours()) as server, server.worker() as kv:
        before = kv.pull(range(server.num_keys)).wait()
        with pytest.raises(lapse.CheckpointError, match=error):
            server.load(tmp_path / "ck")
        np.testing.assert_array_equal(kv.pull(range(server.num_keys)).wait(), before)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"tables": 3}, "tables is 3"),
        ({"tables": {"a": [1]}}, "tables is"),
        ({"optimizers": {}}, "optimizers is"),
        ({"steps": {"users": 1.5}}, "steps is"),
        ({"metadata": {"a": {"__array__": "0"}}}, "metadata has arrays, but metadata_file is None"),
        ({"optimizers": [[3, None]]}, "optimizers is"),
        ({"optimizers": [[True, None], [16, None]]}, "optimizers is"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, changes, error):
    save(tmp_path / "ck", tables())
    file = next((tmp_path / "ck").glob("step-*/manifest.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with lapse.Server(tables()) as server:
        with pytest.raises(lapse.CheckpointError, match=error):
            server.load(tmp_path / "ck")


def test_metadata_may_have_arrays(tmp_path):
    given = {
        "a": {"b": [1, np.arange(6.0).reshape(2, 3).T], "c": (2, None)},
        "number": np.array(3, "f4"),
        "no": np.empty((0, 2)),
    }
    with lapse.Server(3, 2) as server:
        server.save(tmp_path / "ck", given)
        found = server.load(tmp_path / "ck")
        assert found["a"]["b"][0] == 1 and found["a"]["c"] == [2, None]
        for ours, theirs in ((found["a"]["b"][1], given["a"]["b"][1]), (found["number"], given["number"])):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and (ours == theirs).all()
        assert found["no"].shape == (0, 2)
        file = next((tmp_path / "ck").glob("step-*/metadata.safetensors"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(lapse.CheckpointError, match=r"metadata.safetensors is damaged"):
            server.load(tmp_path / "ck")
        server.save(tmp_path / "ck")  # which deletes the step before it, with this file
        assert len(list((tmp_path / "ck").iterdir())) == 2


def test_bad_arguments_of_save(tmp_path):
    with lapse.Server(3, 2) as server:
        with pytest.raises(TypeError, match="state must be True or False, not 1"):
            server.save(tmp_path / "ck", state=1)
