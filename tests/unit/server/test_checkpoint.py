"""Checkpoints on one rank: the format, what must not be lost, and everything that can be wrong with a folder."""

import json
import os
import re
import shutil
import zlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import lapse
from lapse.server import checkpoint

KEYS = np.arange(20)


def filled(num_keys=20, lengths=3, dtype="float32", **options):
    server = lapse.Server(num_keys, lengths, dtype, **options)
    server.initialize(np.arange(num_keys), lapse.Normal())
    return server


def values_of(server):
    with server.worker() as kv:
        return kv.pull(np.arange(server.num_keys)).wait()


@pytest.fixture
def saved(tmp_path):
    """A folder with a checkpoint, and its values."""
    with filled() as server:
        server.save(tmp_path / "ck", {"epoch": 7})
        return tmp_path / "ck", values_of(server)


def step_of(path):
    return path / (path / "CURRENT").read_text().strip()


def value_file(path):
    return next(step_of(path).glob("*.safetensors"))


def change_manifest(path, **changes):
    file = step_of(path) / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rewrite(path, tensors):
    """Other content with a checksum that fits."""
    file = value_file(path)
    data = safetensors.numpy.save(tensors)
    file.write_bytes(data)
    manifest = json.loads((step_of(path) / "manifest.json").read_text())
    manifest["files"][0] |= {"bytes": len(data), "crc32": zlib.crc32(data)}
    change_manifest(path, files=manifest["files"])


# What is saved is what is loaded -------------------------------------------------------------------


def test_the_files_are_read_by_the_safetensors_package(saved):
    path, values = saved
    tensors = safetensors.numpy.load_file(value_file(path))
    np.testing.assert_array_equal(tensors["keys"], KEYS)
    np.testing.assert_array_equal(tensors["values"], values)
    manifest = json.loads((step_of(path) / "manifest.json").read_text())
    assert (manifest["num_keys"], manifest["dtype"], manifest["value_lengths"]) == (20, "float32", 3)
    assert manifest["metadata"] == {"epoch": 7}


@given(
    data=st.data(),
    lengths=st.one_of(st.integers(1, 5), st.lists(st.integers(1, 5), min_size=30, max_size=30)),
    dtype=st.sampled_from(["float32", "float64"]),
    written=st.sets(st.integers(0, 29)),
)
@settings(max_examples=40)
def test_every_value_comes_back_bit_for_bit(tmp_path_factory, data, lengths, dtype, written):
    path = tmp_path_factory.mktemp("checkpoint")
    keys = np.array(sorted(written), np.int64)
    with lapse.Server(30, lengths, dtype) as server, server.worker() as kv:
        size = int(server.value_length(keys).sum())
        numbers = st.floats(width=32, allow_nan=False)
        values = np.array(data.draw(st.lists(numbers, min_size=size, max_size=size)), dtype)
        kv.set(keys, values).wait()
        expected = kv.pull(range(30)).wait()
        server.save(path)
    assert sum(f["keys"] for f in checkpoint.read_manifest(path)["files"]) == len(keys)
    with filled(30, lengths, dtype) as server:
        server.load(path)
        np.testing.assert_array_equal(values_of(server).view(np.uint8), expected.view(np.uint8))


def test_many_files_of_few_values(tmp_path, monkeypatch):
    """As with values that do not fit into memory twice."""
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 64)
    monkeypatch.setattr(checkpoint, "BLOCK_BYTES", 24)
    for lengths in (3, np.arange(1, 51), 40):
        with filled(50, lengths) as server:
            server.save(tmp_path)
            assert len(checkpoint.read_manifest(tmp_path)["files"]) >= 10
            expected = values_of(server)
            server.initialize(range(50), lapse.Constant(1))
            server.load(tmp_path)
            np.testing.assert_array_equal(values_of(server), expected)


def test_a_step_that_a_job_removes_while_another_reads_it(saved, monkeypatch):
    path, _ = saved
    steps = iter(["step-000000", "step-000000", checkpoint.current_step(path)])  # the first two: read, and looked again
    newest = checkpoint.current_step
    monkeypatch.setattr(checkpoint, "current_step", lambda folder: next(steps, None) or newest(folder))
    with pytest.raises(lapse.CheckpointError, match="step-000000"):  # it is missing for good
        checkpoint.read_manifest(path)
    assert checkpoint.read_manifest(path)["step"] == newest(path)
    steps = iter(["step-000000"])
    assert checkpoint.read_manifest(path)["step"] == newest(path)


def test_an_empty_server_and_operations_that_nobody_waited_for(tmp_path):
    with lapse.Server(5, 2) as server:
        server.save(tmp_path / "empty")
        assert checkpoint.read_manifest(tmp_path / "empty")["files"] == []
        with server.worker() as kv:
            kv.push(range(5), np.ones((5, 2), "f4"))
            server.save(tmp_path / "ones")
        assert server.load(tmp_path / "empty") == {}
        assert not values_of(server).any()
        server.load(os.fspath(tmp_path / "ones"))
        assert (values_of(server) == 1).all()


def test_a_million_keys_take_seconds_not_minutes(tmp_path):
    with lapse.Server(1_000_000, 4) as server:
        server.initialize(np.arange(0, 1_000_000, 2), lapse.Normal())
        expected = values_of(server)
        server.save(tmp_path)
        server.load(tmp_path)
        assert (values_of(server) == expected).all()


# What must not be lost ----------------------------------------------------------------------------


def test_a_newer_checkpoint_replaces_an_older_one_and_nothing_else(saved):
    path, _ = saved
    first = step_of(path)
    (path / "notes.txt").write_text("mine")
    (path / "step-000077").mkdir()
    (path / "step-000077" / "data.bin").write_text("mine too")
    (first / "thoughts.txt").write_text("and mine")
    (path / "step-1").mkdir()
    with filled() as server:
        server.save(path)
    assert step_of(path).name == "step-000078"
    assert sorted(file.name for file in first.iterdir()) == ["thoughts.txt"]
    assert (path / "notes.txt").exists() and (path / "step-1").exists()
    assert (path / "step-000077" / "data.bin").exists()


@pytest.mark.parametrize("name", ["begin_step", "write_values", "commit_step"])
def test_a_save_that_fails_leaves_the_older_one_and_the_server_usable(saved, monkeypatch, name):
    path, values = saved
    before = sorted(path.rglob("*"))

    def fail(*args):
        raise OSError(28, "No space left on device")

    with filled(lengths=3) as server:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, fail)
            with pytest.raises(OSError, match="No space left"):
                server.save(path)
        assert sorted(path.rglob("*")) == before
        server.load(path)
        np.testing.assert_array_equal(values_of(server), values)
        server.save(path)


def test_what_a_killed_save_has_left_is_tidied_by_the_next(saved):
    path, values = saved
    shutil.copytree(step_of(path), path / "step-000009")
    (path / "step-000009" / "manifest.json").unlink()
    (path / "CURRENT.new").write_text("step-0000")
    with filled() as server:
        server.load(path)
        np.testing.assert_array_equal(values_of(server), values)
        server.save(path)
    assert sorted(file.name for file in path.iterdir()) == ["CURRENT", "step-000010"]


def test_a_parent_must_exist(tmp_path):
    with filled() as server:
        with pytest.raises(FileNotFoundError, match="none"):
            server.save(tmp_path / "none" / "ck")
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            server.load(tmp_path)
        with pytest.raises(TypeError):
            server.save(3)
        with pytest.raises(TypeError, match="JSON"):
            server.save(tmp_path / "ck", {"set": {1}})


# What is found out ---------------------------------------------------------------------------------


def check_load_fails(path, match, **options):
    """With values left as they were."""
    with filled(**options) as server:
        before = values_of(server)
        with pytest.raises(lapse.CheckpointError, match=match):
            server.load(path)
        np.testing.assert_array_equal(values_of(server), before)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"num_keys": 21}, "num_keys is 20 in the checkpoint, but 21"),
        ({"lengths": 4}, "value_lengths is 3 in the checkpoint, but 4"),
        ({"dtype": "float64"}, "dtype is 'float32' in the checkpoint, but 'float64'"),
        ({"lengths": np.arange(1, 21)}, "value_lengths is 3"),
    ],
    ids=str,
)
def test_a_server_of_another_shape_is_refused(saved, options, match):
    check_load_fails(saved[0], match, **options)


def test_other_varying_lengths_are_refused(tmp_path):
    with filled(lengths=np.arange(1, 21)) as server:
        server.save(tmp_path)
    check_load_fails(tmp_path, "value_lengths is 'sha256", lengths=np.arange(1, 21)[::-1])


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"version": 99}, "version 99 of the format, but this Lapse reads versions 1 and 2"),
        ({"format": "cookbook"}, "not the manifest"),
        ({"files": 3}, "files is 3"),
        ({"files": [{"name": "../../etc/passwd", "bytes": 1, "crc32": 1, "keys": 1}]}, "not the description"),
        ({"num_keys": "many"}, "num_keys is 'many'"),
    ],
    ids=str,
)
def test_a_manifest_that_says_something_else_is_refused(saved, changes, match):
    change_manifest(saved[0], **changes)
    check_load_fails(saved[0], match)


def test_files_that_are_missing_short_or_empty_are_named(saved):
    path, _ = saved
    file = value_file(path)
    content = file.read_bytes()
    for short in (content[:-1], content[: len(content) // 2], b""):
        file.write_bytes(short)
        check_load_fails(path, f"{re.escape(str(file))} has {len(short)} bytes, but {len(content)}")
    file.unlink()
    check_load_fails(path, "is missing, though the manifest lists it")
    manifest = step_of(path) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:50])
    check_load_fails(path, "is not JSON")
    manifest.unlink()
    check_load_fails(path, "is missing, though CURRENT names")
    (path / "CURRENT").write_text("../elsewhere")
    check_load_fails(path, "not the name of a step")


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=40)
def test_every_damaged_bit_is_found(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("checkpoint")
    with filled() as server:
        server.save(path)
        file = value_file(path)
        content = bytearray(file.read_bytes())
        content[int(position * len(content))] ^= 1 << bit
        file.write_bytes(content)
        with pytest.raises(lapse.CheckpointError, match="is damaged: its checksum"):
            server.load(path)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"values": np.zeros((20, 4), "f4")}, r"values are float32 of shape \(20, 4\)"),
        ({"values": np.zeros((20, 3), "f8")}, "values are float64"),
        ({"values": np.zeros((20, 3), "i4")}, "values are I32"),
        ({"keys": np.arange(1, 21)}, "not ascending numbers below 20"),
        ({"keys": np.arange(20)[::-1].copy()}, "not ascending"),
        ({"keys": np.arange(20, dtype=np.int32)}, "keys are int32"),
        ({"keys": np.arange(19)}, "keys are"),
        ({"more": np.arange(19)}, "has tensors"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused_though_checksums_fit(saved, changes, match):
    path, values = saved
    rewrite(path, {"keys": KEYS, "values": values, **changes})
    check_load_fails(path, match)


def test_a_file_that_is_no_safetensors_file_is_refused(saved):
    path, _ = saved
    data = b"\xff" * 100
    value_file(path).write_bytes(data)
    entry = {**checkpoint.read_manifest(path)["files"][0], "bytes": 100, "crc32": zlib.crc32(data)}
    change_manifest(path, files=[entry])
    check_load_fails(path, "is not a safetensors file")
