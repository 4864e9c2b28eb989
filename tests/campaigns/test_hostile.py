"""Files made to do harm; and that reading goes through no library that such a file could harm."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import raggedstore as rs
from raggedstore.arrays.rows import _decode
from raggedstore.segment.blocks import check_header
from raggedstore.segment.codec import encode_frame
from raggedstore.segment.foreign import ForeignDataset
from tests.campaigns import hostile
from tests.campaigns.hostile import ATTACKS, Outcome, campaign


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in campaign(list(ATTACKS))}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_runs_no_code_and_is_refused_or_has_no_effect(
    name: str, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[name]

    assert not outcome.faults, outcome.steps
    if outcome.skipped:
        pytest.skip("it takes a superuser to make")


def test_what_is_not_refused_and_what_runs_code_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harmless(folder: Path) -> Path:
        return hostile.store_in(folder)

    def harmful(folder: Path) -> Path:
        monkeypatch.setattr(
            hostile, "read_all", lambda *a, **k: (folder / "outside" / "made").touch()
        )
        return hostile.store_in(folder)

    for make in (harmless, harmful):
        attack = hostile.Attack(make, refused=make is harmless)
        monkeypatch.setitem(ATTACKS, make.__name__, attack)
    there = Path.cwd()

    assert hostile.run_attack("harmless").faults == ["it is not refused"]
    assert hostile.run_attack("harmful").faults == ["a file outside was made or removed"]
    os.chdir(there)


def test_the_payload_of_the_pickles_does_run_where_it_is_unpickled(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "outside").mkdir()
    pickle.loads(hostile.pickled(tmp_path))

    assert (tmp_path / "outside" / "made").exists()


def test_a_plug_in_is_refused_by_the_header_that_blosc2_would_run_python_for() -> None:
    header = bytes([5, 1, 0x25, 4, *[0] * 28])
    check_header(header)
    with pytest.raises(rs.CorruptionError, match="codec"):
        check_header(hostile.with_plugin(header))


def test_a_plug_in_is_not_run_for_arrays_over_pytables_either() -> None:
    frame = encode_frame(np.arange(1024, dtype="i4") // 9, 4, 4, hostile.SMALL)
    (head,) = struct.unpack_from(">i", frame, 11)
    evil = frame[:head] + hostile.with_plugin(frame[head : head + 32]) + frame[head + 32 :]
    part = (slice(0, 9),)

    assert _decode(frame, np.dtype("i4"), (1024,), part).tolist() == [0] * 9
    with pytest.raises(rs.CorruptionError, match="codec"):
        _decode(evil, np.dtype("i4"), (1024,), part)


@pytest.mark.parametrize("fill", [hostile.soft_dataset, hostile.external_dataset, hostile.virtual])
def test_the_child_that_has_libhdf5_follows_no_links(
    fill: Callable[[h5py.File], None], tmp_path: Path
) -> None:
    path = hostile.h5_of(tmp_path, fill)
    with pytest.raises(rs.CorruptionError, match=r"link|other files"):
        ForeignDataset(path, "/x/data").read_into(0, 30, np.empty(60, np.uint8))


def test_the_child_that_has_libhdf5_gives_as_many_bytes_as_are_asked_for(tmp_path: Path) -> None:
    path = hostile.h5_of(tmp_path, lambda h5: hostile.ragged(h5.create_group("x")))
    for size in (58, 62):
        with pytest.raises(rs.CorruptionError, match="where"):
            ForeignDataset(path, "/x/data").read_into(0, 30, np.empty(size, np.uint8))
    with pytest.raises(rs.CorruptionError, match="numbers"):
        with h5py.File(path, "a") as h5:
            hostile.objects(h5.create_group("y"))
        ForeignDataset(path, "/y/x/data").read_into(0, 2, np.empty(16, np.uint8))


#: Reads, verifies and lists what it is given where neither PyTables nor h5py can be imported, and
#: says which shared libraries the process has.
_READ = """
import json, sys
import numpy as np
sys.modules["tables"] = sys.modules["h5py"] = None
import raggedstore.opening, raggedstore.store.repair
def samples():
    for path in sys.argv[1:]:
        opened = raggedstore.opening.open(path)
        yield [{name: np.asarray(value).tolist() for name, value in one.items()} for one in opened]
        for name, field in opened.schema.items():
            opened[name].batch(slice(None)), opened[name][3]
            if field.is_ragged and field.kind == "array":
                opened[name].crop([1, 0], [0, 0], [2, 2])
        if hasattr(opened, "verify"):
            assert opened.verify().ok
        if hasattr(opened, "repair"):
            assert raggedstore.store.repair.repair(opened.path, dry_run=True).ok
read = list(samples())
maps = open("/proc/self/maps").read()
print(json.dumps([read, "hdf5" in maps, "tables" in maps]))
"""


def test_reading_and_verifying_stores_and_files_takes_neither_pytables_nor_libhdf5(
    tmp_path: Path,
) -> None:
    path, store = hostile.single(tmp_path), hostile.store_in(tmp_path)
    # The package itself imports PyTables, for writing and for RaggedEArray; its parts that read do
    # not need it.
    stub = tmp_path / "stub" / "raggedstore"
    stub.mkdir(parents=True)
    source = Path(rs.__file__).parent
    (stub / "__init__.py").write_text(f"__path__ = [{str(source)!r}]\n__version__ = '0'\n")
    done = subprocess.run(
        [sys.executable, "-c", _READ, store, path, hostile.segment_of(store)],
        env={**os.environ, "PYTHONPATH": str(stub.parent)}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read, hdf5, pytables = json.loads(done.stdout)

    want = [
        {name: np.asarray(value).tolist() for name, value in hostile.sample(i).items()}
        for i in range(hostile.SAMPLES)
    ]
    assert read == [want] * 3
    assert not hdf5
    assert not pytables
