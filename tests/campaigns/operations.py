"""What campaigns disturb: the operations on a store.

Every operation works in a home folder that `prepare` fills once; it is tried on copies. The sample
that belongs at an index follows from the index, so what a store must hold is said by a number.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import raggedstore as rs
from raggedstore.interop.folders import ImportReport, import_folder
from raggedstore.store import lists
from raggedstore.store.repair import repair
from tests.campaigns.looking import differences, opened

__all__ = ["LONG", "OPERATIONS", "Operation", "sample"]

SCHEMA = {
    "key": rs.Field("int64"),
    "values": rs.Field("int32", (None,)),
    "text": rs.Field("str"),
}
LARGE = 50  # of so many samples the last three span more than a chunk
TEXTS = {f"{folder}/{i}.txt": f"text {i} of {folder}\n" * i for folder in "ab" for i in range(3)}


@lru_cache(1000)
def sample(index: int) -> dict[str, Any]:
    """The sample that belongs at `index`; nobody writes to it."""
    count = 140_000 if index % LARGE >= LARGE - 3 else index % 97
    values = (np.arange(count, dtype=np.int64) * 2_654_435_761 + index).astype(np.int32)
    return {"key": np.int64(index), "values": values, "text": f"sample {index}" * (index % 3)}


def _batch(start: int, stop: int) -> dict[str, Any]:
    rows = [sample(i) for i in range(start, stop)]
    return {name: [row[name] for row in rows] for name in SCHEMA} | {
        "key": np.arange(start, stop, dtype=np.int64)
    }


def _samples(count: int) -> list[dict[str, Any]]:
    return [sample(i) for i in range(count)]


@dataclass(frozen=True)
class Operation:
    """One thing that is done to a store, in its home folder."""

    name: str
    #: Fills the home folder.
    prepare: Callable[[Path], None]
    #: What is tried; it may be tried again, and then does the same again.
    run: Callable[[Path], Any]
    #: Samples that each of its commits adds.
    gains: tuple[int, ...] = ()
    #: Segments that a manifest names itself.
    direct: int = lists.DIRECT
    #: Entered around `run`, and not made to fail.
    around: Callable[[Path], Any] = lambda home: nullcontext()
    #: The first samples of its store, however many; None where they are looked at otherwise.
    samples: Callable[[int], list[dict[str, Any]]] | None = _samples
    #: Whether versions may go.
    forgets: bool = False
    #: Whether the store is damaged before it.
    mends: bool = False
    #: Whether it can be done once only, and whether it was: (home, commits made).
    once: bool = False
    is_done: Callable[[Path, int], bool] = lambda home, made: made > 0
    #: What else is wrong after it: (home, whether it succeeded, what it gave then).
    look: Callable[[Path, bool, Any], list[str]] = lambda home, done, given: []

    def versions(self, before: dict[int, int], made: int) -> dict[int, int]:
        """The versions, and how many samples each has, after the first `made` of its commits."""
        found = {**before}
        for gain in self.gains[:made]:
            newest = max(found, default=-1)
            found[newest + 1] = found.get(newest, 0) + gain
        return found

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The library as this operation wants it."""
        before, lists.DIRECT = lists.DIRECT, self.direct
        try:
            yield
        finally:
            lists.DIRECT = before


# Making and changing a store


def _make(home: Path, commits: list[int]) -> None:
    """A store of one commit for each number of samples."""
    with rs.create(home / "store", SCHEMA) as store:
        for count in commits:
            with store.writer() as writer:
                writer.extend_batch(_batch(len(store), len(store) + count))


def _make_segments(home: Path, count: int) -> None:
    """A store of so many segments of a sample each, and only its last versions."""
    _make(home, [1] * count)
    with opened(home / "store", "a") as store:
        store.vacuum(keep=2)


def _empty(home: Path) -> None:
    home.mkdir(exist_ok=True)


def _create(home: Path) -> None:
    rs.create(home / "store", SCHEMA, metadata={"made": "by a campaign"}).close()


def _append(home: Path, count: int) -> None:
    with opened(home / "store", "a") as store, store.writer() as writer:
        for i in range(len(store), len(store) + count):
            writer.append(sample(i))


def _append_segments(home: Path) -> None:
    """Several segments of several chunks each, in one commit."""
    with opened(home / "store", "a") as store, store.writer(segment_bytes=1) as writer:
        for i in range(len(store), len(store) + 3):
            writer.extend_batch(_batch(i, i + 1))


def _append_twice(home: Path) -> None:
    """A commit in the midst of a writer."""
    with opened(home / "store", "a") as store, store.writer() as writer:
        for i in range(len(store), len(store) + 4):
            writer.append(sample(i))
            if writer.pending == 2:
                writer.commit()


def _compact(home: Path) -> None:
    with opened(home / "store", "a") as store:
        store.compact()


def _make_old(home: Path) -> None:
    """A store with old versions, and loose files of every kind."""
    _make(home, [2, 1, 1, 1])
    with opened(home / "store", "a") as store:
        store.compact()
    for name in ("segments/.tmp-1.h5", f"segments/{'0' * 32}.idx", f"versions/{'0' * 32}.list"):
        (home / "store" / name).write_bytes(b"loose")


def _upkeep(home: Path) -> None:
    """What is done to a store every so often, and the next append."""
    with opened(home / "store", "a") as store:
        store.compact()
        store.vacuum(keep=1)
    _append(home, 1)


@contextmanager
def _reading(home: Path) -> Iterator[None]:
    """Somebody reads an old version, so that vacuum must leave it and mark it."""
    with opened(home / "store", version=2):
        yield


def _vacuum(home: Path) -> None:
    with opened(home / "store", "a") as store:
        store.vacuum(keep=1)


def _export(home: Path) -> None:
    with opened(home / "store") as store:
        store.export(home / "out.h5")


def _look_at_export(home: Path, done: bool, given: None) -> list[str]:
    """The exported file is there whole, or not at all."""
    path, found = home / "out.h5", []
    if path.exists():
        found = differences(rs.open(path), _samples(5))
    elif done:
        found = ["nothing was exported"]
    return found


def _make_texts(home: Path) -> None:
    for name, text in TEXTS.items():
        (home / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "texts" / name).write_text(text)
    import_folder(home / "texts/a", home / "store", kind="text", per="file", append=True)


def _import(home: Path) -> Any:
    return import_folder(
        home / "texts", home / "store", kind="text", per="file", append=True, commit_every=16
    )


def _look_at_import(home: Path, done: bool, given: ImportReport | None) -> list[str]:
    """Each file came once, exactly; or at most once, and what is missing is said to be."""
    with opened(home / "store") as store:
        rows = [(row["path"], row["text"]) for row in store]
    found = [f"{path} came twice" for path, n in Counter(p for p, _ in rows).items() if n > 1]
    want = {f"{i}.txt": TEXTS[f"a/{i}.txt"] for i in range(3)} | TEXTS
    found += [f"{path} is not exact" for path, text in rows if want.get(path) != text]
    missing = want.keys() - dict(rows)
    said = {skipped.name for skipped in given.skipped} if given is not None else set()
    missing = {path for path in missing if not {path, path.partition("/")[0]} & said}
    if missing and done:
        found.append(f"{', '.join(sorted(missing))} missing, and not said to be")
    return found


DAMAGED = (LARGE, 20, 10)  # samples of the segments that are repaired, and one that is whole


def _make_damaged(home: Path) -> None:
    """Three segments: one with damage, one without an .idx, and one that is whole."""
    _make(home, [*DAMAGED])
    with opened(home / "store") as store:
        damaged, unindexed, _ = (home / "store/segments" / e.file for e in store.manifest.segments)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle of a file lie the values of a large sample
    damaged.write_bytes(data)
    unindexed.with_suffix(".idx").unlink()
    report = repair(home / "store", dry_run=True)
    kept = report.positions().tolist()
    assert report.lost and 0 < len(kept) < report.samples
    (home / "kept.json").write_text(json.dumps(kept))


def _repair(home: Path) -> Any:
    with opened(home / "store", "a") as store:
        return store.repair()


def _look_at_repair(home: Path, done: bool, given: Any) -> list[str]:
    """The repaired version is there with all that can be kept, or not at all."""
    kept = json.loads((home / "kept.json").read_text())
    with opened(home / "store") as store:
        if store.version > len(DAMAGED):
            return differences(store, [sample(i) for i in kept])
    return ["nothing was repaired"] if done else []


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("create", _empty, _create, (0,), once=True),
        Operation("append", lambda h: _make(h, [2, 1]), lambda h: _append(h, 2), (2,)),
        Operation("append segments", lambda h: _make(h, [LARGE - 3]), _append_segments, (3,)),
        # What a manifest may name itself is exceeded, so that the commit writes a list
        Operation(
            "append list", lambda h: _make_segments(h, 4), lambda h: _append(h, 1), (1,), direct=2
        ),
        Operation(
            "append 257th", lambda h: _make_segments(h, 256), lambda h: _append(h, 1), (1,)
        ),
        Operation("commit twice", lambda h: _make(h, [3]), _append_twice, (2, 2)),
        Operation("compact", lambda h: _make(h, [2, 1, 3]), _compact, (0,)),
        Operation("vacuum", _make_old, _vacuum, around=_reading, forgets=True),
        Operation("upkeep", lambda h: _make(h, [2, 1, 3]), _upkeep, (0, 1), forgets=True),
        Operation(
            "export", lambda h: _make(h, [3, 2]), _export, look=_look_at_export, once=True,
            is_done=lambda home, made: (home / "out.h5").exists(),
        ),
        Operation("import", _make_texts, _import, look=_look_at_import, samples=None),
        Operation(
            "repair", _make_damaged, _repair, (0,), look=_look_at_repair, samples=None, mends=True
        ),
    )
}  # fmt: skip

#: Those that take too long for a short campaign.
LONG = {"append 257th"}
