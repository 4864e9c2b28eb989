"""Filters that only libhdf5 knows, in a child process."""

import gc
import os
import pickle
import signal
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

import raggedstore as rs
from raggedstore.segment import foreign
from raggedstore.segment.foreign import ForeignDataset

ROWS = 20_000
VALUES = np.arange(ROWS, dtype="i4") // 5


def made(path: Path, shape: tuple[int, ...] = (ROWS,), **options: object) -> Path:
    with h5py.File(path, "w") as h5:
        h5.create_dataset("x/data", data=VALUES.reshape(shape), **options)
    return path


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((ROWS,), {"chunks": (1000,), **hdf5plugin.Bitshuffle()}),
        ((ROWS,), {"chunks": (3000,), **hdf5plugin.Zstd()}),
        ((ROWS,), {"chunks": (1000,), "compression": "lzf"}),
        ((ROWS,), {"chunks": (1000,), "shuffle": True, **hdf5plugin.LZ4()}),
        ((100, 200), {"chunks": (10, 50), **hdf5plugin.Blosc2()}),
        ((100, 200), {"chunks": (10, 50), **hdf5plugin.Blosc()}),
    ],
)
def test_any_filter_reads_as_h5py_reads_it(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, object]
) -> None:
    path = made(tmp_path / "a.h5", shape, **options)

    opened = rs.open(path)

    np.testing.assert_array_equal(
        opened["x"].batch(slice(None)), VALUES.reshape(shape), strict=True
    )
    wanted = [99, 3, 3, 50]
    np.testing.assert_array_equal(opened["x"].batch(wanted), VALUES.reshape(shape)[wanted])
    again = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(again["x"][7], VALUES.reshape(shape)[7])


def test_without_h5py_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "a.h5", chunks=(1000,), **hdf5plugin.Zstd())
    monkeypatch.setattr(foreign.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(rs.MissingExtraError, match=r"raggedstore\[h5py\]"):
        rs.open(path)


def test_a_child_that_dies_is_an_error_and_the_next_call_has_another(tmp_path: Path) -> None:
    path = made(tmp_path / "a.h5", chunks=(1000,), **hdf5plugin.Zstd())
    dataset = ForeignDataset(path, "/x/data")
    out = np.empty(4000, np.uint8)
    dataset.read_into(0, 1000, out)
    os.kill(dataset._child.pid, signal.SIGKILL)
    with pytest.raises(rs.CorruptionError, match="died"):
        dataset.read_into(0, 1000, out)
    dataset.read_into(1000, 2000, out)
    np.testing.assert_array_equal(out.view("i4"), VALUES[1000:2000])


def test_damage_is_an_error(tmp_path: Path) -> None:
    path = made(tmp_path / "a.h5", chunks=(1000,), fletcher32=True, **hdf5plugin.Zstd())
    with h5py.File(path) as h5:
        info = h5["x/data"].id.get_chunk_info(3)
    data = bytearray(path.read_bytes())
    data[info.byte_offset + info.size // 2] ^= 1
    path.write_bytes(data)
    opened = rs.open(path)
    assert opened["x"][10] == VALUES[10]
    with pytest.raises(rs.CorruptionError, match="field 'x'"):
        opened["x"][3500]


def test_a_fork_has_a_child_of_its_own_and_leaves_its_parents_alone(tmp_path: Path) -> None:
    path = made(tmp_path / "a.h5", chunks=(1000,), **hdf5plugin.Zstd())
    opened = rs.open(path, budget=0)
    assert opened["x"][10] == VALUES[10]
    pid = os.fork()
    if pid == 0:
        ok = opened["x"][5000] == VALUES[5000]
        del opened
        gc.collect()
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert opened["x"][6000] == VALUES[6000]


def test_the_child_ends_with_its_dataset(tmp_path: Path) -> None:
    path = made(tmp_path / "a.h5", chunks=(1000,), **hdf5plugin.Zstd())
    dataset = ForeignDataset(path, "/x/data")
    dataset.read_into(0, 10, np.empty(40, np.uint8))
    child = dataset._child
    assert child.poll() is None
    del dataset
    gc.collect()
    assert child.poll() is not None
