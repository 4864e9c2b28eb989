"""Statistics kept for each segment: read once, checked before they are believed, swept away."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.store import files
from raggedstore.store.lists import seal

SCHEMA = {"mel": rs.Field("f4", (None, 8)), "label": rs.Field("i8")}


def sample(i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    return {"mel": rng.normal(i, 1, (50, 8)).astype("f4"), "label": i}


def append(store: rs.Store, first: int, last: int) -> None:
    with store.writer() as writer:
        writer.extend(sample(i) for i in range(first, last))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with rs.create(tmp_path / "store", SCHEMA) as store:
        for first in range(0, 40, 10):
            append(store, first, first + 10)
    return tmp_path / "store"


def decoded(store: rs.Store) -> int:
    context = store._snapshot.context
    return context.chunks_decoded + context.blocks_decoded


def kept(path: Path) -> list[Path]:
    return sorted((path / "segments").glob("*.stats"))


def wanted(count: int) -> np.ndarray:
    values = np.concatenate([sample(i)["mel"] for i in range(count)]).astype("f8")
    return np.array([values.mean(axis=0), values.std(axis=0)])


def found(store: rs.Store) -> np.ndarray:
    stats = store["mel"].stats(0)
    return np.array([stats.mean, stats.std])


def test_an_append_costs_the_reading_of_the_new_data_alone(path: Path) -> None:
    with rs.open(path) as store:
        found(store)
        all_four = decoded(store)
    with rs.open(path, "a") as store:
        found(store)
        assert len(kept(path)) == 4
        append(store, 40, 50)
        assert decoded(store) == 0
        np.testing.assert_allclose(found(store), wanted(50))
        assert 0 < decoded(store) <= all_four / 4
    with rs.open(path) as store:
        np.testing.assert_allclose(found(store), wanted(50))
        assert decoded(store) == 0


def test_each_version_has_its_own(path: Path) -> None:
    with rs.open(path, "a") as store:
        found(store)
    for version in range(1, 5):
        with rs.open(path, version=version) as store:
            np.testing.assert_allclose(found(store), wanted(10 * version))
            assert decoded(store) == 0


def test_a_reader_writes_nothing_and_remembers(path: Path) -> None:
    with rs.open(path) as reader, rs.open(path, "a") as writer:
        found(reader)
        once = decoded(reader)
        np.testing.assert_allclose(found(reader), wanted(40))
        assert decoded(reader) == once > 0
        append(writer, 40, 50)
        reader.refresh()
        np.testing.assert_allclose(found(reader), wanted(50))
        assert 0 < decoded(reader) < once
    assert not kept(path)


def test_fields_axes_and_nan_are_kept_apart(path: Path) -> None:
    with rs.open(path, "a") as store:
        every = [
            (store["mel"].stats(), store["mel"].stats(0), store["label"].stats()) for _ in range(2)
        ][-1]
        store["mel"].stats(0, skipna=True)
    with rs.open(path) as store:
        again = (store["mel"].stats(), store["mel"].stats(0), store["label"].stats())
        assert decoded(store) == 0
    assert again[0] == every[0] and again[2] == every[2]
    np.testing.assert_array_equal(again[1].max, every[1].max)
    assert again[2].sum == sum(range(40))
    rows = json.loads(kept(path)[0].read_bytes())["stats"]["moments"]
    assert len(rows) == 4


def rewritten(file: Path, change: Any) -> None:
    value = json.loads(file.read_bytes())["stats"]
    change(value)
    file.write_bytes(seal("stats", value))


DAMAGES = {
    "a flipped bit": lambda f, other: f.write_bytes(
        f.read_bytes()[:200] + bytes([f.read_bytes()[200] ^ 1]) + f.read_bytes()[201:]
    ),
    "cut short": lambda f, other: f.write_bytes(f.read_bytes()[:-20]),
    "empty": lambda f, other: f.write_bytes(b""),
    "not of this segment": lambda f, other: f.write_bytes(other.read_bytes()),
    "too short": lambda f, other: rewritten(
        f, lambda value: value["moments"][0].__setitem__(3, "AAAA")
    ),
    "no base64": lambda f, other: rewritten(
        f, lambda value: value["moments"][0].__setitem__(3, "ü*")
    ),
    "no rows": lambda f, other: rewritten(f, lambda value: value.update(moments=[[1], 2])),
    "no dict": lambda f, other: f.write_bytes(seal("stats", [1])),
    "a link": lambda f, other: (f.unlink(), f.symlink_to(other)),
    "a folder": lambda f, other: (f.unlink(), f.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_anew_and_never_believed(path: Path, damage: str) -> None:
    with rs.open(path, "a") as store:
        want = found(store)
        DAMAGES[damage](kept(path)[0], kept(path)[1])
        assert store.verify().ok
    for _ in range(2):
        with rs.open(path, "a") as store:
            np.testing.assert_array_equal(found(store), want)
            read = decoded(store)
    assert read == 0 or damage == "a folder"


def test_where_it_cannot_be_written_it_is_done_without(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_file", refuse)
    with rs.open(path, "a") as store:
        np.testing.assert_allclose(found(store), wanted(40))
    assert not kept(path)
    assert not list((path / "segments").glob(".tmp*"))


def test_what_was_read_unchecked_is_not_kept(path: Path) -> None:
    with rs.open(path, "a", checksums=False) as store:
        np.testing.assert_allclose(found(store), wanted(40))
    assert not kept(path)


def test_vacuum_removes_it_with_its_segment(path: Path) -> None:
    with rs.open(path, "a") as store:
        found(store)
        stray = path / "segments" / f"{'0' * 32}.stats"
        stray.write_bytes(b"")
        assert stray in store.vacuum(keep=1)
        assert len(kept(path)) == 4
        store.compact()
        np.testing.assert_allclose(found(store), wanted(40))
        assert len(kept(path)) == 5
        store.vacuum(keep=1)
        (left,) = kept(path)
        assert left.stem == store.manifest.recent[0].file[:-3]
        assert store.verify().ok


def test_many_groups_are_not_kept(tmp_path: Path) -> None:
    with rs.create(tmp_path / "s", {"image": rs.Field("u1", (100, 300))}) as store:
        with store.writer() as writer:
            writer.append({"image": np.ones((100, 300), "u1")})
        assert store["image"].stats(()).mean.shape == (100, 300)
        assert store["image"].stats(0).mean.shape == (300,)
    (file,) = kept(tmp_path / "s")
    assert len(json.loads(file.read_bytes())["stats"]["moments"]) == 1
