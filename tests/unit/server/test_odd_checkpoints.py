"""Checkpoints that are not what was saved, at random: a `CheckpointError`, or the values that were saved."""

import copy
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lapse
from lapse.apps._shared import checkpoints, options
from lapse.apps._shared.job import AppError
from lapse.server import checkpoint

LENGTHS = {"uniform": 3, "varying": [1, 2, 3, 4, 5] * 4}


@pytest.fixture(scope="module", params=LENGTHS)
def saved(request, tmp_path_factory):
    """A server, its values, and a checkpoint of it."""
    with lapse.Server(20, LENGTHS[request.param]) as server, server.worker() as kv:
        server.initialize(range(20), lapse.Normal())
        path = tmp_path_factory.mktemp("saved") / "ck"
        server.save(path, {"app": "mf", "options": {"epochs": 3}, "epoch": 1})
        yield server, kv, kv.pull(range(20)).wait(), path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths_in(value, path=()):
    """Where something can be changed in a tree of lists and dicts."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths_in(value[key], (*path, key))


def changed(tree, path, value):
    if not path:
        return value
    tree = copy.deepcopy(tree)
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return tree


def load(saved, path):
    """Load a damaged copy: an error, or what was saved."""
    server, kv, values, _ = saved
    server.initialize(range(20), lapse.Constant(7))
    try:
        server.load(path)
    except (lapse.CheckpointError, OSError) as error:
        assert len(str(error)) < 2000
        assert (kv.pull(range(20)).wait() == 7).all()  # what was there before
    else:
        np.testing.assert_array_equal(kv.pull(range(20)).wait(), values)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_manifests(saved, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("odd") / "ck"
    shutil.copytree(saved[3], path)
    file = next(path.glob("step-*")) / "manifest.json"
    manifest = json.loads(file.read_text())
    places = [place for place in paths_in(manifest) if place[:1] != ("metadata",)]
    place = data.draw(st.sampled_from(places))
    manifest = changed(manifest, place, data.draw(JSON))
    text = json.dumps(manifest).encode()
    if data.draw(st.booleans()):
        text = text[: data.draw(st.integers(0, len(text)))]
    file.write_bytes(text)
    if "files" in place and len(place) == 1 and manifest.get("files") == []:
        return  # a checkpoint without values: they are zero
    load(saved, path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_bytes_of_any_file(saved, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("odd") / "ck"
    shutil.copytree(saved[3], path)
    file = data.draw(st.sampled_from(sorted(file for file in path.rglob("*") if file.is_file())))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["cut", "bits", "more"])):
        case "cut":
            del content[at:]
        case "bits":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        case "more":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    file.write_bytes(content)
    load(saved, path)


def test_deep_json_is_no_crash(saved, tmp_path):
    path = tmp_path / "ck"
    shutil.copytree(saved[3], path)
    next(path.glob("step-*/manifest.json")).write_text("[" * 100_000)
    with pytest.raises(lapse.CheckpointError, match="not JSON"):
        checkpoint.read_manifest(path)


def test_lengths_are_those_of_the_server(tmp_path):
    """A sum that is right does not suffice: rows would be those of other keys."""
    import zlib

    import safetensors.numpy

    with lapse.Server(3, [1, 2, 3]) as server:
        server.initialize(range(3), lapse.Constant(1))
        server.save(tmp_path / "ck")
        file = next((tmp_path / "ck").glob("step-*/*.safetensors"))
        tensors = safetensors.numpy.load_file(file)
        data = safetensors.numpy.save({**tensors, "lengths": np.array([3, 2, 1])})
        file.write_bytes(data)
        manifest = file.with_name("manifest.json")
        about = json.loads(manifest.read_text())
        about["files"][0] |= {"bytes": len(data), "crc32": zlib.crc32(data)}
        manifest.write_text(json.dumps(about))
        with pytest.raises(lapse.CheckpointError, match="lengths are not those"):
            server.load(tmp_path / "ck")


# Of the applications -------------------------------------------------------------------------------


def parsed(*words):
    parser = options.new_parser("mf", None)
    options.add_shared_options(parser, epochs=5, dim=100)
    return options.parse(parser, [str(word) for word in words])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_metadata_of_applications(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("odd")
    args = parsed("--output", folder, "--resume")
    about = checkpoints.Saved("mf", checkpoints.encode_options(args), 1, history=[{"epoch": 1}]).as_metadata()
    about = json.loads(json.dumps(about))
    about = changed(about, data.draw(st.sampled_from(list(paths_in(about)))), data.draw(JSON))
    step = folder / "checkpoint" / "step-000001"
    step.mkdir(parents=True)
    (step.parent / "CURRENT").write_text("step-000001\n")
    manifest = {
        "format": "lapse checkpoint",
        "version": 1,
        "num_keys": 1,
        "dtype": "f",
        "value_lengths": 1,
        "files": [],
    }
    (step / "manifest.json").write_text(json.dumps({**manifest, "metadata": about}))
    (step.parent / "result.json").write_text(json.dumps(data.draw(JSON)))
    try:
        found, result = checkpoints.find("mf", args)
        merged = checkpoints.take_over(args, found.options)
    except (AppError, lapse.CheckpointError) as error:
        assert str(folder) in str(error)
    else:
        assert vars(merged).keys() == vars(args).keys() and result is None
        assert all(
            type(getattr(merged, name)) in (type(value), type(None), int, float)
            for name, value in vars(args).items()
            if value is not None
        )
