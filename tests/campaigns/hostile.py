"""Files as somebody would make them who wants to do harm; what each must come to.

    python -m tests.campaigns.hostile [--long] [--only NAME]

An attack makes a store or a single file in which every checksum and digest holds, since whoever
makes a file can make those too. Then everything is done with it that people do: it is opened,
read, verified, listed by the commands, appended to, compacted, repaired, vacuumed and exported.
An attack that is to be refused must not read; one that can be ignored must read as if it were not
there. Either way nothing but raggedstore's own errors may come, no code may run, no file outside
may be touched, and time and memory stay bounded.

The short form opens and reads, and does two other things with each attack; `--long` does all of
them.

Attacks run in a child process with 1.5 GiB of address space above what it begins with and an alarm
for each step, so that a crash, a hang and memory that explodes are found like any other fault.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tables
import xxhash

import raggedstore as rs
from raggedstore.cli import main as command
from raggedstore.segment.appended import MAGIC as APPENDED
from raggedstore.segment.appended import TAIL
from raggedstore.segment.codec import encode_frame
from raggedstore.segment.table import ENTRY, MAGIC, DatasetTable, SegmentTable, checksum
from raggedstore.store.lists import ListEntry, SegmentEntry, dump_list, seal, unseal
from raggedstore.store.manifest import path_of
from tests.campaigns.child import alarm, answers, serve
from tests.campaigns.table import conclude

__all__ = ["ATTACKS", "Outcome", "campaign"]

MEMORY = 3 * 2**29  # address space of a child above what it begins with
SECONDS = 120  # for one step; the machine may be busy
SAMPLES = 12
SMALL = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=1024)
FIELDS = {
    "audio": rs.Field("int16", (None,)),
    "image": rs.Field("uint8", (None, None, 3)),
    "text": rs.Field("str"),
    "label": rs.Field("int32"),
}


def sample(index: int) -> dict[str, Any]:
    """The sample that belongs at `index`."""
    rng = np.random.default_rng(index)
    return {
        "audio": rng.integers(0, 99, 500 + index).astype("i2"),
        "image": rng.integers(0, 9, (index % 4, 5, 3)).astype("u1"),
        "text": f"sample {index} äöü",
        "label": np.int32(index),
    }


# Attacks


@dataclass(frozen=True)
class Attack:
    """How it is made, in an empty folder; and what must come of it."""

    make: Callable[[Path], Path | None]  #: gives what is to be opened; None where it can't be made
    refused: bool
    group: str | None = None


ATTACKS: dict[str, Attack] = {}
Make = Callable[[Path], Path | None]


def refused(make: Make) -> Make:
    """An attack that must not read."""
    ATTACKS[make.__name__] = Attack(make, refused=True)
    return make


def ignored(make: Make) -> Make:
    """An attack that must read as if it were not there."""
    ATTACKS[make.__name__] = Attack(make, refused=False)
    return make


def each(family: str, attacks: dict[str, Callable[[Any], Any]], apply: Any) -> None:
    """Attacks that differ in one function only, which `apply` is given besides the folder."""
    for name, change in attacks.items():
        ATTACKS[f"{family}: {name}"] = Attack(partial(_apply, apply, change), refused=True)


def _apply(apply: Any, change: Any, folder: Path) -> Path | None:
    made: Path | None = apply(folder, change)
    return made


@cache
def template() -> tempfile.TemporaryDirectory[str]:
    """A folder with a store and what it exports; one for each process."""
    made = tempfile.TemporaryDirectory(prefix="hostile-")
    root = Path(made.name) / "store"
    with rs.create(root, FIELDS, profile=SMALL) as store:
        with store.writer() as writer:
            writer.extend(sample(i) for i in range(SAMPLES))
        store.export(root.with_name("single.h5"))
    return made


def store_in(folder: Path) -> Path:
    """A store with one segment and nothing wrong."""
    return Path(shutil.copytree(Path(template().name) / "store", folder / "store"))


def single(folder: Path) -> Path:
    """An exported file with nothing wrong."""
    return Path(shutil.copy(Path(template().name) / "single.h5", folder))


# Making digests hold


def body_of(root: Path) -> dict[str, Any]:
    """What the newest manifest says."""
    with rs.open(root) as store:
        path = path_of(root, store.version)
    value = unseal("manifest", path.read_bytes())
    assert isinstance(value, dict)
    return value


def sealed(kind: str, body: bytes) -> bytes:
    """A manifest's or list's file of any bytes, its checksum right."""
    return b'{"checksum":"%016x","%s":%s}\n' % (checksum(body), kind.encode(), body)


def manifest_of(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A store whose newest manifest is changed: `change` alters the dict, or gives new bytes."""
    root = store_in(folder)
    body = body_of(root)
    new = change(body)
    text = new if isinstance(new, bytes) else json.dumps(body).encode()
    path_of(root, 1).write_bytes(sealed("manifest", text))
    return root


def set_entry(root: Path, change: Callable[[SegmentEntry], SegmentEntry]) -> None:
    """Change what the newest manifest says of the only segment."""
    body = body_of(root)
    body["segments"] = [change(SegmentEntry(*row)).to_json() for row in body["segments"]]
    path_of(root, body["version"]).write_bytes(seal("manifest", body))


def segment_of(root: Path) -> Path:
    """The only segment."""
    [path] = (root / "segments").glob("*.h5")
    return path


def agree(root: Path) -> Path:
    """Have the manifest agree with whatever the segment and its .idx now are."""
    path = segment_of(root)

    def change(entry: SegmentEntry) -> SegmentEntry:
        new = {"bytes": path.stat().st_size, "digest": digest(path)}
        if path.with_suffix(".idx").exists():
            index = path.with_suffix(".idx")
            new |= {"index_bytes": index.stat().st_size, "index_digest": digest(index)}
        return replace(entry, **new)

    set_entry(root, change)
    return root


def digest(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def index_bytes(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    """A store whose .idx has other bytes before its checksum, which holds."""
    root = store_in(folder)
    path = segment_of(root).with_suffix(".idx")
    body = change(path.read_bytes()[:-8])
    path.write_bytes(body + struct.pack("<Q", checksum(body)))
    return agree(root)


def index_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A store whose .idx has another header: `change` alters the dict, or gives new bytes."""

    return index_bytes(folder, partial(with_header, change=change))


def with_header(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A chunk table's bytes with another header."""
    (length,) = struct.unpack_from("<Q", data, 8)
    header = json.loads(data[16 : 16 + length])
    new = change(header)
    text = new if isinstance(new, bytes) else json.dumps(header).encode()
    return data[:8] + struct.pack("<Q", len(text)) + text + data[16 + length :]


def table_of(root: Path) -> SegmentTable:
    """The chunk table of the only segment."""
    path = segment_of(root)
    index = path.with_suffix(".idx").read_bytes()
    return SegmentTable.loads(index, file_bytes=path.stat().st_size)


def put_table(root: Path, table: SegmentTable) -> Path:
    """Give the segment that chunk table."""
    path = segment_of(root)
    path.with_suffix(".idx").write_bytes(replace(table, file_bytes=path.stat().st_size).dumps())
    return agree(root)


def dataset_of(
    folder: Path, change: Callable[[DatasetTable], DatasetTable], where: str = "audio/data"
) -> Path:
    """A store in whose chunk table one dataset is changed."""
    root = store_in(folder)
    table = table_of(root)
    name, column = where.split("/")
    table.datasets[name][column] = change(table.datasets[name][column])
    return put_table(root, table)


def with_entries(**fields: int | None) -> Callable[[DatasetTable], DatasetTable]:
    """Give the first chunk other places or sizes."""

    def change(dataset: DatasetTable) -> DatasetTable:
        entries = dataset.entries.copy()
        for name, value in fields.items():
            entries[name][0] = value
        return replace(dataset, entries=entries)

    return change


def put_frame(root: Path, where: str, frame: bytes, **changes: Any) -> Path:
    """Have the only chunk of a dataset be `frame`, put at the end of the segment."""
    name, column = where.split("/")
    table, path = table_of(root), segment_of(root)
    dataset = table.datasets[name][column]
    entries = dataset.entries[:1].copy()
    entries[0] = (path.stat().st_size, len(frame), checksum(frame))
    with open(path, "ab") as file:
        file.write(frame)
    table.datasets[name][column] = replace(dataset, entries=entries, blocks=None, **changes)
    return put_table(root, table)


def put_rows(root: Path, where: str, rows: np.ndarray) -> Path:
    """Have a dataset hold other rows."""
    name, column = where.split("/")
    dataset = table_of(root).datasets[name][column]
    raw = np.zeros((dataset.chunk_rows, *dataset.column.row_shape), dataset.column.dtype)
    raw[: len(rows)] = rows
    assert len(dataset.entries) == 1
    frame = encode_frame(raw, raw.itemsize, dataset.column.row_nbytes, SMALL)
    return put_frame(root, where, frame)


# Manifests


def set_key(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Set what lies at a path of keys."""

    def change(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = to

    return change


def in_segment(place: int, to: Any) -> Callable[[dict[str, Any]], None]:
    return set_key("segments", 0, place, to=to)


def in_schema(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Change what is said of the first field."""

    def change(body: dict[str, Any]) -> None:
        body["schema"][0].update(changes)
        if isinstance(changes.get("name"), str) and "compression" in body:
            body["compression"][changes["name"]] = "fast"

    return change


def text_with(old: str, new: str) -> Callable[[dict[str, Any]], bytes]:
    """Replace a piece of the JSON text."""

    def change(body: dict[str, Any]) -> bytes:
        text = json.dumps(body)
        assert old in text
        return text.replace(old, new, 1).encode()

    return change


DEEP = "[" * 200_000 + "]" * 200_000
NAMES = {
    "dots": "../../../etc/passwd",
    "absolute": "/etc/passwd",
    "folder": "a/b.h5",
    "nul": "0" * 32 + ".h5\0",
    "line break": "0" * 32 + ".h5\n",
    "arabic digits": "٠" * 32 + ".h5",
    "empty": "",
}
SHAPES: dict[str, Any] = {
    "shape too large": [2**40, 2**40],
    "shape beyond 2**63": [None, 2**64],
    "shape of 1,000 digits": [None, 10**1000],
    "shape negative": [None, -3],
    "shape of strings": ["3"],
    "shape of floats": [1.5],
    "shape of many dimensions": [None] * 100_000,
    "shape a number": 7,
}
DTYPES = {
    name: {"dtype": dtype}
    for name, dtype in {
        "object": "O",
        "record": "i4,i4",
        "huge subarray": "(100000,100000,1000)f8",
        "python in it": "(__import__('os'),)f8",
        "deep brackets": "(" * 5000,
        "string": "U99999999",
        "void": "V2000000000",
        "no size": "<i3",
        "unknown": "ünknown",
        "null": None,
    }.items()
}
FIELD_NAMES = {
    name: {"name": value}
    for name, value in {
        "dots": "..",
        "slash": "a/b",
        "empty": "",
        "nul": "a\0b",
        "right to left": "abc\u202etxt",
        "lone surrogate": "\ud800",
        "zero width": "a\u200bb",
        "ligature": "ﬁeld",
        "decomposed": "e\u0301",
        "twice": "label",
        "underscore": "_v_attrs",
        "escape": "\x1b[2J",
        "list": ["audio"],
        "long": "a" * 10**6,
    }.items()
}
MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"segment name, {name}": in_segment(0, to) for name, to in NAMES.items()},
    **{
        f"list name, {name}": set_key("lists", to=[[to[:-3] + ".list", 1, 1, 1, 1, 1]])
        for name, to in NAMES.items()
    },
    **{f"field, {name}": in_schema(shape=to) for name, to in SHAPES.items()},
    **{f"field, {name}": in_schema(**to) for name, to in DTYPES.items()},
    **{f"field name, {name}": in_schema(**to) for name, to in FIELD_NAMES.items()},
    "segment twice": lambda body: body["segments"].append(body["segments"][0]),
    "list twice": set_key("lists", to=[["0" * 32 + ".list", 1, 1, 1, 1, 1]] * 2),
    "samples negative": in_segment(1, -1),
    "samples a float": in_segment(1, 12.0),
    "samples true": in_segment(1, to=True),
    "samples beyond 2**63": in_segment(1, 2**63),
    "samples just below 2**63": in_segment(1, 2**63 - 1),
    "samples of 2**48": in_segment(1, 2**48),
    "bytes beyond 2**64": in_segment(2, 2**64),
    "bytes negative": in_segment(2, -1),
    "digest of an object": in_segment(5, {}),
    "segment a number": set_key("segments", 0, to=3),
    "segments deep": text_with('"segments": [', '"segments": [' + DEEP + ","),
    "segments an object": set_key("segments", to={"a": 1}),
    "deep": lambda body: DEEP.encode(),
    "deep metadata": text_with('"metadata": {', '"metadata": {"x": ' + DEEP + "}, \"y\": {"),
    "NaN": set_key("metadata", "x", to=float("nan")),
    "Infinity as a version": set_key("version", to=float("inf")),
    "1e999 as a version": text_with('"version": 1', '"version": 1e999'),
    "1e999": text_with('"metadata": {', '"metadata": {"x": 1e999'),
    "key twice": text_with('"version": 1', '"version": 1, "version": 1'),
    "version of 5,000 digits": text_with('"version": 1', '"version": ' + "1" * 5000),
    "version of 4,000 digits": text_with('"version": 1', '"version": ' + "1" * 4000),
    "version negative": set_key("version", to=-1),
    "version of another": set_key("version", to=2),
    "format of another": set_key("format", to=99),
    "format of 1,000 digits": set_key("format", to=10**1000),
    "no schema": lambda body: body.pop("schema") and None,
    "schema deep": text_with('"schema": [', '"schema": [' + DEEP + ","),
    "schema empty": set_key("schema", to=[]),
    "schema a word": set_key("schema", to="audio"),
    "parent an object": set_key("parent", to={}),
    "metadata a list": set_key("metadata", to=[["a", 1]]),
    "compression of floats": set_key("compression", "audio", to={"level": 1.5}),
    "compression of NaNs": text_with('"level": 1', '"level": NaN'),
    "compression of words": set_key("compression", "audio", to={"filters": "shuffle"}),
    "compression unknown": set_key("compression", "audio", to={"run": "me"}),
    "compression of 2**40": set_key("compression", "audio", to={"chunk_bytes": 2**40}),
    "a list": lambda body: b"[]",
    "null": lambda body: b"null",
    "nothing": lambda body: b"",
    "half a surrogate pair in UTF-16": lambda body: b"\xff\xfe\x00\xd8",
    "too large": lambda body: b" " * 2**24 + json.dumps(body).encode(),
    "16 MB of empty lists": lambda body: (
        b'{"metadata":[' + b"[]," * (2**24 // 3 - 50) + b"[]]}"
    ),
}  # fmt: skip
each("manifest", MANIFESTS, manifest_of)


def list_of(folder: Path, body: Any) -> Path:
    """A store whose segment is named through a list, which is other than lists are."""
    root = store_in(folder)
    manifest = body_of(root)
    entry, _ = dump_list([SegmentEntry(*row) for row in manifest["segments"]])
    data = body(manifest["segments"])
    name = f"{xxhash.xxh3_128_hexdigest(data)}.list"
    (root / "versions" / name).write_bytes(data)
    manifest["lists"] = [ListEntry(name, *entry.to_json()[1:]).to_json()]
    manifest["segments"] = []
    path_of(root, 1).write_bytes(seal("manifest", manifest))
    return root


each(
    "list",
    {
        "names a list": lambda rows: seal("list", {"segments": [["0" * 32 + ".list", *[1] * 5]]}),
        "holds lists": lambda rows: seal("list", {"lists": [], "segments": [[]]}),
        "names a segment twice": lambda rows: seal("list", {"segments": rows * 2}),
        "deep": lambda rows: sealed("list", b'{"segments":' + DEEP.encode() + b"}"),
        "900 deep": lambda rows: sealed("list", b'{"segments":' + b"[" * 900 + b"]" * 900 + b"}"),
        "is a list": lambda rows: sealed("list", b"[]"),
        "names nothing": lambda rows: seal("list", {"segments": []}),
        "of other sums": lambda rows: seal("list", {"segments": [[*rows[0][:4], 7, *rows[0][5:]]]}),
        "name with dots": lambda rows: seal("list", {"segments": [["../../x.h5", *rows[0][1:]]]}),
        "too large": lambda rows: sealed("list", b" " * 2**24),
    },
    list_of,
)


@ignored
def metadata_that_steers_a_terminal(folder: Path) -> Path:
    """Escapes in every text that the commands print."""
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\ud800"

    def change(body: dict[str, Any]) -> None:
        body.update(metadata={evil: {"x": evil}}, time=evil, operation=evil)

    return manifest_of(folder, change)


# Files that are none


def in_place_of(which: str) -> Callable[[Path], Path]:
    def path(root: Path) -> Path:
        segment = segment_of(root)
        return {
            "segment": segment,
            "index": segment.with_suffix(".idx"),
            "manifest": path_of(root, 1),
            "list": next((root / "versions").glob("*.list"), root / "no list"),
        }[which]

    return path


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero: EPERM where that is not allowed


def put_endless_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    shutil.copy(path.with_name("kept"), target)
    path.symlink_to(target)


def put_cyclic_link(path: Path) -> None:
    path.symlink_to(path)


def put_folder(path: Path) -> None:
    path.mkdir()


def put_endless_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**42)


def no_file(which: str, put: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> Path | None:
        root = list_of(folder, lambda rows: seal("list", {"segments": rows}))
        path = in_place_of(which)(root)
        path.rename(path.with_name("kept"))
        try:
            put(path)
        except PermissionError:
            return None
        return root

    return make


for _which in ("segment", "index", "manifest", "list"):
    for _put in (
        put_fifo, put_device, put_endless_link, put_link, put_cyclic_link, put_folder,
        put_endless_file,
    ):  # fmt: skip
        _name = f"{_which}: {_put.__name__[4:].replace('_', ' ')}"
        ATTACKS[_name] = Attack(no_file(_which, _put), refused=True)


def folder_link(name: str) -> Make:
    def make(folder: Path) -> Path:
        root = store_in(folder)
        (root / name).rename(folder / "elsewhere")
        (root / name).symlink_to(folder / "elsewhere")
        (folder / "elsewhere" / ("0" * 32 + ".h5")).write_text("kept")
        return root

    return make


for _name in ("segments", "versions"):
    ATTACKS[f"folder of {_name} a link"] = Attack(folder_link(_name), refused=True)


@ignored
def writers_lock_a_link(folder: Path) -> Path:
    """Writing must not make a file where it leads."""
    root = store_in(folder)
    (root / "writers.lock").unlink()
    (root / "writers.lock").symlink_to(folder / "outside" / "made")
    return root


@ignored
def writers_lock_a_pipe(folder: Path) -> Path:
    root = store_in(folder)
    (root / "writers.lock").unlink()
    os.mkfifo(root / "writers.lock")
    return root


# Chunk tables


def with_blocks(**changes: Any) -> Callable[[DatasetTable], DatasetTable]:
    """Say other things of its blocks; each change is a function of what was there."""

    def change(dataset: DatasetTable) -> DatasetTable:
        assert dataset.blocks is not None
        new = {name: to(getattr(dataset.blocks, name)) for name, to in changes.items()}
        return replace(dataset, blocks=replace(dataset.blocks, **new))

    return change


def first_chunk_over_all(dataset: DatasetTable) -> DatasetTable:
    return replace(dataset, entries=np.repeat(dataset.entries[:1], len(dataset.entries)))


def one_large_chunk(dataset: DatasetTable) -> DatasetTable:
    return replace(dataset, chunk_rows=2**30 - 1, entries=dataset.entries[:1], blocks=None)


TABLES: dict[str, Callable[[DatasetTable], DatasetTable]] = {
    "chunk outside the file": with_entries(offset=2**40),
    "chunk outside int64": with_entries(offset=2**63),
    "offset and size wrap around": with_entries(offset=2**64 - 8, size=16),
    "chunk longer than the file": with_entries(size=2**62),
    "chunk of 2**64 - 1 bytes": with_entries(size=2**64 - 1),
    "chunk of no bytes": with_entries(size=0),
    "chunk of 1 byte": with_entries(size=1),
    "chunks over one another": first_chunk_over_all,
    "rows of 2**62": lambda d: replace(d, rows=2**62),
    "rows of 2**30, one chunk": lambda d: replace(d, rows=2**30, chunk_rows=2**30 - 1),
    "rows negative": lambda d: replace(d, rows=-5),
    "chunks of no rows": lambda d: replace(d, chunk_rows=0),
    "chunks of negative rows": lambda d: replace(d, chunk_rows=-1),
    "chunks of 2 GiB": one_large_chunk,
    "blocks out of order": with_blocks(edges=lambda edges: edges[:, ::-1].copy()),
    "blocks beyond the chunk": with_blocks(edges=lambda edges: edges * 1000),
    "blocks of 1 byte": with_blocks(nbytes=lambda nbytes: 1),
    "blocks of 2**40 bytes": with_blocks(nbytes=lambda nbytes: 2**40),
    "block header short": with_blocks(header=lambda header: b""),
    "block header of a plug-in": with_blocks(header=lambda header: with_plugin(header)),
    "block header of a filter": with_blocks(header=lambda header: with_filter(header)),
    "block header of zeros": with_blocks(header=lambda header: header[:31] + b"\x10"),
}
HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "header deep": lambda header: DEEP.encode(),
    "header with NaN": text_with('"samples": 12', '"samples": NaN'),
    "header with 1e999": text_with('"samples": 12', '"samples": 1e999'),
    "header with a key twice": text_with('"samples": 12', '"samples": 12, "samples": 12'),
    "samples negative": set_key("samples", to=-1),
    "samples of 1,000 digits": set_key("samples", to=10**1000),
    "rows 1e300": set_key("datasets", 0, 0, to=1e300),
    "datasets a number": set_key("datasets", to=7),
    "datasets missing": set_key("datasets", to=[]),
    "datasets of words": set_key("datasets", 0, to=["a", "b", "c", "d"]),
    "block header no hex": set_key("datasets", 0, 3, to="zz"),
    "schema of another": in_schema(name="other"),
    "schema of objects": in_schema(dtype="O"),
    "schema huge": in_schema(shape=[2**62, 2**62]),
    "schema null": set_key("schema", to=None),
    "bytes of another": set_key("bytes", to=1),
    "16 MB of empty lists": lambda header: b'{"x":[' + b"[]," * (2**24 // 3 - 50) + b"[]]}",
}
INDEXES: dict[str, Callable[[bytes], bytes]] = {
    "of nothing": lambda data: b"",
    "of its name alone": lambda data: MAGIC,
    "of another version": lambda data: data[:7] + b"\x09" + data[8:],
    "header of 2**63 bytes": lambda data: data[:8] + struct.pack("<Q", 2**63) + data[16:],
    "header of 2**64 - 1 bytes": lambda data: data[:8] + b"\xff" * 8 + data[16:],
    "header longer than the file": lambda data: data[:8] + struct.pack("<Q", len(data)) + data[16:],
    "entries cut": lambda data: data[:-24],
    "more than it says": lambda data: data + bytes(24),
}
each("table", TABLES, dataset_of)
each("table of", HEADERS, index_header)
each("index", INDEXES, index_bytes)


# Chunk tables behind the end of a single file


def parts_of(path: Path) -> tuple[bytes, bytes]:
    """HDF5's bytes of an exported file, and its table's without their checksum."""
    data = path.read_bytes()
    length, magic = TAIL.unpack(data[-TAIL.size :])
    assert magic == APPENDED
    at = len(data) - TAIL.size - length
    return data[:at], data[at : -TAIL.size - 8]


def with_end(hdf5: bytes, body: bytes) -> bytes:
    """A single file's bytes, of which all that covers the table is right."""
    table = body + struct.pack("<Q", checksum(body))
    return hdf5 + table + TAIL.pack(len(table), APPENDED)


def appended(folder: Path, change: Callable[[bytes, bytes], bytes]) -> Path:
    """An exported file of other bytes: `change` is given the two parts."""
    path = single(folder)
    path.write_bytes(change(*parts_of(path)))
    return path


def appended_bytes(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    """A file whose table has other bytes before its checksum, which holds."""
    return appended(folder, lambda hdf5, body: with_end(hdf5, change(body)))


def appended_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    return appended_bytes(folder, partial(with_header, change=change))


def appended_table(folder: Path, change: Callable[[SegmentTable, bytearray], Any]) -> Path:
    """A file with another table; `change` alters it, and adds to HDF5's bytes."""

    def changed(hdf5: bytes, body: bytes) -> bytes:
        table = SegmentTable.loads(with_end(b"", body)[: -TAIL.size], file_bytes=len(hdf5))
        file = bytearray(hdf5)
        table = change(table, file) or table
        return with_end(bytes(file), replace(table, file_bytes=len(file)).dumps()[:-8])

    return appended(folder, changed)


def appended_dataset(folder: Path, change: Callable[[DatasetTable], DatasetTable]) -> Path:
    def changed(table: SegmentTable, file: bytearray) -> None:
        table.datasets["audio"]["data"] = change(table.datasets["audio"]["data"])

    return appended_table(folder, changed)


def of_length(length: int) -> Callable[[bytes, bytes], bytes]:
    """The table is said to have another length."""

    def change(hdf5: bytes, body: bytes) -> bytes:
        return with_end(hdf5, body)[: -TAIL.size] + TAIL.pack(length, APPENDED)

    return change


def of_another_file(hdf5: bytes, body: bytes) -> bytes:
    """The values that lie in the file are others, all else is as the table says."""
    file = bytearray(hdf5)
    entries = SegmentTable.loads(
        with_end(b"", body)[: -TAIL.size], file_bytes=len(hdf5)
    ).datasets["audio"]["data"].entries  # fmt: skip
    for offset, size, _ in entries.tolist():
        file[offset + size // 2] ^= 1
    return with_end(bytes(file), body)


def shapes_of_another_field(table: SegmentTable, file: bytearray) -> None:
    columns = table.datasets
    columns["image"]["data_start_and_stop"] = columns["audio"]["data_start_and_stop"]
    spare = columns["audio"]["data_start_and_stop"]
    entries = spare.entries.copy()
    entries["offset"], entries["size"] = len(file), len(file) // 8
    file += bytes(len(file) // 8)
    columns["audio"]["data_start_and_stop"] = replace(spare, entries=entries)


def chunk_of_2_gb(table: SegmentTable, file: bytearray) -> None:
    """170 bytes that would become 2 GB, of a field whose rows agree."""
    rows = 2**29 - 1
    frame = zeros_frame(rows * 4)
    dataset = table.datasets["label"]["data"]
    entries = dataset.entries[:1].copy()
    entries[0] = (len(file), len(frame), checksum(frame))
    file += frame
    table.datasets["label"]["data"] = replace(
        dataset, chunk_rows=rows, entries=entries, blocks=None
    )


def samples_that_no_column_has(table: SegmentTable, file: bytearray) -> SegmentTable:
    return replace(table, samples=2**40)


each("appended table", TABLES, appended_dataset)
each(
    "appended table of",  # the first is for a manifest to contradict, the other takes long to parse
    {
        name: change
        for name, change in HEADERS.items()
        if name not in ("schema of another", "16 MB of empty lists")
    },
    appended_header,
)
each("appended index", INDEXES, appended_bytes)
each(
    "appended",
    {
        "of 2**63 bytes": of_length(2**63),
        "of 2**64 - 1 bytes": of_length(2**64 - 1),
        "of no bytes": of_length(0),
        "of 8 bytes": of_length(8),
        "of all the file's bytes": lambda hdf5, body: of_length(len(hdf5) + len(body) + 8)(
            hdf5, body
        ),
        "longer than the file": lambda hdf5, body: of_length(len(hdf5) + len(body) + 9)(hdf5, body),
        "cut in half": lambda hdf5, body: with_end(hdf5, body[: len(body) // 2]),
        "twice": lambda hdf5, body: with_end(with_end(hdf5, body), body),
        "to nothing": lambda hdf5, body: with_end(b"", body),
        "to a part of the file": lambda hdf5, body: with_end(hdf5[: len(hdf5) // 2], body),
        "of another file": of_another_file,
        "in HDF5 of another file": lambda hdf5, body: with_end(hdf5[::-1] + bytes(8), body),
        "without a word that it is one": lambda hdf5, body: with_end(hdf5, body)[:-8] + bytes(8),
    },
    appended,
)
each(
    "appended",
    {
        "of a chunk of 2 GB": chunk_of_2_gb,
        "of another field's spans": shapes_of_another_field,
        "of samples that no column has": samples_that_no_column_has,
    },
    appended_table,
)


@ignored
def a_table_behind_hdf5_that_says_other_things(folder: Path) -> Path:
    """What lies behind the end is what is read, here samples that HDF5 does not speak of."""

    def change(hdf5: bytes, body: bytes) -> bytes:
        return with_end(bytes(64) + hdf5[64:], body)

    return appended(folder, change)


@refused
def a_table_of_half_a_gigabyte_of_nothing(folder: Path) -> Path:
    """22 million chunks of no bytes, in a file that takes up no room on the disk."""
    path = folder / "single.h5"
    count = 2**29 // ENTRY.itemsize
    header = {
        "samples": count, "bytes": 4096, "schema": [{"name": "x", "dtype": "|u1", "shape": []}],
        "datasets": [[count, 1, 0, ""]],
    }  # fmt: skip
    text = json.dumps(header).encode()
    start = MAGIC + struct.pack("<Q", len(text)) + text
    digest = xxhash.xxh3_64(start)
    piece = bytes(ENTRY.itemsize * 2**16)
    for at in range(0, count, 2**16):
        digest.update(piece[: (count - at) * ENTRY.itemsize])
    with open(path, "wb") as file:
        file.write(bytes(4096) + start)
        file.seek(count * ENTRY.itemsize, os.SEEK_CUR)
        file.write(struct.pack("<Q", digest.intdigest()))
        file.write(TAIL.pack(file.tell() - 4096, APPENDED))
    return path


# Chunks


def with_plugin(header: bytes, codec: int = 37) -> bytes:
    """A Blosc2 header that asks for a codec that c-blosc2 would look for as a Python module."""
    new = bytearray(header)
    new[2] = new[2] & 0x1F | 6 << 5
    new[22] = codec
    return bytes(new)


def with_filter(header: bytes, code: int = 250) -> bytes:
    new = bytearray(header)
    new[16] = code
    return bytes(new)


def chunk_of(folder: Path, change: Callable[[bytearray], Any]) -> Path:
    """A store in which a chunk's Blosc2 header is another; `change` is given all from it on."""
    frame = encode_frame(np.arange(1024, dtype="i4") // 9, 4, 4, SMALL)
    (head,) = struct.unpack_from(">i", frame, 11)
    chunk = bytearray(frame[head:])
    assert not chunk[2] & 2  # it did compress
    change(chunk)
    frame = frame[:head] + bytes(chunk)
    return put_frame(store_in(folder), "label/data", frame, chunk_rows=1024)


def set_bytes(at: int, data: bytes) -> Callable[[bytearray], None]:
    def change(chunk: bytearray) -> None:
        chunk[at : at + len(data)] = data

    return change


def make_plugin(chunk: bytearray, codec: int) -> None:
    chunk[:32] = with_plugin(bytes(chunk[:32]), codec)


each(
    "chunk",
    {
        **{
            f"of plug-in codec {codec}": lambda chunk, codec=codec: make_plugin(chunk, codec)
            for codec in (32, 35, 36, 37, 38, 39, 40, 160, 255)
        },
        **{
            f"of filter {code}": set_bytes(16, bytes([code]))
            for code in (32, 33, 36, 37, 127, 160, 255)
        },
        "of codec 7": set_bytes(2, b"\xe5"),
        "lazy": set_bytes(31, b"\x08"),
        "of a dictionary": set_bytes(31, b"\x01"),
        "not initialised": set_bytes(31, b"\x40"),
        "of blocks of various lengths": set_bytes(30, b"\x01"),
        "that claims 2 GB": set_bytes(4, struct.pack("<i", 2**31 - 1)),
        "that claims less than nothing": set_bytes(4, struct.pack("<i", -1)),
        "of blocks of 2 GB": set_bytes(8, struct.pack("<i", 2**31 - 1)),
        "of blocks of nothing": set_bytes(8, struct.pack("<i", 0)),
        "longer than it is": set_bytes(12, struct.pack("<i", 2**31 - 1)),
        "of 32 bytes": set_bytes(12, struct.pack("<i", 32)),
        "whose blocks lie outside": set_bytes(32, b"\xff\xff\xff\x7f" * 4),
        "whose blocks lie before it": set_bytes(32, b"\xff\xff\xff\xff" * 4),
    },
    chunk_of,
)  # fmt: skip


def zeros_frame(nbytes: int) -> bytes:
    """The frame of a chunk of zeros: some 170 bytes, whatever they stand for."""
    frame = bytearray(encode_frame(np.zeros(4096, np.uint8), 1, 1, SMALL))
    struct.pack_into(">q", frame, 30, nbytes)
    return bytes(frame)


@refused
def a_chunk_of_2_gb_of_zeros(folder: Path) -> Path:
    """170 bytes that would become 2 GB."""
    rows = 2**29 - 1
    return put_frame(store_in(folder), "label/data", zeros_frame(rows * 4), chunk_rows=rows)


@refused
def many_rows_in_few_bytes(folder: Path) -> Path:
    """A sample of 2 GB of zeros, its side columns and the table in agreement."""
    root = store_in(folder)
    rows = 2**30 - 1
    spans = np.array([[0, rows]] + [[rows, rows]] * (SAMPLES - 1))
    put_rows(root, "audio/data_start_and_stop", spans)
    return put_frame(root, "audio/data", zeros_frame(rows * 2), rows=rows, chunk_rows=rows)


SPANS: dict[str, Callable[[np.ndarray], Any]] = {
    "that overlap": lambda spans: [[0, spans[-1, 1]]] * SAMPLES,
    "that end before they start": lambda spans: spans[:, ::-1],
    "that start before the data": lambda spans: spans - 600,
    "that end after the data": lambda spans: spans + 600,
    "of 2**62 values": lambda spans: [[0, 2**62]] * SAMPLES,
    "of int64's limits": lambda spans: [[-(2**63), 2**63 - 1]] * SAMPLES,
}
each(
    "spans",
    SPANS,
    lambda folder, change: put_rows(
        root := store_in(folder),
        "audio/data_start_and_stop",
        np.array(change(spans_of(root, "audio")), np.int64),
    ),
)


def spans_of(root: Path, name: str) -> np.ndarray:
    with rs.open(root) as store:
        lengths = [np.size(one) for one in store[name][:]]
    stops = np.cumsum(lengths)
    return np.stack([stops - lengths, stops], axis=1)


each(
    "shapes",
    {
        "negative": [[-1, -5, 3]] * SAMPLES,
        "whose product wraps around to what is there": [[2**32, 2**32, 3]] * SAMPLES,
        "of int64's limits": [[2**63 - 1] * 3] * SAMPLES,
        "of another last dimension": [[1, 5, 4]] * SAMPLES,
    },
    lambda folder, shapes: put_rows(
        store_in(folder), "image/data_shape", np.array(shapes, np.int64)
    ),
)


@refused
def text_that_is_no_utf8(folder: Path) -> Path:
    root = store_in(folder)
    size = table_of(root).datasets["text"]["data"].rows
    return put_rows(root, "text/data", np.full(size, 0xFF, np.uint8))


# HDF5


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(folder: Path) -> bytes:
    return pickle.dumps(Payload(folder / "outside" / "made"), protocol=0)


def add_pickles(file: Path, folder: Path) -> None:
    """As PyTables keeps objects: in attributes of everything, and in rows."""
    evil = np.bytes_(pickled(folder))
    with h5py.File(file, "a") as h5:
        nodes: list[Any] = [h5]
        h5.visititems(lambda name, node: nodes.append(node))
        for node in nodes:
            for name in ("evil", "TITLE", "FILTERS", "_v_attrs", "data", "kind2", "FIELD_0_NAME"):
                node.attrs[name] = evil
        objects = h5.create_dataset("objects", (1,), h5py.vlen_dtype(np.uint8))
        objects[0] = np.frombuffer(pickled(folder), np.uint8)
        objects.attrs.update(CLASS=b"VLARRAY", VERSION=b"1.4", PSEUDOATOM=b"object", TITLE=evil)


@ignored
def a_segment_with_pickles(folder: Path) -> Path:
    root = store_in(folder)
    (folder / "outside").mkdir(exist_ok=True)
    before = segment_of(root).read_bytes()
    add_pickles(segment_of(root), folder)
    assert before[:4] == segment_of(root).read_bytes()[:4]
    segment_of(root).with_suffix(".idx").unlink()
    return agree(root)


@ignored
def a_file_with_pickles(folder: Path) -> Path:
    path = single(folder)
    (folder / "outside").mkdir(exist_ok=True)
    add_pickles(path, folder)
    return path


@ignored
def a_file_with_pickles_by_pytables(folder: Path) -> Path:
    path = single(folder)
    (folder / "outside").mkdir(exist_ok=True)
    with tables.open_file(str(path), "a") as file:
        file.root._v_attrs.evil = Payload(folder / "outside" / "made")
        file.root.audio.data._v_attrs.evil = Payload(folder / "outside" / "made")
        rows = file.create_vlarray("/", "objects", tables.ObjectAtom())
        rows.append(Payload(folder / "outside" / "made"))
    (folder / "outside" / "made").unlink(missing_ok=True)
    return path


def h5_of(folder: Path, fill: Callable[[h5py.File], Any]) -> Path:
    """A file that h5py wrote, with one ragged field or what `fill` makes of it."""
    path = folder / "single.h5"
    with h5py.File(path, "w") as h5:
        fill(h5)
    return path


def ragged(group: h5py.Group, values: Any = None, *, but: str = "") -> None:
    """The three arrays of a field of three samples, one left out."""
    values = np.arange(30, dtype="i2") if values is None else values
    starts = np.arange(3) * 10
    arrays = {
        "data": values,
        "data_start_and_stop": np.stack([starts, starts + 10], axis=1),
        "data_shape": np.full((3, 1), 10),
    }
    for name, array in arrays.items():
        if name != but:
            group[name] = array


def other(h5: h5py.File) -> h5py.Group:
    """Another file, beside this one, with a field in it."""
    name = Path(h5.filename).with_name("other.h5")
    with h5py.File(name, "w") as h5_other:
        ragged(h5_other.create_group("x"))
    return h5.create_group("x")


def soft_group(h5: h5py.File) -> None:
    ragged(h5.create_group("hidden/x"))
    h5["x"] = h5py.SoftLink("/hidden/x")


def soft_dataset(h5: h5py.File) -> None:
    ragged(h5.create_group("x"), but="data")
    h5["hidden"] = np.arange(30, dtype="i2")
    h5["x/data"] = h5py.SoftLink("/hidden")


def soft_side(h5: h5py.File) -> None:
    ragged(h5.create_group("x"), but="data_shape")
    h5["hidden"] = np.full((3, 1), 10)
    h5["x/data_shape"] = h5py.SoftLink("/hidden")


def soft_to_itself(h5: h5py.File) -> None:
    h5["x"] = h5py.SoftLink("/x")


def soft_round(h5: h5py.File) -> None:
    h5["x"], h5["y"] = h5py.SoftLink("/y/data"), h5py.SoftLink("/x/data")


def group_in_itself(h5: h5py.File) -> None:
    h5.create_group("x")
    h5["x/x"] = h5["x"]
    h5["x/data"] = h5["x"]


def external_group(h5: h5py.File) -> None:
    other(h5)
    del h5["x"]
    h5["x"] = h5py.ExternalLink("other.h5", "/x")


def external_dataset(h5: h5py.File) -> None:
    group = other(h5)
    ragged(group, but="data")
    group["data"] = h5py.ExternalLink("other.h5", "/x/data")


def external_side(h5: h5py.File) -> None:
    group = other(h5)
    ragged(group, but="data_shape")
    group["data_shape"] = h5py.ExternalLink("other.h5", "/x/data_shape")


def external_storage(h5: h5py.File) -> None:
    group = h5.create_group("x")
    ragged(group, but="data")
    group.create_dataset("data", (30,), "i1", external=[("/etc/passwd", 0, 30)])


def virtual(h5: h5py.File) -> None:
    group = other(h5)
    ragged(group, but="data")
    layout = h5py.VirtualLayout((30,), "i2")
    layout[:] = h5py.VirtualSource("other.h5", "x/data", (30,))
    group.create_virtual_dataset("data", layout)


def zlib_bomb(h5: h5py.File) -> None:
    """A megabyte of deflate that is a gigabyte of zeros, in the place of 60 bytes."""
    encoder = zlib.compressobj(9)
    piece = bytes(2**20)
    bomb = b"".join(encoder.compress(piece) for _ in range(2**11)) + encoder.flush()
    group = h5.create_group("x")
    ragged(group, but="data")
    data = group.create_dataset("data", (30,), "i2", chunks=(30,), compression="gzip")
    data.id.write_direct_chunk((0,), bomb)


def never_written(h5: h5py.File) -> None:
    group = h5.create_group("x")
    ragged(group, but="data")
    group.create_dataset("data", (2**27,), "i8")


def rows_without_chunks(h5: h5py.File) -> None:
    h5.create_dataset("x/data", (2**45,), "i8", chunks=(2**10,), maxshape=(None,))


def wide_rows(h5: h5py.File) -> None:
    """A row of 2 GB in chunks of one value, of which none is there."""
    h5.create_dataset("x/data", (3, 2**14, 2**14), "i8", chunks=(1, 1, 1), compression="gzip")


def huge_chunk(h5: h5py.File) -> None:
    h5.create_dataset("x/data", (2**33,), "i1", chunks=(2**31 - 2,), maxshape=(None,))


def references(h5: h5py.File) -> None:
    h5["x/data"] = np.array([h5.ref] * 3, h5py.ref_dtype)


def objects(h5: h5py.File) -> None:
    h5["x/data"] = np.array(["a", "b"], h5py.string_dtype())


def records(h5: h5py.File) -> None:
    h5["x/data"] = np.zeros(3, "i4,f4")


def many_dimensions(h5: h5py.File) -> None:
    h5["x/data"] = np.zeros((1,) * 30, "i2")


def hostile_schema(text: bytes) -> Callable[[h5py.File], None]:
    def fill(h5: h5py.File) -> None:
        ragged(h5.create_group("x"))
        h5.attrs["raggedstore_schema"] = np.bytes_(text)

    return fill


each(
    "file",
    {
        fill.__name__.replace("_", " "): fill
        for fill in (
            soft_group, soft_dataset, soft_side, soft_to_itself, soft_round, group_in_itself,
            external_group, external_dataset, external_side, external_storage, virtual, zlib_bomb,
            never_written, rows_without_chunks, wide_rows, huge_chunk, references, objects, records,
            many_dimensions,
        )
    }
    | {
        "schema deep": hostile_schema(b"[" * 60_000),
        "schema no JSON": hostile_schema(b"\xff\xfe\0"),
        "schema of NaN": hostile_schema(b'[{"name":"x","dtype":"<i2","shape":[NaN]}]'),
        "schema of a field twice": hostile_schema(
            b'[{"name":"x","dtype":"<i2"},{"name":"x","dtype":"<i4"}]'
        ),
        "schema of dots": hostile_schema(b'[{"name":"../x","dtype":"<i2","shape":[null]}]'),
        "schema of objects": hostile_schema(b'[{"name":"x","dtype":"|O","shape":[null]}]'),
        "schema of another field": hostile_schema(b'[{"name":"y","dtype":"<i2","shape":[null]}]'),
        "schema of another dtype": hostile_schema(b'[{"name":"x","dtype":"<f8","shape":[null]}]'),
    },
    h5_of,
)  # fmt: skip


def in_chunks(h5: h5py.File) -> None:
    group = h5.create_group("x")
    ragged(group, but="data")
    group.create_dataset("data", data=np.arange(30, dtype="i2"), chunks=(5,))


def parsed(folder: Path, change: Callable[[bytearray], Any]) -> Path:
    """A file with other bytes in HDF5's own structures."""
    path = h5_of(folder, in_chunks)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def tree_in_itself(data: bytearray) -> None:
    """Every B-tree of chunks says that it is of five levels, and its own child, 1,000 times."""
    at = -1
    while (at := data.find(b"TREE\1", at + 1)) >= 0:
        data[at + 5] = 5
        struct.pack_into("<H", data, at + 6, 60)


each("parser", {"trees of endless levels": tree_in_itself}, parsed)


@refused
def a_segment_of_links_without_its_index(folder: Path) -> Path:
    root = store_in(folder)
    path = segment_of(root)
    shutil.copy(path, folder / "other.h5")
    with h5py.File(path, "a") as h5:
        del h5["audio"]
        h5["audio"] = h5py.ExternalLink(str(folder / "other.h5"), "/audio")
    path.with_suffix(".idx").unlink()
    return agree(root)


@ignored
def fields_with_the_names_of_methods(folder: Path) -> Path:
    """Nothing finds a field where it looks for a method, or the other way round."""
    names = ["data", "keys", "attrs", "read", "schema", "name", "shape", "data_shape", "None_"]
    root = folder / "store"
    with (
        rs.create(root, dict.fromkeys(names, rs.Field("int32"))) as store,
        store.writer() as writer,
    ):
        writer.extend(dict.fromkeys(names, i) for i in range(SAMPLES))
    with h5py.File(segment_of(root), "a") as h5:
        for name in names:
            h5.attrs[name] = h5[name].attrs["data"] = 7
    segment_of(root).with_suffix(".idx").unlink()
    return agree(root)


# What is done with them


@dataclass
class Outcome:
    """What came of an attack."""

    name: str
    steps: dict[str, str] = field(default_factory=dict)  #: "", or the error that came
    faults: list[str] = field(default_factory=list)
    skipped: bool = False

    @property
    def refused(self) -> bool:
        """Whether it did not read."""
        return bool(self.steps.get("open") or self.steps.get("read"))


def read_all(path: Path, in_memory: bool = False) -> None:
    """Everything, in every way that differs."""
    with contextlib.ExitStack() as stack:
        opened = rs.open(path, in_memory=in_memory)
        if isinstance(opened, rs.Store):
            stack.enter_context(opened)
        count = len(opened)
        if count > 10**6:
            opened[count - 1]
            raise AssertionError(f"{count} samples")
        for name, spec in opened.schema.items():
            view = opened[name]
            for i in range(count):
                view[i]
            view.batch(slice(None))
            view.batch([*range(count)][::-1])
            if spec.is_ragged and spec.kind == "array":
                view.crop([*range(count)], [1] * count, [4] * count)


def steps_of(path: Path, work: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is done, each by itself."""
    yield "open", lambda: rs.open(path)
    yield "read", lambda: read_all(path)
    yield "read in memory", lambda: read_all(path, in_memory=True)
    for name in ("info", "info --json", "ls", "head", "show 3", "stats", "log", "verify"):
        yield name, lambda name=name: run_command([name.split()[0], str(path), *name.split()[1:]])
    yield "export", lambda: run_command(["export", str(path), str(work / "exported.h5")])
    if path.is_dir():
        yield "verify it", lambda: rs.open(path).verify()
        yield "repair", lambda: run_command(["repair", str(path), "--dry-run"])
        yield "append", lambda: append(path)
        yield "compact", lambda: rs.open(path, "a").compact()
        yield "vacuum", lambda: rs.open(path, "a").vacuum(keep=1)
        yield "repair it", lambda: run_command(["repair", str(path)])


def append(path: Path) -> None:
    with rs.open(path, "a") as store, store.writer() as writer:
        writer.append(store[0])


def run_command(arguments: list[str]) -> None:
    """A command, whose output must not steer a terminal."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = command(arguments)
    said = raw.getvalue().decode()
    if any(not c.isprintable() and c not in "\n\t" for c in said):
        raise AssertionError(f"{arguments[0]} prints {said[:300]!r}")
    if len(said) > 2**20:
        raise AssertionError(f"{arguments[0]} prints {len(said)} characters")
    if status:
        raise rs.UsageError(said)


def run_attack(name: str, *, long: bool = True) -> Outcome:
    """Make it, and do everything with it, or some of that."""
    outcome = Outcome(name)
    attack = ATTACKS[name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "outside").mkdir()
        modules = folder / "modules"
        modules.mkdir()
        for plugin in ("grok", "openhtj2k", "openzl", "j2k", "htj2k"):
            code = f"open({str(folder / 'outside' / 'made')!r}, 'w')\n"
            (modules / f"blosc2_{plugin}.py").write_text(code)
        path = attack.make(folder)
        if path is None:
            outcome.skipped = True
            return outcome
        os.chdir(modules)  # where c-blosc2 would look for what a chunk asks for
        outside = contents(folder)
        steps = list(steps_of(path, folder))
        if not long and attack.refused:
            some = random.Random(name).sample(range(2, len(steps)), 2)
            steps = [*steps[:2], *(steps[i] for i in sorted(some))]
        for step, do in steps:
            try:
                with alarm(SECONDS):
                    do()
                outcome.steps[step] = ""
            except rs.RaggedStoreError as error:
                outcome.steps[step] = f"{type(error).__name__}: {error}"[:500]
            except MemoryError as error:
                outcome.faults.append(f"{step}: {error!r}")
            except Exception as error:
                outcome.faults.append(f"{step}: {error!r}"[:500])
        if contents(folder) != outside:
            outcome.faults.append("a file outside was made or removed")
        os.chdir("/")
    if outcome.refused != attack.refused:
        outcome.faults.append("it is not refused" if attack.refused else "it does not read")
    return outcome


def contents(folder: Path) -> list[str]:
    """The files that no step has any business with."""
    named = [*(folder / "outside").iterdir(), *(folder / "elsewhere").glob("*")]
    return sorted(str(path) for path in named)


# A child, a campaign


def work(*, long: bool) -> None:
    """The child: do the attacks whose names come in."""
    append(store_in(Path(tempfile.mkdtemp())))  # all that is imported late
    serve(partial(run_attack, long=long), MEMORY)


def campaign(names: list[str], *, long: bool = False) -> Iterator[Outcome]:
    """What comes of the attacks of these names, in child processes."""
    mixed = random.Random(0).sample(names, len(names))  # so that none helps the next
    arguments = ["-m", "tests.campaigns.hostile", "--work", *["--long"] * long]
    for name, said, (kind, words) in answers(arguments, mixed):
        yield Outcome(name, faults=[f"{kind}: {words}"]) if kind else Outcome(**said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=ATTACKS)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, help="as of other campaigns; here nothing is random")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(long=options.long)
        return
    started, count = time.monotonic(), 0
    faults = []
    names = [options.only] if options.only else list(ATTACKS)
    for outcome in campaign(names, long=options.long or bool(options.only)):
        count += not outcome.skipped
        faults += [f"{outcome.name}: {fault}" for fault in outcome.faults]
        if options.only:
            print(*outcome.steps.items(), sep="\n")
    conclude(f"{count} attacks", started, faults)


if __name__ == "__main__":
    main()
