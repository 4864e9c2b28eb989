"""No damaged or hostile manifest is believed, and no old version is taken for the newest."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import raggedstore as rs
from raggedstore.segment.file import Descriptor
from raggedstore.segment.table import checksum
from raggedstore.store import files, vacuum
from raggedstore.store import manifest as manifests
from raggedstore.store.manifest import Manifest, list_versions, newest_version, path_of


@pytest.fixture
def store(tmp_path: Path) -> rs.Store:
    store = rs.create(tmp_path / "store", {"a": rs.Field("i4", (None,))}, metadata={"x": [1, 2]})
    with store.writer() as writer:
        writer.append({"a": [1, 2, 3]})
    return store


def test_a_manifest_reads_back_as_it_was_written(store: rs.Store) -> None:
    assert Manifest.loads(store.manifest.dumps(), store.path) == store.manifest


def test_a_manifest_without_lists_is_read(store: rs.Store) -> None:
    value = json.loads(store.manifest.dumps())["manifest"]
    assert value.pop("lists") == []
    body = json.dumps(value).encode()
    data = b'{"checksum":"%016x","manifest":%s}\n' % (checksum(body), body)

    assert Manifest.loads(data, store.path) == store.manifest


def test_every_flipped_byte_is_refused(store: rs.Store) -> None:
    data = store.manifest.dumps()
    for i in range(len(data)):
        damaged = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises((rs.CorruptionError, rs.FormatError)):
            Manifest.loads(damaged, store.path)
        with pytest.raises((rs.CorruptionError, rs.FormatError)):
            Manifest.loads(data[:i], store.path)


def signed(store: rs.Store, **changes: Any) -> bytes:
    """A manifest with `changes` and a checksum that holds."""
    value = {**json.loads(store.manifest.dumps())["manifest"], **changes}
    body = json.dumps(value).encode()
    return b'{"checksum":"%016x","manifest":%s}\n' % (checksum(body), body)


@pytest.mark.parametrize(
    "name",
    ["../" + "a" * 32 + ".h5", "/etc/passwd", "a.h5", "A" * 32 + ".h5", "a" * 32 + ".h5\n", 7],
)
def test_a_segment_name_cannot_lead_out_of_the_store(store: rs.Store, name: Any) -> None:
    entry = [name, 1, 1, 1, 1, "", ""]
    with pytest.raises(rs.FormatError, match="segment entry"):
        Manifest.loads(signed(store, segments=[entry]), store.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"schema": []},
        {"schema": [{"name": "a", "dtype": "O"}]},
        {"compression": {}},
        {"segments": [["a" * 32 + ".h5", -1, 1, 1, 1, "", ""]]},
        {"segments": [["a" * 32 + ".h5", 2**63, 1, 1, 1, "", ""]]},
        {"segments": 3},
        {"lists": 3},
        {"lists": [["a" * 32 + ".list", 1, 1, 1, 1]]},
        {"lists": [["a" * 32 + ".list", 1, -1, 1, 1, 1]]},
        {"metadata": None},
        {"version": None},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    store: rs.Store, changes: dict[str, Any]
) -> None:
    with pytest.raises(rs.FormatError):
        Manifest.loads(signed(store, **changes), store.path)


def test_a_manifest_under_another_version_s_name_is_refused(store: rs.Store) -> None:
    versions = store.path / "versions"
    (versions / f"{9:020d}.json").write_bytes((versions / f"{1:020d}.json").read_bytes())

    with pytest.raises(rs.CorruptionError, match="holds the manifest of version 1"):
        rs.open(store.path)


def test_a_manifest_that_is_a_symbolic_link_is_refused(store: rs.Store) -> None:
    path = path_of(store.path, 1)
    path.rename(store.path / "elsewhere.json")
    path.symlink_to(store.path / "elsewhere.json")

    with pytest.raises(rs.CorruptionError, match="symbolic link"):
        rs.open(store.path)


class Versions:
    """A folder of empty manifests, and what may be done to it; locks and vacuum are the real ones.

    `newest` is the last version that was made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "versions").mkdir()
        self.newest = -1
        self.readers: list[Descriptor] = []

    def commit(self) -> None:
        self.newest += 1
        path_of(self.root, self.newest).touch()

    def read(self) -> None:
        self.readers.append(Descriptor(path_of(self.root, self.newest)))
        files.lock_shared(self.readers[-1])

    def leave(self) -> None:
        for reader in self.readers:
            reader.close()
        self.readers.clear()

    def vacuum(self) -> None:
        vacuum._remove_versions(self.root, list_versions(self.root)[:-1])

    def half_a_vacuum(self) -> None:
        """Vacuum that dies on its way, past the first version that is read."""
        real = files.lock_exclusive

        def lock(file: Descriptor) -> bool:
            if last:
                raise InterruptedError
            free = real(file)
            last.extend([] if free else [file])
            return free

        last: list[Descriptor] = []
        with pytest.MonkeyPatch.context() as patched, suppress(InterruptedError):
            patched.setattr(files, "lock_exclusive", lock)
            self.vacuum()

    def sweep(self) -> None:
        """Remove the marks of versions that are gone."""
        for path in (self.root / "versions").glob("*.passed"):
            if not path.with_suffix(".json").exists():
                path.unlink()

    def act(self, actions: str) -> None:
        for action in actions.split():
            getattr(self, action)()


BEFORE = [
    "commit commit commit commit",
    "commit commit read commit commit vacuum",
    "commit commit read commit commit read commit vacuum",
    "commit commit read commit commit half_a_vacuum",
    "commit read commit vacuum leave",
]
DURING = [
    "commit vacuum",
    "read commit commit vacuum",
    "leave vacuum sweep",
    "commit leave vacuum sweep",
    "half_a_vacuum",
]


@contextmanager
def at_looks(actions: dict[int, str], versions: Versions) -> Iterator[None]:
    """Have things done just before the nth look at a name, or at the folder."""
    looks = {name: getattr(os, name) for name in ("lstat", "listdir")}
    count, acting = 0, False

    def interrupted(name: str) -> Any:
        def look(path: Any) -> Any:
            nonlocal count, acting
            if not acting:  # what is done looks at names itself
                acting = True
                versions.act(actions.get(count, ""))
                count, acting = count + 1, False
            return looks[name](path)

        return look

    with pytest.MonkeyPatch.context() as patched:
        for name in looks:
            patched.setattr(manifests.os, name, interrupted(name))
        yield


@pytest.mark.parametrize("before", BEFORE)
def test_the_newest_version_is_never_older_than_the_newest_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    monkeypatch.setattr(files, "sync_folder", lambda path: None)  # nothing here dies for good
    looks = range(4)
    single = [{i: act} for i in looks for act in DURING]
    double = [
        {i: one, j: two}
        for i, j in itertools.combinations(looks, 2)
        for one, two in itertools.product(DURING, repeat=2)
    ]
    trials = itertools.product([None, 1, 3], [{}, *single, *double])
    for number, (hint, during) in enumerate(trials):
        root = tmp_path / str(number)
        root.mkdir()
        versions = Versions(root)
        versions.act(before)
        asked = versions.newest
        with at_looks(during, versions):
            found = newest_version(root, None if hint is None else min(hint, asked))

        assert asked <= found <= versions.newest, (hint, during)
        versions.leave()
        shutil.rmtree(root)


def test_a_reader_of_a_version_that_vacuum_passed_over_finds_the_newest(store: rs.Store) -> None:
    reader = rs.open(store.path)
    assert isinstance(reader, rs.Store)
    for i in range(20):
        with store.writer() as writer:
            writer.append({"a": [i]})
    store.vacuum(keep=1)
    assert store.versions() == [1, 21]

    assert newest_version(store.path, 1) == 21
    assert reader.refresh() == 21
    store.vacuum(keep=1)
    assert {path.name for path in (store.path / "versions").iterdir()} == {f"{21:020d}.json"}


def test_with_a_hint_the_folder_is_not_listed(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(path: Any) -> list[str]:
        raise AssertionError("the folder was listed")

    monkeypatch.setattr(manifests.os, "listdir", listed)
    reader = rs.Store(store.path, version=0)
    for i in range(5):
        with store.writer() as writer:
            writer.append({"a": [i]})

    assert reader.refresh() == 6


def test_other_files_in_the_folder_are_no_versions(store: rs.Store) -> None:
    for name in (f"{7:020d}.list", f"{8:020d}.passed", f"{9:019d}.json", "٣" * 20 + ".json"):
        (store.path / "versions" / name).touch()

    assert store.versions() == [0, 1]
