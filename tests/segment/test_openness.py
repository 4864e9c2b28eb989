"""A segment is ordinary HDF5: tools that know nothing of raggedstore read it."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import tables

import raggedstore as rs
from raggedstore.segment.profiles import PROFILES

SCHEMA = {
    "audio": rs.Field("int16", (None,)),
    "image": rs.Field("uint8", (None, None, 3)),
    "big": rs.Field(">f8", (None, 2)),
    "half": rs.Field("float16", (None,)),
    "wave": rs.Field("complex64", (None,)),
    "flag": rs.Field("bool", (None,)),
    "text": rs.Field("str"),
    "label": rs.Field("int64"),
    "corner": rs.Field("float32", (2, 2)),
}


def sample(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    return {
        "audio": rng.integers(-999, 999, i % 50).astype("int16"),
        "image": rng.integers(0, 256, (i % 4, i % 3, 3)).astype("uint8"),
        "big": rng.normal(size=(i % 5, 2)).astype(">f8"),
        "half": np.arange(i % 6).astype("float16"),
        "wave": (np.arange(i % 3) * (1 + 2j)).astype("complex64"),
        "flag": np.arange(i % 7) % 2 == 0,
        "text": "é" * (i % 4) + str(i),
        "label": i,
        "corner": np.full((2, 2), i, "float32"),
    }


SAMPLES = [sample(i) for i in range(300)]


def flattened(name: str) -> np.ndarray:
    """All values of a field, one sample after another."""
    if name == "text":
        return np.frombuffer("".join(s["text"] for s in SAMPLES).encode(), np.uint8)
    if not SCHEMA[name].is_ragged:
        return np.array([s[name] for s in SAMPLES], SCHEMA[name].dtype)
    return np.concatenate([s[name].reshape(-1) for s in SAMPLES])


@pytest.fixture(scope="module", params=PROFILES)
def segment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open") / "store"
    store = rs.create(path, SCHEMA, profile=request.param)
    with store.writer() as writer:
        writer.extend(SAMPLES)
    return next((path / "segments").glob("*.h5"))


def check(read: Any) -> None:
    """Hold ``read(field, dataset)`` against the samples."""
    for name, field in SCHEMA.items():
        values = read(name, "data")
        want = flattened(name)
        stored = np.dtype("uint8") if field.dtype == bool else field.dtype
        assert values.dtype.newbyteorder("=") == stored.newbyteorder("=")
        np.testing.assert_array_equal(values, want)
        if field.is_ragged:
            spans, shapes = read(name, "data_start_and_stop"), read(name, "data_shape")
            assert spans.dtype == shapes.dtype == np.dtype("<i8")
            for (start, stop), shape, one in zip(spans, shapes, SAMPLES, strict=True):
                value = one[name]
                if name == "text":
                    value = np.frombuffer(value.encode(), np.uint8)
                np.testing.assert_array_equal(values[start:stop].reshape(shape), value)


def test_h5py_with_hdf5plugin_reads_every_dataset(segment: Path) -> None:
    assert hdf5plugin.FILTERS["blosc2"] == 32026
    with h5py.File(segment, "r") as file:
        assert file["big/data"].dtype == np.dtype(">f8")
        check(lambda name, dataset: file[name][dataset][()])


def test_pytables_reads_every_dataset(segment: Path) -> None:
    with tables.open_file(str(segment), "r") as file:
        check(lambda name, dataset: file.get_node(f"/{name}/{dataset}").read())


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump (hdf5-tools) is not installed")
def test_h5dump_prints_the_values(segment: Path) -> None:
    for name in ("label", "audio", "image"):
        command = ["h5dump", "-y", "-w", "0", "-d", f"/{name}/data", str(segment)]
        env = {**os.environ, "HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        body = re.search(r"DATA \{(.*?)\}", done.stdout, re.DOTALL)
        assert body is not None, done.stdout + done.stderr
        values = [int(word) for word in re.findall(r"-?\d+", body[1])]
        assert values == flattened(name).tolist()


def test_a_segment_explains_itself_and_holds_no_pickle(segment: Path) -> None:
    with h5py.File(segment, "r") as file:
        schema = rs.Schema.from_json(json.loads(file.attrs["raggedstore_schema"]))
        assert schema == rs.Schema(SCHEMA)
        attributes = dict(file.attrs)
        file.visititems(lambda _, node: attributes.update(node.attrs))
    for value in attributes.values():
        assert isinstance(value, (np.integer, bytes, np.bytes_))
        assert not bytes(value).startswith(b"\x80")
