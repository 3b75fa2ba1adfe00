"""Checkpoints by several ranks: values equal bit for bit, whoever saved and whoever loads; errors on all ranks."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import lapse
from lapse.server import checkpoint
from mpi4py.MPI import COMM_WORLD as comm

NUM_KEYS = 60
KEYS = np.arange(NUM_KEYS)
LAST = comm.size - 1


@pytest.fixture
def folder():
    """The same new folder on all ranks."""
    path = comm.bcast(tempfile.mkdtemp(prefix="lapse-checkpoint-") if comm.rank == 0 else None)
    yield Path(path)
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(path)


def some_ranks(count):
    """A communicator of the first ranks; None on the others."""
    part = comm.Split(0 if comm.rank < count else 1, comm.rank)
    return part if comm.rank < count else None


def move_about(kv, server):
    """Write some keys (others never), relocate some, and push to those of others without waiting."""
    keys = KEYS[KEYS % 4 != 0]
    rng = np.random.default_rng(kv.id)
    kv.localize(rng.permutation(KEYS)[:20])
    elements = int(server.value_length(keys).sum())
    kv.push(keys, (rng.integers(-99, 99, elements) / 8).astype(server.dtype))


def pull_all(kv):
    kv.barrier()
    values = kv.pull(KEYS).wait()
    kv.barrier()
    return values


def saved_values(count, path, lengths, dtype, replicated):
    """Values that `count` ranks have saved."""
    part = some_ranks(count)
    values = None
    if part is not None:
        with lapse.Server(NUM_KEYS, lengths, dtype, replicated_keys=replicated, comm=part) as server:
            server.run(move_about, server)
            server.save(path, {"ranks": count})
            values = server.run(pull_all)[0]
        part.Free()
    return comm.bcast(values)


def check_loaded(count, path, lengths, dtype, replicated, expected):
    """Load by `count` ranks into a server whose keys have moved already."""
    part = some_ranks(count)
    if part is None:
        return
    with lapse.Server(NUM_KEYS, lengths, dtype, replicated_keys=replicated, comm=part, workers=2) as server:
        server.run(move_about, server)
        before = server.local_keys()
        assert server.load(path)["ranks"] >= 1
        np.testing.assert_array_equal(server.local_keys(), before)
        for values in server.run(pull_all):
            np.testing.assert_array_equal(values.view(np.uint8), expected.view(np.uint8))
    part.Free()


SIZES = sorted({1, 2, comm.size // 2 or 1, comm.size} & set(range(1, comm.size + 1)))


@pytest.mark.parametrize(
    "lengths, dtype", [(3, "float32"), (np.arange(1, NUM_KEYS + 1), "float64")], ids=["one", "many"]
)
@pytest.mark.parametrize("replicated", [None, [1, 4, 5, 30]], ids=["relocated", "replicated"])
def test_any_number_of_ranks_loads_what_any_number_has_saved(folder, lengths, dtype, replicated):
    for savers in SIZES:
        expected = saved_values(savers, folder / "ck", lengths, dtype, replicated)
        for loaders in SIZES:
            check_loaded(loaders, folder / "ck", lengths, dtype, replicated, expected)
        check_loaded(comm.size, folder / "ck", lengths, dtype, [2, 4], expected)
        comm.Barrier()


def test_each_key_is_saved_once_by_the_rank_that_owns_it(folder):
    with lapse.Server(NUM_KEYS, 2, replicated_keys=[3, 7]) as server:
        server.initialize(KEYS, lapse.Normal())
        server.run(lambda kv: kv.localize(KEYS[kv.id :: comm.size]).wait())
        server.save(folder)
        owned = server.local_keys()
    step = folder / checkpoint.current_step(folder)
    mine = list(step.glob(f"rank-{comm.rank:05d}-*"))
    import safetensors.numpy

    keys = np.concatenate([safetensors.numpy.load_file(file)["keys"] for file in mine] or [[]])
    np.testing.assert_array_equal(np.sort(keys), owned)
    assert sum(comm.allgather(len(keys))) == NUM_KEYS
    comm.Barrier()


def test_training_goes_on_after_save_and_load(folder):
    with lapse.Server(NUM_KEYS, 2, replicated_keys=[3, 7]) as server:
        for _ in range(3):
            server.run(lambda kv: kv.push(KEYS, np.ones((NUM_KEYS, 2), "f4")))
            server.save(folder)
        server.run(lambda kv: kv.push(KEYS, np.ones((NUM_KEYS, 2), "f4")))
        server.load(folder)
        server.run(lambda kv: (kv.localize(KEYS), kv.push(KEYS, np.ones((NUM_KEYS, 2), "f4")), kv.wait_replica_sync()))
        assert (server.run(pull_all)[0] == 4 * comm.size).all()
    assert comm.allgather(len(list(folder.iterdir()))) == [2] * comm.size  # CURRENT and one step


@pytest.mark.parametrize("bad", sorted({0, LAST}))
def test_a_rank_that_cannot_write_is_an_error_on_all(folder, monkeypatch, bad):
    with lapse.Server(NUM_KEYS, 2) as server:
        server.initialize(KEYS, lapse.Constant(1))
        server.save(folder, {"n": 1})
        server.initialize(KEYS, lapse.Constant(2))
        with monkeypatch.context() as patch:
            if comm.rank == bad:
                patch.setattr(checkpoint, "write_values", _full)
            with pytest.raises(OSError, match="No space left") as caught:
                server.save(folder, {"n": 2})
            assert comm.rank == bad or f"(on rank {bad})" in getattr(caught.value, "__notes__", [f"(on rank {bad})"])
        comm.Barrier()
        assert len(list(folder.iterdir())) == 2
        assert server.load(folder) == {"n": 1}
        assert (server.run(pull_all)[0] == 1).all()
        server.save(folder, {"n": 3})
        assert server.load(folder) == {"n": 3}


def _full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("bad", sorted({0, LAST}))
def test_a_rank_that_cannot_read_is_an_error_on_all(folder, monkeypatch, bad):
    with lapse.Server(NUM_KEYS, 2) as server:
        server.save(folder)
        with monkeypatch.context() as patch:
            if comm.rank == bad:
                patch.setattr(checkpoint, "check_files", _full)
            with pytest.raises(OSError, match="No space left"):
                server.load(folder)
        server.load(folder)


def test_a_damaged_file_is_found_by_whoever_checks_it_and_told_to_all(folder):
    with lapse.Server(NUM_KEYS, 2) as server:
        server.initialize(KEYS, lapse.Constant(1))
        server.save(folder)
        for number in range(comm.size):
            comm.Barrier()
            file = folder / checkpoint.current_step(folder) / f"rank-{number:05d}-00000.safetensors"
            content = file.read_bytes() if file.exists() else None
            comm.Barrier()
            if content is None:
                continue
            if comm.rank == 0:
                file.write_bytes(content[:-1] + b"\x01")
            comm.Barrier()
            with pytest.raises(lapse.CheckpointError, match=f"{file.name} is damaged"):
                server.load(folder)
            if comm.rank == 0:
                file.write_bytes(content)
        comm.Barrier()
        server.load(folder)


def test_errors_that_all_ranks_see(folder):
    with lapse.Server(NUM_KEYS, 2) as server:
        with pytest.raises(FileNotFoundError):
            server.save(folder / "none" / "ck")
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            server.load(folder)
        with pytest.raises(TypeError):
            server.save(None if comm.rank == LAST else folder)
        if comm.size > 1:
            with pytest.raises(ValueError, match="same path"):
                server.save(folder / str(comm.rank))
        server.save(folder)
    with lapse.Server(NUM_KEYS, 3) as server, pytest.raises(lapse.CheckpointError, match="value_lengths"):
        server.load(folder)


def test_two_servers_save_at_a_time_each_into_its_folder_and_foreign_files_stay(folder):
    if comm.rank == 0:
        (folder / "notes.txt").write_text("mine")
    with lapse.Server(NUM_KEYS, 2) as one, lapse.Server(9, 1) as other:
        one.initialize(KEYS, lapse.Normal())
        for _ in range(2):
            one.save(folder)
            other.save(folder / "other")
        assert other.load(folder / "other") == one.load(folder) == {}
    assert (folder / "notes.txt").read_text() == "mine"
    manifest = json.loads((folder / checkpoint.current_step(folder) / "manifest.json").read_text())
    assert manifest["ranks"] == comm.size
    assert os.path.isdir(folder / "other")


def test_a_worker_saves_if_it_is_the_only_one_of_its_rank(folder):
    def work(kv, server):
        kv.push(KEYS, np.ones((NUM_KEYS, 2), "f4"))
        server.save(folder)
        kv.push(KEYS, np.ones((NUM_KEYS, 2), "f4")).wait()
        server.load(folder)
        kv.barrier()
        return kv.pull(KEYS).wait()

    with lapse.Server(NUM_KEYS, 2) as server:
        assert (server.run(work, server)[0] == comm.size).all()


def test_a_worker_beside_others_is_told_to_save_elsewhere(folder):
    def work(kv, server):
        if kv.id % 2 == 0:
            server.save(folder)
        kv.barrier()

    with lapse.Server(NUM_KEYS, 2, workers=2) as server:
        with pytest.raises((RuntimeError, lapse.RemoteError), match="between two runs"):
            server.run(work, server)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("call", ["save", "load"])
@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_leaves_instead_is_an_error_on_the_others(folder, call, bad):
    with lapse.Server(NUM_KEYS, 2) as server:
        server.save(folder, {"n": 1})
    with pytest.raises(ZeroDivisionError if comm.rank == bad else lapse.RemoteError, match="zero"):
        with lapse.Server(NUM_KEYS, 2) as server:
            if comm.rank == bad:
                raise ZeroDivisionError("zero")
            getattr(server, call)(folder)
    comm.Barrier()
    with lapse.Server(NUM_KEYS, 2) as server:
        assert server.load(folder) == {"n": 1}


# Random streams -------------------------------------------------------------------------------------


def draws(kv):
    """Some numbers and keys of this worker's streams."""
    sample = kv.prepare_sample(25)
    keys, _ = kv.pull_sample(sample, 25).wait()
    kv.finish_sample(sample)
    return kv.rng.integers(2**32, size=4).tolist() + keys.tolist()


def sampling_server(scheme, workers=1, seed=7, part=None):
    options = dict(reuse=1, group_size=25) if scheme == "pool" else {}
    sampling = lapse.Sampling(scheme, lapse.Uniform(0, NUM_KEYS), **options)
    return lapse.Server(NUM_KEYS, 1, workers=workers, sampling=sampling, seed=seed, comm=part)


@pytest.mark.parametrize("scheme", ["naive", "preloc", "pool"])
def test_random_streams_go_on_from_run_to_run_and_from_a_checkpoint(folder, scheme):
    with sampling_server(scheme) as server:
        first = server.run(draws)
        server.save(folder / "model")
        second = server.run(draws)
    with sampling_server(scheme, seed=8) as server:  # what was saved counts, not the seed
        server.load(folder / "model")
        assert first != second
        resumed = server.run(draws)
        numbers = 4 if scheme == "pool" else None  # a pool has drawn the next group already, and begins another one
        assert [each[:numbers] for each in resumed] == [each[:numbers] for each in second]
        assert resumed != server.run(draws)


def test_with_another_number_of_workers_random_streams_are_new(folder):
    with sampling_server("naive") as server:
        before = [number for each in server.run(draws) for number in each]
        server.save(folder / "model")
    with sampling_server("naive", workers=2) as server:
        server.load(folder / "model")
        resumed = server.run(draws)
    assert all(each[:4] != before[:4] and each[4:] != before[4:] for each in resumed)
    with sampling_server("naive", workers=2) as server:
        server.load(folder / "model")
        assert server.run(draws) == resumed


def test_damaged_random_streams_are_an_error_before_values_change(folder):
    with sampling_server("naive") as server:
        server.initialize(range(NUM_KEYS), lapse.Constant(1))
        server.save(folder / "model")
        server.initialize(range(NUM_KEYS), lapse.Constant(2))
        if comm.rank == 0:
            file = folder / "model" / checkpoint.current_step(folder / "model") / checkpoint.MANIFEST
            manifest = json.loads(file.read_text())
            manifest["streams"][-1]["rng"]["state"] = "nothing"
            file.write_text(json.dumps(manifest))
        with pytest.raises(lapse.CheckpointError, match="random streams"):
            server.load(folder / "model")
        with server.worker() as kv:
            assert (pull_all(kv) == 2).all()


# Arguments ------------------------------------------------------------------------------------------


def test_metadata_that_contains_itself_is_refused(folder):
    metadata = {}
    metadata["a"] = [metadata]
    with lapse.Server(NUM_KEYS, 1) as server, pytest.raises(TypeError, match="contains itself"):
        server.save(folder / "model", metadata)


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"ok": 1, "loss": np.float32(1)}, ["metadata['loss']", "float32", "float(x)"]),
        ({"a": {"b": np.array([None])}}, ["metadata['a']['b']", "array of object"]),
        ({"a": [{"__array__": 3}]}, ["__array__"]),
        ({"a": {"b": [1, {2, 3}]}}, ["metadata['a']['b'][1]", "set"]),
        ({"a": {(1, 2): 3}}, ["metadata['a'][(1, 2)]", "tuple", "str(key)"]),
        ({"a": {1: 3}}, ["metadata['a'][1]", "int", "str(key)"]),  # it would come back as another key
    ],
)
def test_metadata_that_json_cannot_hold_is_refused_at_once(folder, metadata, words):
    with lapse.Server(NUM_KEYS, 1) as server:
        with pytest.raises(TypeError) as caught:
            server.save(folder / "model", metadata)
        assert all(word in str(caught.value) for word in words)
        assert not (folder / "model").exists()


def test_a_missing_parent_is_named_at_once(folder):
    with lapse.Server(NUM_KEYS, 1) as server:
        with pytest.raises(FileNotFoundError, match="missing.*make it"):
            server.save(folder / "missing" / "model")
        assert not (folder / "missing").exists()


def test_lengths_that_differ_from_the_server_s_are_refused(folder):
    """Though their sum is right, and the checksum is."""
    import zlib

    import safetensors.numpy

    lengths = np.array([1, 3])
    with lapse.Server(2, lengths) as server:
        server.initialize(range(2), lapse.Constant(1))
        server.save(folder / "model")
        comm.Barrier()
        if comm.rank == 0:
            step = folder / "model" / checkpoint.current_step(folder / "model")
            manifest = json.loads((step / checkpoint.MANIFEST).read_text())
            for entry in manifest["files"]:
                tensors = safetensors.numpy.load_file(step / entry["name"])
                tensors["lengths"] = tensors["lengths"] + np.array([1, -1])[: len(tensors["lengths"])]
                data = safetensors.numpy.save(tensors, {"format": "lapse", "version": "1"})
                (step / entry["name"]).write_bytes(data)
                entry.update(bytes=len(data), crc32=zlib.crc32(data))
            (step / checkpoint.MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(lapse.CheckpointError, match="lengths"):
            server.load(folder / "model")


def steps(kv, tables, total):
    """So many equal steps, shared by all workers of all ranks, between relocations."""
    for _ in range(kv.id, total, kv.num_workers):
        for table in tables.values():
            kv.localize(kv.rng.permutation(table.keys())[: table.num_rows // 2])
            kv.apply_gradients(table.keys(), np.full(table.num_rows * table.length, 0.5, np.float32))
    kv.wait_all()
    kv.barrier()
    return kv.pull(np.arange(tables.num_keys)).wait()


@pytest.mark.parametrize("savers, loaders", [(1, comm.size), (comm.size, 1), (comm.size, comm.size)])
def test_states_come_back_on_other_numbers_of_ranks(folder, savers, loaders):
    def make_tables(rows):
        return lapse.Tables(
            a=lapse.Table(rows, 3, lapse.Normal(), lapse.optim.Adam(lr=0.1)),
            b=lapse.Table(20, 5, lapse.Normal(), lapse.optim.Adagrad(lr=0.1)),
        )

    expected = None
    if (part := some_ranks(savers)) is not None:
        with lapse.Server(tables := make_tables(30), comm=part) as server:
            server.run(steps, tables, 60)
            server.save(folder / "ck")
            expected = server.run(steps, tables, 60)[0]
        part.Free()
    expected = comm.bcast(expected)
    if (part := some_ranks(loaders)) is not None:
        with lapse.Server(tables := make_tables(50), comm=part) as server:
            server.run(steps, tables, 1)
            server.load(folder / "ck")
            values = server.run(steps, tables, 60)[0]
            np.testing.assert_array_equal(values[:90], expected[:90])
            np.testing.assert_array_equal(values[-100:], expected[-100:])
        part.Free()


def test_states_of_replicated_keys_come_back(folder):
    """They are at the homes of the keys, whoever these are."""

    def work(kv, rounds):
        for _ in range(rounds):
            kv.apply_gradients(KEYS, np.full((NUM_KEYS, 3), 0.5, np.float32))
            kv.wait_all()
            kv.barrier()
            kv.wait_replica_sync()
            kv.barrier()  # the gradients of a rank that is ahead would come to the homes without those of the others
        return kv.pull(KEYS).wait()

    options = {"optimizer": lapse.optim.Adagrad(lr=1.0), "replication": lapse.Replication(syncs_per_second=0)}
    with lapse.Server(NUM_KEYS, 3, replicated_keys=KEYS[::2], **options) as server:
        server.run(work, 3)
        server.save(folder / "ck")
        expected = server.run(work, 2)[0]
    with lapse.Server(NUM_KEYS, 3, replicated_keys=KEYS[::2], **options) as server:
        server.run(work, 1)
        server.load(folder / "ck")
        np.testing.assert_array_equal(server.run(work, 2)[0], expected)
        server.initialize(KEYS, lapse.Constant(0))
        first = server.run(work, 1)[0]
        if len(server.sharing_ranks) < comm.size:
            np.testing.assert_allclose(first[::2], -1, rtol=1e-6)  # the first step of AdaGrad is its rate
