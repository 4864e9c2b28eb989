"""Feed the parsers what no writer ever wrote, and see that nothing but errors of our own come out.

    python -m tests.campaigns.fuzz [--long] [--target NAME] [--cases N] [--seed 0] [--jobs 2]
    python -m tests.campaigns.fuzz --target index --seed 0 --case 1234        one case, told in full
    python -m tests.campaigns.fuzz --guided index --cases 100000              by atheris alone

A case takes something that is right and changes it at random: bits, bytes, numbers, pieces cut,
doubled and swapped, or, of JSON, values put in the place of others. Checksums and digests are made
anew afterwards, so that what is changed gets past them. Then it is parsed, and what parses is read.
Any exception but a RaggedStoreError is a finding, and so is a crash, a case of over a minute,
and memory of over 3 GiB. Half of a long run's cases are led by atheris, where it is installed, to
the lines of raggedstore and of pyfive that no case has come to before.

manifest, list, schema   JSON
index                    chunk tables, their headers as JSON and their entries and blocks
end                      the same behind the end of a single file
frame, blosc, blocks     compressed chunks, and the blocks that are put together from several
filters                  deflate, shuffle and fletcher32
hdf5                     files as PyTables, h5py and raggedstore itself write them
indexes                  where the chunks of files in HDF5's newer formats lie
store                    whole stores: manifest, list, .idx and segment, whichever it hits
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import h5py
import numpy as np
import tables

if "--guided" in sys.argv:
    import atheris

    following = atheris.instrument_imports(include=["raggedstore", "pyfive"])
else:
    following = contextlib.nullcontext()
with following:
    import pyfive  # noqa: F401

    import raggedstore as rs
    from raggedstore import strictjson
    from raggedstore.segment.appended import appended_table
    from raggedstore.segment.blocks import (
        BlockTable,
        assemble,
        assembled_size,
        blocks_of,
        check_header,
        decode_assembled,
    )
    from raggedstore.segment.codec import decode_blosc, decode_frame, encode_frame
    from raggedstore.segment.context import ReadContext
    from raggedstore.segment.file import FileBytes
    from raggedstore.segment.filters import unfilter
    from raggedstore.segment.parser import parse
    from raggedstore.segment.reader import SegmentReader
    from raggedstore.segment.rebuild import rebuild_table
    from raggedstore.segment.table import SegmentTable, checksum
    from raggedstore.store.lists import dump_list, parse_segments, seal, unseal
    from raggedstore.store.manifest import Manifest, path_of
    from tests.campaigns import hostile
    from tests.campaigns.child import alarm, limit_memory, shared
    from tests.campaigns.table import conclude, print_row

__all__ = ["TARGETS", "Tally", "campaign", "run_case"]

MEMORY = 3 * 2**30  # address space of a child above what it begins with
SECONDS = 60  # for one case, or a few; the machine may be busy
BATCH = 20_000  # cases of one child
ARMED = 50  # cases for which an alarm is set together
SHOWN = 5

Rng = random.Random
Seeds = list[bytes]


# Mutation


NUMBERS = [0, 1, 2, 7, 8, 16, 31, 32, 100, 127, 128, 255, 256, 2**12, 2**15, 2**16 - 1, 2**16]
NUMBERS += [2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63]
NUMBERS += [2**64 - 1, -1, -2, -(2**31), -(2**63)]
VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    "a",
    "..",
    "../x",
    "\0",
    "ﬁ",
    "data",
    "<i2",
    "|O",
    "str",
]
VALUES += [[], {}, [[]], [None], [0], {"name": "x"}, 0.5, -1.5, 1e300, "0" * 32 + ".h5", 10**30]
VALUES += [*NUMBERS, "x" * 300, [1] * 20]
TOKENS = [
    b"NaN",
    b"1e999",
    b"[" * 100,
    b"]",
    b"{",
    b"}",
    b",",
    b'"',
    b"\\u0000",
    b"\xff",
    b"-",
    b":",
]
TOKENS += [b'"schema":', b"TREE\1", b"SNOD", b"HEAP", b"OHDR", b"OCHK", b"BTHD", b"FRHP", b"GCOL"]
TOKENS += [b"b2frame\0", b"RSIDX\0\0\2", b"\x89HDF\r\n\x1a\n", bytes(8), b"\xff" * 8]


def mutated(data: bytes, rng: Rng, others: Seeds) -> bytes:
    """`data` changed in one place or a few."""
    new = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(new)) if new else 0
        kind = rng.randrange(9)
        if kind == 0 and new:
            new[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and new:
            new[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind <= 3 and new:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))
            order = rng.choice(("little", "little", "big"))
            piece = (number % 2 ** (8 * size)).to_bytes(size, order)
            new[at : at + size] = piece[: len(new) - at]
        elif kind == 4:
            size = rng.choice((1, 4, 16, 64, 1000))
            del new[at : at + size]
        elif kind == 5:
            size = rng.choice((1, 4, 16, 64, 1000))
            new[at:at] = new[at : at + size]
        elif kind == 6 and new:
            other = rng.randrange(len(new))
            size = rng.choice((4, 8, 16, 64))
            new[at : at + size] = new[other : other + size][: len(new) - at]
        elif kind == 7:
            token = rng.choice(TOKENS)
            new[at : at + len(token) * rng.randrange(2)] = token
        elif others:
            other_seed = rng.choice(others)
            new[at:] = other_seed[rng.randrange(len(other_seed) + 1) :]
    return bytes(new)


def mutated_json(data: bytes, rng: Rng, others: Seeds) -> bytes:
    """JSON with values put in the place of others; now and then its text is changed instead."""
    if rng.random() < 0.3:
        return mutated(data, rng, others)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutated(data, rng, others)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _replaced(value, rng)
    return json.dumps(value).encode()


def _replaced(value: Any, rng: Rng) -> Any:
    """`value` with something in it replaced, removed, doubled or added."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return deepcopy(rng.choice(VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    if rng.random() < 0.75:
        value[key] = _replaced(value[key], rng)
    elif rng.random() < 0.5:
        del value[key]
    elif isinstance(value, dict):
        value[rng.choice([*keys, "x"])] = deepcopy(rng.choice(VALUES))
    else:
        value.insert(key, deepcopy(rng.choice([*VALUES, value[key]])))
    return value


# Targets


@dataclass(frozen=True)
class Target:
    """What is fed, and with what."""

    seeds: Callable[[], Seeds]
    feed: Callable[[bytes], None]  #: raises nothing but a RaggedStoreError
    change: Callable[[bytes, Rng, Seeds], bytes]
    short: int  #: cases in the short mode
    long: int


class Held(FileBytes):
    """A file's bytes that are no file's."""

    def __init__(self, data: bytes) -> None:
        self.path = Path("none.h5")
        self._whole = memoryview(data)
        self.size = len(data)


@cache
def home() -> Path:
    """A store to take seeds from."""
    folder = Path(hostile.template().name) / "seeds"
    folder.mkdir()
    metadata = hostile.set_key("metadata", to={"a": [1, {"b": None}], "c": 1.5})
    return hostile.manifest_of(folder, metadata)


def feed_manifest(data: bytes) -> None:
    manifest = Manifest.loads(hostile.sealed("manifest", data), Path("store"))
    repr(manifest.schema), len(manifest.dumps())


def feed_list(data: bytes) -> None:
    value = unseal("list", hostile.sealed("list", data))
    if isinstance(value, dict):
        entries = parse_segments(value.get("segments"))
        if entries:
            dump_list(entries)


def feed_schema(data: bytes) -> None:
    try:
        value = strictjson.loads(data)
    except ValueError:  # the one that it promises
        return
    schema = rs.Schema.from_json(value)
    assert rs.Schema.from_json(json.loads(schema.dumps())) == schema


def index_seeds() -> Seeds:
    """Its file's size, and what stands before the checksum."""
    path = hostile.segment_of(home())
    body = path.with_suffix(".idx").read_bytes()[:-8]
    return [body, body[:200]]


def change_index(data: bytes, rng: Rng, others: Seeds) -> bytes:
    """Its header as JSON, or any bytes."""
    length = struct.unpack_from("<Q", data, 8)[0] if len(data) >= 16 else 0
    if rng.random() < 0.5 and 16 + length <= len(data):
        header = mutated_json(data[16 : 16 + length], rng, [])
        return data[:8] + struct.pack("<Q", len(header)) + header + data[16 + length :]
    return mutated(data, rng, others)


def feed_index(data: bytes) -> None:
    segment = hostile.segment_of(home()).read_bytes()
    sealed = data + struct.pack("<Q", checksum(data))
    read_some(SegmentTable.loads(sealed, file_bytes=len(segment)), Held(segment))


@cache
def exported() -> tuple[bytes, bytes]:
    """HDF5's bytes of a single file, and those of the table behind them."""
    return hostile.parts_of(hostile.single(home().parent))


def end_seeds() -> Seeds:
    """What stands in a table before its checksum, then how much longer it is said to be."""
    return [body + bytes(8) for body in (exported()[1], exported()[1][:200])]


def change_end(data: bytes, rng: Rng, others: Seeds) -> bytes:
    """The table, two of its entries for each other, or how long it is said to be."""
    body, more = bytearray(data[:-8]), data[-8:]
    chance = rng.random()
    if chance < 0.3:
        start = 16 + struct.unpack_from("<Q", body, 8)[0]
        for _ in range(rng.choice((1, 1, 3))):  # a short seed has none: what then changes is odd
            one, other = (start + 24 * rng.randrange(20) for _ in range(2))
            body[one : one + 24], body[other : other + 24] = (
                body[other : other + 24],
                body[one : one + 24],
            )
        return bytes(body) + more
    if chance < 0.9:
        return change_index(bytes(body), rng, [other[:-8] for other in others]) + more
    return bytes(body) + struct.pack("<Q", rng.choice(NUMBERS) % 2**64)


def feed_end(data: bytes) -> None:
    """A single file with that behind its end, where the length need not be right."""
    hdf5, _ = exported()
    (more,) = struct.unpack("<Q", data[-8:].rjust(8, b"\0"))
    whole = hostile.with_end(hdf5, data[:-8])
    length, magic = hostile.TAIL.unpack(whole[-hostile.TAIL.size :])
    tail = hostile.TAIL.pack((length + more) % 2**64, magic)
    held = Held(whole[: -hostile.TAIL.size] + tail)
    table = appended_table(held)
    read_some(table or rebuild_table("none", held, ends_here=True), held)


def read_some(table: SegmentTable, data: FileBytes) -> None:
    """Whatever is not too much of every field; each error by itself."""
    reader = SegmentReader("none", data, table, ReadContext(2**20, checksums=False))
    count = len(reader)
    positions = np.array(sorted({0, 1, count // 2, count - 1} & {*range(min(count, 10**6))}))
    if not len(positions):
        return
    error: rs.RaggedStoreError | None = None
    for name, spec in table.schema.items():
        try:
            shapes = reader.shapes(name, positions)
            small = shapes.prod(axis=1, dtype=np.float64) * spec.dtype.itemsize < 2**24
            chosen = positions[small]
            if spec.is_ragged:
                reader.ragged(name, chosen[::-1])
                reader.ragged(name, chosen, (np.ones_like(chosen), np.full_like(chosen, 3)))
            else:
                reader.dense(name, chosen)
            for i in chosen.tolist():
                reader.one(name, i)
        except rs.RaggedStoreError as caught:
            error = caught
    if error is not None:
        raise error


def frames() -> Seeds:
    """Chunks of 4 KiB of all kinds that are written."""
    rng = np.random.default_rng(0)
    noise, steps = rng.integers(0, 2**31, 1024), np.arange(1024) // 9
    found = []
    for raw in (noise, steps, np.zeros(1024), np.full(1024, 7)):
        for codec, filters in (("lz4", ("shuffle",)), ("zstd", ()), ("zstd", ("bitshuffle",))):
            how = rs.Compression(codec, 1, filters, chunk_bytes=4096, block_bytes=1024)
            found.append(encode_frame(raw.astype("i4"), 4, 4, how))
    how = rs.Compression("zstd", 3, ("shuffle", "bytedelta"), chunk_bytes=4096, block_bytes=1024)
    return [*found, encode_frame(steps.astype("i4"), 4, 4, how)]


def feed_frame(data: bytes) -> None:
    decode_frame(memoryview(data), np.empty(4096, np.uint8))


def chunks() -> Seeds:
    """The Blosc2 chunks that are in them; and Blosc 1's, which HDF5's older filter keeps."""
    import blosc2

    found = []
    for frame in frames():
        (head,) = struct.unpack_from(">i", frame, 11)
        found.append(frame[head:])
    steps = (np.arange(1024) // 9).astype("i4")
    for codec in (blosc2.Codec.LZ4, blosc2.Codec.BLOSCLZ, blosc2.Codec.ZLIB, blosc2.Codec.ZSTD):
        found.append(blosc2.compress2(steps, codec=codec, typesize=4))
    return found


def feed_blosc(data: bytes) -> None:
    decode_blosc(memoryview(data), np.empty(4096, np.uint8))


def feed_blocks(data: bytes) -> None:
    """Told apart, checked as a table's, put together and decoded."""
    found = blocks_of(memoryview(data), len(data))
    if found is None or found.nbytes > 2**20:
        return
    count = len(found.edges) - 1
    table = BlockTable.of([(found, np.zeros(count, np.uint32))], count * found.nbytes)
    if table is None or not table.check_bounds(np.array([len(data)])) or found.raw:
        return
    check_header(table.header)
    sizes = np.diff(found.edges.astype(np.int64))
    whole = assemble(table.header, table.nbytes, sizes, np.empty(assembled_size(sizes), np.uint8))
    stored = np.frombuffer(data, np.uint8)[int(found.edges[0]) : int(found.edges[-1])]
    whole[len(whole) - len(stored) :] = stored
    decode_assembled(whole.data, np.empty(count * table.nbytes, np.uint8))


def filtered() -> Seeds:
    """Which filters and which are skipped, a byte each; then the chunk."""
    raw = (np.arange(1024) // 9).astype("i4").tobytes()
    return [
        b"\1\0" + zlib.compress(raw),
        b"\7\0" + zlib.compress(raw),
        b"\2\0" + raw,
        b"\0\0" + raw,
    ]


def feed_filters(data: bytes) -> None:
    head = data[:2].ljust(2, b"\0")
    filters = [code for code in (2, 1, 3) if head[0] >> code - 1 & 1]
    unfilter(data[2:], filters, head[1], 4, 4096)


@cache
def files() -> tuple[bytes, ...]:
    """Small HDF5 files from everywhere."""
    folder = home().parent
    found = [hostile.segment_of(home())]
    for name, options in {
        "plain": {},
        "gzip": {"chunks": (8,), "compression": "gzip", "shuffle": True, "fletcher32": True},
        "new": {"chunks": (16,), "compression": "gzip"},
    }.items():
        found.append(folder / f"{name}.h5")
        with h5py.File(found[-1], "w", userblock_size=512 if name == "gzip" else 0) as h5:
            group = h5.create_group("x", track_order=name == "new")
            starts = np.arange(3) * 10
            group.create_dataset("data", data=np.arange(30, dtype="i2"), **options)
            group["data_start_and_stop"] = np.stack([starts, starts + 10], axis=1)
            group["data_shape"] = np.full((3, 1), 10)
            h5["label/data"] = np.arange(3, dtype=">f4")
            wide = {**options, "chunks": (2, 3)} if options else {}
            h5.create_dataset("grid/data", data=np.arange(15, dtype="i4").reshape(3, 5), **wide)
            h5.attrs["some"] = "words"
    found.append(folder / "tables.h5")
    with tables.open_file(str(found[-1]), "w") as file:
        for name, complib in (("a", "blosc:lz4"), ("b", "blosc2:zstd"), ("c", "zlib")):
            file.create_carray(
                f"/{name}", "data", obj=np.arange(40, dtype="i4"), createparents=True,
                chunkshape=(16,), filters=tables.Filters(5, complib),
            )  # fmt: skip
    return tuple(path.read_bytes() for path in found)


def feed_hdf5(data: bytes) -> None:
    held = Held(data)
    read_some(rebuild_table("none", held), held)


@cache
def indexed() -> tuple[tuple[bytes, Callable[[Any], Any]], ...]:
    """Files of newer formats, and what finds the chunks of their dataset."""
    found = []
    for shape, chunks, most, options in (
        ((600,), (2,), None, {}),
        ((3000,), (2,), None, {"compression": "gzip"}),
        ((900,), (2,), (None,), {}),
        ((5, 300), (2, 3), (6, None), {"compression": "gzip"}),
        ((90, 40), (3, 3), (None, None), {}),
        ((90, 40), (3, 3), (None, None), {"compression": "gzip"}),
    ):
        stream = io.BytesIO()
        with h5py.File(stream, "w", libver="v110") as h5:
            h5.create_dataset("x", shape, "i2", chunks=chunks, maxshape=most, **options)[...] = 1
        find = parse(stream)["x"].id._index_params.chunk_address
        found.append((stream.getvalue(), find))
    return tuple(found)


class _Alike(int):
    """A checksum that holds whatever was changed."""

    __hash__ = int.__hash__

    def __ne__(self, other: object) -> bool:
        return False


def feed_indexes(data: bytes) -> None:
    _, find = indexed()[data[0] % len(indexed())]
    with mock.patch("raggedstore.segment.indexes.lookup3", return_value=_Alike()):
        found = find(io.BytesIO(data[1:]))
    assert len(found.places) == len(found.offsets) <= len(data)


def store_seeds() -> Seeds:
    """The files of a store, each with a byte that says which it is."""
    return [bytes([i]) + data for i, data in enumerate(store_parts())]


@cache
def store_parts() -> tuple[bytes, ...]:
    """The manifest and a list as JSON, the .idx before its checksum, and the segment."""
    segment = hostile.segment_of(home())
    manifest = hostile.body_of(home())
    listed = json.dumps({"segments": manifest["segments"]}).encode()
    index = segment.with_suffix(".idx").read_bytes()[:-8]
    return json.dumps(manifest).encode(), listed, index, segment.read_bytes()


def change_store(data: bytes, rng: Rng, others: Seeds) -> bytes:
    change = {0: mutated_json, 1: mutated_json, 2: change_index}.get(data[0], mutated)
    return data[:1] + change(data[1:], rng, [])


@cache
def scratch() -> Path:
    return Path(shutil.copytree(home(), home().with_name("changed")))


def feed_store(data: bytes) -> None:
    """Put a part in place, have all digests agree, and read."""
    if not data:
        return
    which, part = data[0] % 4, data[1:]
    root = scratch()
    segment = hostile.segment_of(home())
    segment = root / "segments" / segment.name
    parts = list(store_parts())
    parts[which] = part
    segment.write_bytes(parts[3])
    segment.with_suffix(".idx").write_bytes(parts[2] + struct.pack("<Q", checksum(parts[2])))
    if which == 0:
        path_of(root, 1).write_bytes(hostile.sealed("manifest", part))
    else:
        manifest = json.loads(parts[0])
        manifest["segments"] = json.loads(parts[0])["segments"]
        path_of(root, 1).write_bytes(seal("manifest", manifest))
        hostile.agree(root)
        if which == 1:
            listed = hostile.sealed("list", part)
            name = f"{hostile.xxhash.xxh3_128_hexdigest(listed)}.list"
            (root / "versions" / name).write_bytes(listed)
            entry, _ = dump_list([hostile.SegmentEntry(*row) for row in manifest["segments"]])
            manifest["lists"] = [[name, *entry.to_json()[1:]]]
            manifest["segments"] = []
            path_of(root, 1).write_bytes(seal("manifest", manifest))
    try:
        with rs.open(root) as store:
            if len(store) <= 100:
                hostile.read_all(root)
            store.verify()
    finally:
        for path in (root / "versions").glob("*.list"):
            path.unlink()


TARGETS = {
    "manifest": Target(
        lambda: [json.dumps(hostile.body_of(home())).encode()], feed_manifest, mutated_json,
        400, 180_000,
    ),
    "list": Target(lambda: [store_parts()[1]], feed_list, mutated_json, 400, 150_000),
    "schema": Target(
        lambda: [json.dumps(hostile.body_of(home())["schema"]).encode()], feed_schema,
        mutated_json, 500, 200_000,
    ),
    "index": Target(index_seeds, feed_index, change_index, 400, 120_000),
    "end": Target(end_seeds, feed_end, change_end, 300, 60_000),
    "frame": Target(frames, feed_frame, mutated, 500, 100_000),
    "blosc": Target(chunks, feed_blosc, mutated, 500, 100_000),
    "blocks": Target(frames, feed_blocks, mutated, 400, 70_000),
    "filters": Target(filtered, feed_filters, mutated, 300, 58_000),
    "hdf5": Target(lambda: list(files()), feed_hdf5, mutated, 300, 12_000),
    "indexes": Target(
        lambda: [bytes([i]) + data for i, (data, _) in enumerate(indexed())], feed_indexes, mutated,
        400, 60_000,
    ),
    "store": Target(store_seeds, feed_store, change_store, 100, 10_000),
}  # fmt: skip


# A case, a child, a campaign


@dataclass
class Tally:
    """What came of the cases of a target."""

    target: str
    seed: int = 0
    cases: int = 0
    guided: int = 0  #: of which atheris chose so many
    errors: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0


def case_of(name: str, seeds: Seeds, seed: int, number: int) -> bytes:
    """What case `number` feeds."""
    rng = Rng(f"{seed} {name} {number}")
    return TARGETS[name].change(rng.choice(seeds), rng, seeds)


def run_case(name: str, data: bytes) -> str:
    """The class of the error that came, or nothing; an exception that may not come is raised."""
    try:
        TARGETS[name].feed(data)
    except rs.RaggedStoreError as error:
        return type(error).__name__
    return ""


def work(name: str, seed: int, first: int, stop: int, place: Path) -> None:
    """The child: cases `first` to `stop`; where it is, it notes in the file `place`."""
    seeds = TARGETS[name].seeds()
    for data in seeds:
        run_case(name, data)
    limit_memory(MEMORY)
    errors: Counter[str] = Counter()
    with open(place, "r+b") as file, mmap.mmap(file.fileno(), 8) as note:
        for number in range(first, stop):
            struct.pack_into("<q", note, 0, number)
            if number % ARMED == first % ARMED:
                faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                errors[run_case(name, case_of(name, seeds, seed, number))] += 1
            except Exception as error:
                print(json.dumps([number, repr(error)[:300]]), flush=True)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(errors), flush=True)


def child_of(name: str, seed: int, first: int, stop: int, folder: Path, tally: Tally) -> int:
    """Do cases in a child process; where it stopped."""
    place = folder / f"{name}-{first}"
    place.write_bytes(struct.pack("<q", first))
    command = [sys.executable, "-m", "tests.campaigns.fuzz", "--target", name, "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--work", str(first), str(stop), str(place)],
        capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    again = f"python -m tests.campaigns.fuzz --target {name} --seed {seed} --case"
    for line in done.stdout.splitlines():
        value = json.loads(line)
        if isinstance(value, dict):
            tally.errors.update(value)
        else:
            tally.findings.append(f"{again} {value[0]}    # {value[1]}")
    reached = stop
    if done.returncode:
        (at,) = struct.unpack("<q", place.read_bytes())
        words = done.stderr[-1500:]
        kind = "hang" if "Timeout" in words else f"crash, status {done.returncode}"
        tally.findings.append(f"{again} {at}    # {kind}: {words}")
        reached = at + 1
    tally.cases += reached - first
    return reached


def guide(name: str, cases: int, seed: int) -> None:
    """Have atheris choose cases; it ends the process at the first finding."""
    seeds = TARGETS[name].seeds()
    for data in seeds:
        run_case(name, data)

    def one(data: bytes) -> None:
        run_case(name, data)

    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(seeds):
            (Path(corpus) / str(i)).write_bytes(data)
        arguments = [f"-runs={cases}", f"-seed={seed + 1}", f"-timeout={SECONDS}", "-max_len=65536"]
        arguments += ["-rss_limit_mb=4096", "-detect_leaks=0", "-verbosity=0", corpus]
        atheris.Setup([sys.argv[0], *arguments], one)
        atheris.Fuzz()


def guided(name: str, cases: int, seed: int, folder: Path, tally: Tally) -> None:
    """The same in a child process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.fuzz", "--guided", name,
         "--cases", str(cases), "--seed", str(seed)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    tally.cases += cases
    tally.guided += cases
    if done.returncode:
        tally.findings.append(f"atheris, {name}: {(done.stdout + done.stderr)[-3000:]}")


def has_atheris() -> bool:
    from importlib.util import find_spec

    return find_spec("atheris") is not None


def campaign(name: str, *, cases: int | None = None, seed: int = 0, long: bool = False) -> Tally:
    """Do the cases of one target."""
    tally, begun = Tally(name, seed), time.monotonic()
    target = TARGETS[name]
    cases = cases or (target.long if long else target.short)
    with tempfile.TemporaryDirectory(dir=shared()) as made:
        folder = Path(made)
        if long and has_atheris():
            guided(name, cases // 2, seed, folder, tally)
        left = cases - tally.cases
        first = 0
        while first < left and len(tally.findings) < 50:
            first = child_of(name, seed, first, min(first + BATCH, left), folder, tally)
    tally.seconds = time.monotonic() - begun
    return tally


def show(tallies: Iterator[Tally]) -> NoReturn:
    """Print what came, and end."""
    started = time.monotonic()
    print_row(
        "target", "cases", "guided", "findings", "seconds", "  of the others: read, and errors"
    )
    total, findings = 0, []
    for tally in tallies:
        said = ", ".join(f"{error or 'read'} {n}" for error, n in tally.errors.most_common())
        counts = tally.cases, tally.guided, len(tally.findings), round(tally.seconds)
        print_row(tally.target, *counts, f"  {said}")
        total += tally.cases
        findings += tally.findings[:SHOWN]
    conclude(f"{total:,} cases", started, findings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time")
    parser.add_argument("--case", type=int)
    parser.add_argument("--guided", choices=TARGETS)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.guided:
        guide(options.guided, options.cases or 10_000, options.seed)
    elif options.work:
        first, stop, place = options.work
        work(names[0], options.seed, int(first), int(stop), Path(place))
    elif options.case is not None:
        limit_memory(MEMORY)
        data = case_of(names[0], TARGETS[names[0]].seeds(), options.seed, options.case)
        with alarm(SECONDS):
            print(run_case(names[0], data) or "read")
    else:
        with ThreadPoolExecutor(options.jobs) as pool:
            how = {"cases": options.cases, "seed": options.seed, "long": options.long}
            show(pool.map(lambda name: campaign(name, **how), names))


if __name__ == "__main__":
    main()
