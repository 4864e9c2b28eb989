"""What a damaged manifest may need is never removed, and what can be read is never lost."""

from pathlib import Path

import pytest

import raggedstore as rs
from raggedstore.store.manifest import path_of
from raggedstore.store.repair import repair
from raggedstore.store.store import history
from raggedstore.store.vacuum import vacuum

COMMITS = 4  # so that versions 0 to 4 are there


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of a segment for each commit, and files that are loose."""
    with rs.create(tmp_path / "store", {"n": rs.Field("int64")}) as store:
        for i in range(COMMITS):
            with store.writer() as writer:
                writer.append({"n": i})
    for name in ("segments/.tmp-1.h5", f"segments/{'0' * 32}.h5"):
        (tmp_path / "store" / name).write_bytes(b"loose")
    return tmp_path / "store"


def damage(root: Path, version: int) -> bytes:
    """Flip a bit of a manifest; what it was."""
    path = path_of(root, version)
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    return data


def versions(root: Path) -> list[int]:
    return [line.version for line in history(root)]


def read(root: Path, version: int) -> list[int]:
    store = rs.open(root, version=version)
    assert isinstance(store, rs.Store)
    with store:
        return [int(n) for n in store["n"]]


@pytest.mark.parametrize("newest", [2, 3, 4])
def test_damaged_versions_do_not_count_as_kept(root: Path, newest: int) -> None:
    for version in range(newest + 1, COMMITS + 1):
        damage(root, version)

    if newest == COMMITS:
        vacuum(root, 2)
    else:
        with pytest.raises(rs.CorruptionError, match=f"{newest + 1:020d}.json"):
            vacuum(root, 2)

    assert versions(root) == [*range(newest - 1, COMMITS + 1)]
    for version in (newest - 1, newest):
        assert read(root, version) == [*range(version)]


def test_segments_stay_as_long_as_a_damaged_manifest_may_name_them(root: Path) -> None:
    before = sorted((root / "segments").glob("[!.]*"))
    data = damage(root, 4)

    with pytest.raises(rs.CorruptionError, match="may name any segment"):
        vacuum(root, 1)

    assert sorted((root / "segments").iterdir()) == before  # less what was never finished
    path_of(root, 4).write_bytes(data)
    assert read(root, 4) == [0, 1, 2, 3]
    vacuum(root, 1)
    assert versions(root) == [4]
    assert len([*(root / "segments").iterdir()]) < len(before)


def test_a_damaged_version_goes_with_those_of_its_age(root: Path) -> None:
    damage(root, 2)

    vacuum(root, 2)

    assert versions(root) == [3, 4]
    assert read(root, 4) == [0, 1, 2, 3]
    assert not [*root.glob("segments/0000*")]


def test_nothing_is_removed_where_no_version_can_be_read(root: Path) -> None:
    for version in range(COMMITS + 1):
        damage(root, version)
    before = sorted(root.rglob("*"))

    with pytest.raises(rs.CorruptionError, match="nothing was removed"):
        vacuum(root, 1)

    assert sorted(root.rglob("*")) == before


def test_after_a_repair_all_but_its_version_can_be_removed(root: Path) -> None:
    damage(root, 4)

    made = repair(root).version
    vacuum(root, 1)

    assert made is not None and versions(root) == [made]
    assert read(root, made) == [0, 1, 2]
    assert len([*root.glob("segments/*.h5")]) == 3


def test_a_folder_without_any_version_is_left_alone(tmp_path: Path) -> None:
    for name in ("versions", "segments"):
        (tmp_path / name).mkdir()
    mine = tmp_path / "segments/mine.h5"
    mine.write_bytes(b"no part of a store")

    with pytest.raises(rs.NotAStoreError):
        vacuum(tmp_path, 1)

    assert mine.exists()


def test_history_names_a_version_that_cannot_be_read(root: Path) -> None:
    damage(root, 4)

    lines = history(root)

    assert [line.version for line in lines] == [0, 1, 2, 3, 4]
    assert [line.samples for line in lines[:4]] == [0, 1, 2, 3]
    assert [bool(line.damage) for line in lines] == [False] * 4 + [True]
    assert path_of(root, 4).name in lines[4].damage


def test_what_is_no_store_is_left_as_it_is(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(rs.NotAStoreError):
            vacuum(folder, keep=1)
    assert not list(tmp_path.iterdir())
