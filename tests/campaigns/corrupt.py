"""Damage files in every way, and see that no wrong value ever comes out of them.

    python -m tests.campaigns.corrupt [--long] [--suite bits] [--cases 1000] [--seed 0] [--jobs 2]
    python -m tests.campaigns.corrupt --suite bits --seed 0 --case 1234     one case, told in full

A case damages one thing in a small store, or in a single file, opens it anew and reads everything
in every way there is: samples one by one, ranges, permuted batches, crops. Each answer must be
what was written, or an error of raggedstore's own that names the segment and, where one chunk is
hit, the field. `verify` must then have found something, and must count no fewer samples as damaged
than do not read. Of some cases the store is repaired, and what the repair keeps is held against
what was written. Afterwards the bytes are put back.

Cases run in child processes, some hundred in each, with 2 GiB of address space above what the
child begins with and an alarm for each case; so a crash of the interpreter, a hang and memory
that explodes are found like any other fault, and each comes with a line that does it again.

bits        a flipped bit in the compressed data of a segment
bytes       every byte of a segment, its .idx, the manifest and a segment list, four ways each
cuts        each of those files cut to every shorter length
wrecks      larger damage to a larger store: cuts, ranges zeroed, swapped, copied, files swapped
unindexed   the same to segments whose .idx is gone, so that HDF5 itself is parsed
single      flips and the same in an exported file
alone       bytes of a small exported file, four ways each
parsed      the same without the chunk table at its end, so without checksums: right or wrong, it
            must neither crash nor hang nor take up memory
elsewhere   as "single", of a file that h5py wrote with gzip, shuffle and fletcher32
peer …      flipped bits in the same data as other libraries keep it, for comparison
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import hdf5plugin
import numpy as np
import tables

import raggedstore as rs
from raggedstore.store import lists
from raggedstore.store.manifest import path_of
from raggedstore.store.repair import repair
from tests.campaigns.child import alarm, answers, serve
from tests.campaigns.table import print_row

MEMORY = 2**31  # address space of a child above what it begins with
SECONDS = 20  # for one case
BATCH = 500  # cases of one child
REPAIRED = 8  # one case of so many is repaired too
KINDS = ("cut", "zeros", "noise", "swap", "copy", "twice", "left out", "tail", "more")
SHOWN = 5  # faults of a kind that are told of
PATTERNS = (0x01, 0x80, 0xFF, None)  # what a byte is xor-ed with; None: it is set to 0
SMALL = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=1024)
ZSTD = rs.Compression("zstd", 1, (), chunk_bytes=8192, block_bytes=1024)
PEERS = ("PyTables blosc:lz4", "PyTables blosc2:zstd", "h5py Blosc", "h5py Blosc2")

#: What must not happen, in the order of the table's columns.
FAULTS = ("silent", "alien", "unnamed", "memory", "hang", "crash", "missed", "repair")
#: Where nothing holds checksums, no more can be promised; of the peers nothing is asked.
TOLERATED = {
    **{name: {"silent", "unnamed"} for name in ("parsed", "elsewhere")},
    **{f"peer {how}": {*FAULTS} for how in PEERS},
}


# What is written


FIELDS = {
    "audio": rs.Field("int16", (None,)),
    "frames": rs.Field("float32", (None, 5)),
    "image": rs.Field("uint8", (None, None, 3)),
    "text": rs.Field("str"),
    "label": rs.Field("int32"),
}


def sample(index: int) -> dict[str, Any]:
    """The sample that belongs at `index`; of some, all is noise, zeros, or nothing at all."""
    rng = np.random.default_rng(index)
    length = index * 53 % 400
    wave = 9000 * np.sin(np.arange(length) / (5 + index % 7)) + rng.normal(0, 9, length)
    pixels = rng.integers(0, 256, (index % 9, index % 7, 3), np.uint8)
    return {
        "audio": (rng.integers(-(2**15), 2**15, length) if index % 11 == 3 else wave).astype("i2"),
        "frames": np.round(rng.normal(size=(index % 13, 5)), 1).astype("f4"),
        "image": pixels * (index % 8 != 5),
        "text": f"sample {index}, " * (index % 5) + "äöü€" * (index % 3),
        "label": np.int32(index * index),
    }


class Truth:
    """What reading must give, of some of the fields."""

    def __init__(self, count: int, names: Sequence[str]) -> None:
        self.schema = rs.Schema(FIELDS).only(names)
        self.values = {name: [sample(i)[name] for i in range(count)] for name in names}
        self._batches = {
            name: rs.RaggedBatch.from_list(self.values[name], spec.dtype, spec.ndim)
            for name, spec in self.schema.items()
            if spec.kind == "array" and spec.is_ragged
        }

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def batch(self, name: str, positions: Sequence[int]) -> Any:
        if name in self._batches:
            return self._batches[name].take(np.array(positions, np.int64))
        picked = [self.values[name][i] for i in positions]
        return picked if name == "text" else np.array(picked, self.schema[name].dtype)

    def crop(self, name: str, positions: Sequence[int], low: Any, high: Any) -> rs.RaggedBatch:
        values, spec = self.values[name], self.schema[name]
        pieces = [values[i][a:b] for i, a, b in zip(positions, low, high, strict=True)]
        return rs.RaggedBatch.from_list(pieces, spec.dtype, spec.ndim)


def same(got: Any, want: Any) -> bool:
    """Exactly the value, to the byte."""
    if isinstance(want, rs.RaggedBatch):
        parts = ("values", "offsets", "shapes")
        return type(got) is type(want) and all(
            same(getattr(got, p), getattr(want, p)) for p in parts
        )
    if isinstance(want, np.ndarray):
        return (
            isinstance(got, np.ndarray)
            and (got.dtype, got.shape) == (want.dtype, want.shape)
            and got.tobytes() == want.tobytes()
        )
    return type(got) is type(want) and bool(got == want)


class AtOnce(ThreadPoolExecutor):
    """Does what it is given in the caller's thread, so that the same files come out each time."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*args, **kwargs))
        return done


@contextmanager
def steady() -> Iterator[None]:
    """Have files come out with the same names and chunks in the same places each time."""
    rng = random.Random(0)
    names = (uuid.UUID(int=rng.getrandbits(128)) for _ in iter(int, 1))
    with (
        mock.patch("uuid.uuid4", side_effect=names),
        mock.patch("raggedstore.store.writer.ThreadPoolExecutor", AtOnce),
    ):
        yield


@dataclass
class Corpus:
    """A store's folder or a file, and what was written into it."""

    root: Path
    truth: Truth
    segments: list[Path]
    original: dict[Path, bytes]  #: the files that are damaged
    #: Where a flip hits compressed data: file, field, offset, size.
    chunks: list[tuple[Path, str, int, int]] = field(default_factory=list)


def make_store(
    folder: Path, commits: Sequence[int], direct: int = lists.DIRECT, names: Sequence[str] = ()
) -> Corpus:
    """A store of so many samples in each commit, and so many segments that a manifest names."""
    root = folder / "store"
    truth = Truth(sum(commits), names or list(FIELDS))
    profile = {"audio": SMALL, "label": SMALL, "frames": ZSTD, "image": ZSTD, "text": ZSTD}
    profile = {name: profile[name] for name in truth.schema}
    first = 0
    with steady(), mock.patch.object(lists, "DIRECT", direct):
        store = rs.create(root, truth.schema, profile=profile)
        with store.writer() as writer:
            for count in commits:
                for i in range(first, first + count):
                    writer.append({name: truth.values[name][i] for name in truth.schema})
                first += count
                writer.commit()
    manifest = store.manifest
    segments = [root / "segments" / entry.file for entry in manifest.segments]
    versions = [path_of(root, store.version)]
    versions += [root / "versions" / entry.file for entry in manifest.lists]
    chunks = []
    for number, path in enumerate(segments):
        for name, columns in store._snapshot.reader(number).table.datasets.items():
            for table in columns.values():
                chunks += [(path, name, int(o), int(n)) for o, n, _ in table.entries.tolist()]
    store.close()
    order = [*segments, *(path.with_suffix(".idx") for path in segments), *versions]
    return Corpus(root, truth, segments, {p: p.read_bytes() for p in order}, chunks)


# Damage


@dataclass
class Damage:
    """What is put in the place of files: their new bytes, or None where one is removed."""

    said: str
    files: dict[Path, bytes | None]
    names: tuple[str, ...] = ()  # one of which an error must hold
    field: str | None = None  # which it must name, where one chunk is hit

    def effect(self, corpus: Corpus) -> bool:
        """Whether anything is other than it was."""
        return any(corpus.original.get(path) != data for path, data in self.files.items())


def name_in_errors(path: Path) -> str:
    return path.name if path.suffix in (".json", ".list") else path.stem


def of_file(corpus: Corpus, path: Path, said: str, data: bytes | None) -> Damage:
    said = f"{path.name[-12:]} of {len(corpus.original[path])} bytes: {said}"
    return Damage(said, {path: data}, (name_in_errors(path),))


def flip_bit(corpus: Corpus, rng: random.Random, number: int) -> Damage | None:
    """A bit in the compressed data."""
    sizes = [size for *_, size in corpus.chunks]
    [(path, name, offset, size)] = rng.choices(corpus.chunks, sizes)
    at, bit = offset + rng.randrange(size), rng.randrange(8)
    data = bytearray(corpus.original[path])
    data[at] ^= 1 << bit
    damage = of_file(corpus, path, f"bit {bit} of byte {at}, {name!r}", bytes(data))
    damage.field = name
    return damage


def change_byte(corpus: Corpus, rng: random.Random, number: int) -> Damage | None:
    """The byte and the pattern that have this number."""
    place, which = divmod(number, len(PATTERNS))
    for path in corpus.original:
        data = corpus.original[path]
        if place < len(data):
            pattern = PATTERNS[which]
            new = 0 if pattern is None else data[place] ^ pattern
            changed = data[:place] + bytes([new]) + data[place + 1 :]
            return of_file(corpus, path, f"byte {place} set to {new}", changed)
        place -= len(data)
    return None


def bytes_of(corpus: Corpus) -> int:
    """How many there are, and so how many lengths to cut to."""
    return sum(map(len, corpus.original.values()))


def patterns_of(corpus: Corpus) -> int:
    """How many bytes there are, four times."""
    return bytes_of(corpus) * len(PATTERNS)


def cut_short(corpus: Corpus, rng: random.Random, number: int) -> Damage | None:
    """The file and the length that have this number."""
    for path in corpus.original:
        if number < len(corpus.original[path]):
            return of_file(corpus, path, f"cut to {number}", corpus.original[path][:number])
        number -= len(corpus.original[path])
    return None


def wreck(corpus: Corpus, rng: random.Random, number: int) -> Damage | None:
    """Something large, to one file or to two."""
    weights = {".h5": 8, ".idx": 3, ".list": 3, ".json": 4}
    kinds = sorted({path.suffix for path in corpus.original})
    [suffix] = rng.choices(kinds, [weights[kind] for kind in kinds])
    alike = [path for path in corpus.original if path.suffix == suffix]
    path = rng.choice(alike)
    data = corpus.original[path]
    if rng.random() < 0.1 and len(alike) > 1:
        other = rng.choice([p for p in alike if p != path])
        said = f"{path.name[-12:]} and {other.name[-12:]} swapped"
        files = {path: corpus.original[other], other: data}
        return Damage(said, dict(files), (name_in_errors(path), name_in_errors(other)))
    if rng.random() < 0.05 and suffix != ".json":  # without a manifest its version never was
        return of_file(corpus, path, "removed", None)
    return of_file(corpus, path, *_changed(data, rng))


def _changed(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """`data` damaged at random, and how."""
    size = min(2 ** rng.randrange(14), len(data))
    a, b = (rng.randrange(len(data) - size + 1) for _ in range(2))
    piece = data[a : a + size]
    noise = rng.randbytes(size)
    new = bytearray(data)
    kind = rng.choice(
        ["cut", "zeros", "noise", "swap", "copy", "twice", "left out", "tail", "more"]
    )
    if kind == "cut":
        return f"cut to {a}", data[:a]
    if kind == "zeros":
        new[a : a + size] = bytes(size)
    elif kind == "noise":
        new[a : a + size] = noise
    elif kind == "swap":
        new[a : a + size], new[b : b + size] = data[b : b + size], piece
    elif kind == "copy":
        new[b : b + size] = piece
    elif kind == "twice":
        new[a:a] = piece
    elif kind == "left out":
        del new[a : a + size]
    elif kind == "tail":  # as a file is after a power cut
        new[a:] = bytes(len(data) - a)
    else:
        new += noise
    return f"{kind}: {size} bytes at {a}, {b}", bytes(new)


def flip_or_wreck(corpus: Corpus, rng: random.Random, number: int) -> Damage | None:
    """Half of each; and of flips half in HDF5's own structures."""
    if rng.random() < 0.5:
        return wreck(corpus, rng, number)
    if rng.random() < 0.5:
        damage = flip_bit(corpus, rng, number)
        assert damage is not None
        damage.field = None
        return damage
    path = rng.choice(corpus.segments)
    data = bytearray(corpus.original[path])
    inside = {i for p, _, at, size in corpus.chunks if p == path for i in range(at, at + size)}
    at = rng.choice([i for i in range(len(data)) if i not in inside])
    data[at] ^= 1 << rng.randrange(8)
    return of_file(corpus, path, f"byte {at} set to {data[at]}", bytes(data))


# Examination


@dataclass
class Finding:
    """What came of one case."""

    number: int
    said: str = ""
    effect: bool = True
    errors: list[str] = field(default_factory=list)  #: classes
    faults: dict[str, str] = field(default_factory=dict)  #: kind and the first of its kind

    def fault(self, kind: str, what: str) -> None:
        self.faults.setdefault(kind, what[:500])


def readings(
    opened: Any, truth: Truth, rng: random.Random
) -> Iterator[tuple[int | None, str, Callable[[], Any], Any]]:
    """Every way to read: of one sample or not, what, how, and what must come of it."""
    count = len(truth)
    ways: list[tuple[int | None, str, Callable[[], Any], Any]] = []
    everything = rng.sample(range(count), count)
    for name, spec in truth.schema.items():
        view = opened[name]
        for i in range(count):
            ways.append((i, f"{name}[{i}]", partial(view.__getitem__, i), truth.values[name][i]))
        picks: list[list[int]] = [everything, rng.sample(everything, count // 4)]
        picks += [list(range(rng.randrange(count), count)), list(range(0, count, 3))]
        for picked in picks:
            want = truth.batch(name, picked)
            ways.append((None, f"{name} of {picked}", partial(view.batch, picked), want))
        if spec.is_ragged and spec.kind == "array":
            low = [rng.randrange(9) for _ in everything]
            high = [a + rng.randrange(30) for a in low]
            want = truth.crop(name, everything, low, high)
            read = partial(view.crop, everything, low, high)
            ways.append((None, f"{name} cropped to {low}, {high}", read, want))
    if rng.random() < 0.5:  # what is read before decides what is held
        rng.shuffle(ways)
    return iter(ways)


def read_everything(
    opened: Any, truth: Truth, rng: random.Random, damage: Damage, finding: Finding
) -> set[int]:
    """Read, and note what is wrong; the samples that do not read by themselves."""
    unreadable = set()
    if len(opened) != len(truth):
        finding.fault("silent", f"{len(opened)} samples of {len(truth)}")
        return set()
    if opened.schema != truth.schema:  # as it may be of a file that does not carry its own
        finding.fault("silent", f"{opened.schema}")
        return set()
    for position, what, read, want in readings(opened, truth, rng):
        try:
            got = read()
        except rs.RaggedStoreError as error:
            note_error(error, damage, finding, field=True)
            if position is not None:
                unreadable.add(position)
        else:
            if not same(got, want):
                finding.fault("silent", what)
    return unreadable


def note_error(
    error: rs.RaggedStoreError, damage: Damage, finding: Finding, *, field: bool
) -> None:
    """Note its class, and whether it names what is damaged."""
    if type(error).__name__ not in finding.errors:
        finding.errors.append(type(error).__name__)
    said = str(error)
    named = any(name in said for name in damage.names)
    if not named or (damage.field and field and f"field {damage.field!r}" not in said):
        finding.fault("unnamed", f"{type(error).__name__}: {said}")


def examine_store(corpus: Corpus, damage: Damage, rng: random.Random, finding: Finding) -> None:
    """Open, read, verify, and now and then repair."""
    unreadable = set(range(len(corpus.truth)))
    try:
        store = rs.open(corpus.root)
    except rs.RaggedStoreError as error:
        note_error(error, damage, finding, field=False)
    else:
        assert isinstance(store, rs.Store)
        with store:
            unreadable = read_everything(store, corpus.truth, rng, damage, finding)
            report = store.verify()
        if report.ok == damage.effect(corpus):
            finding.fault("missed", f"verify: {report}")
        if report.damaged < len(unreadable):
            finding.fault("missed", f"{len(unreadable)} samples do not read; verify: {report}")
    if rng.random() < 1 / REPAIRED:
        check_repair(corpus, unreadable, finding)


def check_repair(corpus: Corpus, unreadable: set[int], finding: Finding) -> None:
    """Repair, and hold what it keeps against what was written."""
    before = {path: path.read_bytes() for path in corpus.root.rglob("*") if path.is_file()}
    try:
        report = repair(corpus.root)
        kept = report.positions().tolist()
        store = rs.open(corpus.root)
        assert isinstance(store, rs.Store)
        with store:
            if not store.verify().ok:
                finding.fault("repair", f"what is repaired has {store.verify()}")
            if len(store) != len(kept):
                finding.fault("repair", f"{len(store)} samples, and positions of {len(kept)}")
            for name in corpus.truth.schema:
                if not same(store[name].batch(slice(None)), corpus.truth.batch(name, kept)):
                    finding.fault("repair", f"field {name!r} is not what was written")
        if not {*range(len(corpus.truth))} - unreadable <= {*kept}:
            finding.fault("repair", f"a sample that reads is not kept: {report}")
        if any(path.read_bytes() != data for path, data in before.items()):
            finding.fault("repair", "a file that was there has changed")
    except rs.RaggedStoreError as error:
        finding.fault("repair", f"{type(error).__name__}: {error}")
    finally:
        for path in corpus.root.rglob("*"):
            if path.is_file() and path not in before:
                path.unlink()


def examine_file(corpus: Corpus, damage: Damage, rng: random.Random, finding: Finding) -> None:
    """Open and read."""
    try:
        opened = rs.open(corpus.root)
    except rs.RaggedStoreError as error:
        note_error(error, damage, finding, field=False)
    else:
        read_everything(opened, corpus.truth, rng, damage, finding)


# Suites


@dataclass
class Suite:
    """How to make what is damaged, how to damage it, and how to look at it."""

    build: Callable[[Path], Corpus]
    damage: Callable[[Corpus, random.Random, int], Damage | None]
    examine: Callable[[Corpus, Damage, random.Random, Finding], None]
    short: int  #: cases in the short mode
    long: int | None  #: and in the long one; None for every one there is
    every: Callable[[Corpus], int] | None = None  #: how many that is


def make_tiny(folder: Path) -> Corpus:
    """A segment of four samples, a list that names it, and a manifest that names the list."""
    corpus = make_store(folder, [4, 1], direct=1, names=["frames", "label"])
    for path in (corpus.segments[1], corpus.segments[1].with_suffix(".idx")):
        del corpus.original[path]
    return corpus


def make_unindexed(folder: Path) -> Corpus:
    corpus = make_store(folder, [20, 12, 8], direct=2)
    for path in corpus.segments:
        path.with_suffix(".idx").unlink()
        del corpus.original[path.with_suffix(".idx")]
    return corpus


def make_single(folder: Path, count: int = 40, names: Sequence[str] = ()) -> Corpus:
    corpus = make_store(folder, [count], names=names)
    path = folder / "single.h5"
    with steady():
        rs.open(corpus.root).export(path)
    return replace_by_file(corpus, path)


def make_parsed(folder: Path) -> Corpus:
    """An exported file as another tool leaves it that has had it open to write."""
    corpus = make_single(folder, 4, ["frames", "label"])
    h5py.File(corpus.root, "r+").close()
    return replace_by_file(corpus, corpus.root)


def replace_by_file(corpus: Corpus, path: Path) -> Corpus:
    """The corpus that is the one file at `path`, with the chunks that are in it."""
    chunks: list[tuple[Path, str, int, int]] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found = [node.id.get_chunk_info(i) for i in range(node.id.get_num_chunks())]
            chunks.extend((path, name.split("/")[0], c.byte_offset, c.size) for c in found)

    with h5py.File(path) as h5:
        h5.visititems(visit)
    return Corpus(path, corpus.truth, [path], {path: path.read_bytes()}, chunks)


def arrays_of(truth: Truth) -> dict[str, np.ndarray]:
    """The same data as arrays, by their paths in a file."""
    found = {}
    for name, spec in truth.schema.items():
        if not spec.is_ragged:
            found[f"{name}/data"] = np.array(truth.values[name], spec.dtype)
            continue
        column = truth.values[name]
        if spec.kind == "str":
            column = [np.frombuffer(text.encode(), np.uint8) for text in column]
        batch = rs.RaggedBatch.from_list(column, spec.dtype, spec.ndim)
        found[f"{name}/data"] = batch.values
        spans = np.stack([batch.offsets[:-1], batch.offsets[1:]], axis=1)
        found[f"{name}/data_start_and_stop"] = spans
        found[f"{name}/data_shape"] = batch.shapes
    return found


def make_peer(folder: Path, *, how: str) -> Corpus:
    """The data of "bits" in one file, chunks of 4 KiB, as another library writes it."""
    path = folder / "peer.h5"
    truth = Truth(40, list(FIELDS))
    library, codec = how.split()
    if library == "PyTables":
        with tables.open_file(str(path), "w") as file:
            for name, data in arrays_of(truth).items():
                rows = max(4096 // (data.nbytes // len(data)), 1)
                place, leaf = name.split("/")
                file.create_carray(
                    f"/{place}", leaf, obj=data, chunkshape=(rows, *data.shape[1:]),
                    filters=tables.Filters(5, codec, shuffle=True), createparents=True,
                )  # fmt: skip
    else:
        chosen = {"Blosc": hdf5plugin.Blosc, "Blosc2": hdf5plugin.Blosc2}[codec]
        with h5py.File(path, "w") as file:
            for name, data in arrays_of(truth).items():
                rows = max(4096 // (data.nbytes // len(data)), 1)
                chunk = (min(rows, len(data)), *data.shape[1:])
                file.create_dataset(name, data=data, chunks=chunk, **chosen(cname="lz4"))
    return replace_by_file(Corpus(path, truth, [], {}), path)


def examine_peer(
    corpus: Corpus, damage: Damage, rng: random.Random, finding: Finding, *, how: str
) -> None:
    """Read all arrays, with the library that wrote them."""
    want = arrays_of(corpus.truth)
    if how.startswith("PyTables"):
        with tables.open_file(str(corpus.root)) as file:
            reads = {name: file.get_node(f"/{name}").read for name in want}
            note_peer(reads, want, finding)
    else:
        with h5py.File(corpus.root) as h5:
            note_peer({name: partial(h5[name].__getitem__, ...) for name in want}, want, finding)


def note_peer(reads: dict[str, Any], want: dict[str, np.ndarray], finding: Finding) -> None:
    for name, read in reads.items():
        try:
            got = read()
        except (OSError, RuntimeError, tables.HDF5ExtError) as error:
            finding.errors.append(type(error).__name__)
        else:
            if not same(got, want[name]):
                finding.fault("silent", name)


def make_elsewhere(folder: Path) -> Corpus:
    path = folder / "elsewhere.h5"
    truth = Truth(60, ["audio", "label"])
    with h5py.File(path, "w") as file:
        for name, data in arrays_of(truth).items():
            file.create_dataset(
                name, data=data, chunks=(min(len(data), 999), *data.shape[1:]),
                compression="gzip", shuffle=True, fletcher32=True,
            )  # fmt: skip
    return replace_by_file(Corpus(path, truth, [], {}), path)


SUITES = {
    "bits": Suite(partial(make_store, commits=[25, 15]), flip_bit, examine_store, 100, 10_000),
    "bytes": Suite(make_tiny, change_byte, examine_store, 200, None, patterns_of),
    "cuts": Suite(make_tiny, cut_short, examine_store, 80, None, bytes_of),
    "wrecks": Suite(
        partial(make_store, commits=[20, 10, 12, 8, 1, 9], direct=2), wreck, examine_store,
        70, 3000,
    ),
    "unindexed": Suite(make_unindexed, flip_or_wreck, examine_store, 40, 1000),
    "single": Suite(make_single, flip_or_wreck, examine_file, 80, 3000),
    "alone": Suite(
        partial(make_single, count=4, names=["frames", "label"]), change_byte, examine_file,
        80, 6000, patterns_of,
    ),
    "parsed": Suite(make_parsed, change_byte, examine_file, 80, 6000, patterns_of),
    "elsewhere": Suite(make_elsewhere, flip_or_wreck, examine_file, 60, 1000),
    **{
        f"peer {how}": Suite(
            partial(make_peer, how=how), flip_bit, partial(examine_peer, how=how), 100, 10_000
        )
        for how in PEERS
    },
}  # fmt: skip


# A case, a child, a campaign


def run_case(name: str, corpus: Corpus, seed: int, number: int) -> Finding:
    """Damage, look, put back."""
    suite, rng = SUITES[name], random.Random(f"{seed} {name} {number}")
    finding = Finding(number)
    damage = suite.damage(corpus, rng, number)
    if damage is None or not damage.effect(corpus):
        finding.effect = False
        return finding
    finding.said = damage.said
    for path, data in damage.files.items():
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
    try:
        suite.examine(corpus, damage, rng, finding)
    except MemoryError as error:
        finding.fault("memory", repr(error))
    except Exception as error:  # none but raggedstore's own may come out
        finding.fault("alien", repr(error))
    finally:
        for path in damage.files:
            path.write_bytes(corpus.original[path])
    return finding


def whole(name: str, corpus: Corpus) -> None:
    """What is not damaged must read: else the campaign finds nothing."""
    finding = Finding(-1)
    SUITES[name].examine(corpus, Damage("nothing", {}), random.Random(0), finding)
    expected = {"missed"} if name == "unindexed" else set()
    assert {*finding.faults} <= expected and not finding.errors, finding


def work(name: str, seed: int) -> None:
    """The child: do the cases whose numbers come in."""
    corpus = SUITES[name].build(Path(tempfile.mkdtemp()))
    whole(name, corpus)

    def one(number: int) -> Finding:
        with alarm(SECONDS):
            return run_case(name, corpus, seed, number)

    serve(one, MEMORY)


def children(name: str, numbers: Sequence[int], seed: int) -> Iterator[Finding]:
    """Have the cases done, by another child wherever one dies."""
    arguments = ["-m", "tests.campaigns.corrupt", "--work", "--suite", name, "--seed", str(seed)]
    for number, said, (kind, words) in answers(arguments, numbers, BATCH):
        yield Finding(number, faults={kind: words}) if kind else Finding(**said)


@dataclass
class Tally:
    """What came of the cases of one suite."""

    suite: str
    seed: int
    cases: int = 0
    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    again: list[str] = field(default_factory=list)  #: a line that does a faulty case again
    seconds: float = 0.0

    def add(self, finding: Finding) -> None:
        if not finding.effect:
            return
        self.cases += 1
        self.right += not finding.errors and not finding.faults
        self.errors.update({*finding.errors})
        self.faults.update({*finding.faults})
        for kind, what in finding.faults.items():
            if kind in TOLERATED.get(self.suite, ()) or self.faults[kind] > SHOWN:
                continue
            self.again.append(
                f"{kind}: python -m tests.campaigns.corrupt --suite {self.suite!r} "
                f"--seed {self.seed} --case {finding.number}    # {finding.said}: {what}"
            )


def numbers_of(name: str, count: int | None, seed: int, long: bool) -> list[int]:
    """The numbers of the cases to do: every one, or so many from all over."""
    suite = SUITES[name]
    count = count or (suite.long if long else suite.short)
    if suite.every is None:
        return list(range(count or 0))
    with tempfile.TemporaryDirectory() as folder:
        total = suite.every(suite.build(Path(folder)))
    return sorted(random.Random(seed).sample(range(total), min(count or total, total)))


def campaign(
    name: str, *, count: int | None = None, seed: int = 0, long: bool = False, jobs: int = 1
) -> Tally:
    """Do the cases of one suite."""
    tally, begun = Tally(name, seed), time.monotonic()
    numbers = numbers_of(name, count, seed, long)
    with ThreadPoolExecutor(jobs) as pool:
        shares = [numbers[i::jobs] for i in range(jobs)]
        for findings in pool.map(lambda share: [*children(name, share, seed)], shares):
            for finding in findings:
                tally.add(finding)
    tally.seconds = time.monotonic() - begun
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, action="append")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time")
    parser.add_argument("--case", type=int)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.suite or list(SUITES)
    if options.work:
        work(names[0], options.seed)
        return
    if options.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            corpus = SUITES[names[0]].build(Path(folder))
            print(run_case(names[0], corpus, options.seed, options.case))
        return
    layout = partial(print_row, first=26, width=8)
    layout("suite", "cases", "right", *FAULTS, "seconds", "  errors, by class")
    failed = False
    for name in names:
        tally = campaign(
            name, count=options.cases, seed=options.seed, long=options.long, jobs=options.jobs
        )
        faults = [tally.faults[kind] for kind in FAULTS]
        errors = ", ".join(f"{error} {n}" for error, n in tally.errors.most_common())
        layout(name, tally.cases, tally.right, *faults, round(tally.seconds), f"  {errors}")
        print(*tally.again, sep="\n", end="\n" * bool(tally.again), flush=True)
        failed |= bool({*tally.faults} - TOLERATED.get(name, set()))
    sys.exit(failed)


if __name__ == "__main__":
    main()
