"""Chunk tables made anew from the HDF5 file alone."""

import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blosc2
import h5py
import hdf5plugin
import netCDF4
import numpy as np
import pytest
import tables

import raggedstore as rs
from raggedstore import lazy
from raggedstore.layout import Column
from raggedstore.lazy.direct import _ChunkedSource
from raggedstore.lazy.windows import source_of
from raggedstore.segment.context import ReadContext
from raggedstore.segment.file import FileBytes
from raggedstore.segment.reader import SegmentReader
from raggedstore.segment.rebuild import _run_rows, rebuild_table
from raggedstore.segment.writer import SegmentWriter

ROWS = 40_000


def values() -> np.ndarray:
    data = np.arange(ROWS, dtype="i4") // 3
    data[9000:20_000] = np.frombuffer(np.random.default_rng(0).bytes(44_000), "i4")
    data[20_000:30_000] = 0
    return data


def rebuilt(path: Path) -> SegmentReader:
    context = ReadContext(2**20)
    data = FileBytes(path, context.files)
    return SegmentReader("a", data, rebuild_table("a", data), context)


def test_a_segments_table_comes_out_as_it_was_written_but_for_the_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    small = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=8192, block_bytes=1024)
    with ThreadPoolExecutor(1) as pool:
        writer = SegmentWriter(path, rs.Schema({"x": rs.Field("i4")}), {"x": small}, pool)
        writer.extend({"x": (values(), np.empty((ROWS, 0), np.int64))}, ROWS)
        written = writer.seal().datasets["x"]["data"]

    again = rebuilt(path).table.datasets["x"]["data"]

    assert (again.rows, again.chunk_rows) == (written.rows, written.chunk_rows)
    for name in ("offset", "size"):
        np.testing.assert_array_equal(again.entries[name], written.entries[name])
    assert again.blocks.nbytes == written.blocks.nbytes == 1024
    np.testing.assert_array_equal(again.blocks.edges, written.blocks.edges)
    assert again.blocks.header == written.blocks.header


@pytest.mark.parametrize(
    ("complib", "shuffle"),
    [("blosc2:lz4", True), ("blosc2:zstd", False), ("blosc:lz4", True), ("zlib", True), (None, 0)],
)
@pytest.mark.parametrize("chunk_rows", [1, 1000, 2**15])
def test_a_file_that_pytables_wrote_reads_whole_and_in_part(
    tmp_path: Path, complib: str | None, shuffle: bool, chunk_rows: int
) -> None:
    rows = 300 if chunk_rows == 1 else ROWS
    want = values()[:rows]
    path = tmp_path / "a.h5"
    filters = tables.Filters(5, complib, shuffle=shuffle) if complib else None
    with tables.open_file(str(path), "w") as h5:
        group = h5.create_group("/", "x")
        h5.create_earray(
            group, "data", obj=want, filters=filters, chunkshape=(chunk_rows,), expectedrows=rows
        )

    reader = rebuilt(path)
    column = reader.column("x", "data")

    rng = np.random.default_rng(1)
    for _ in range(5):
        starts = rng.integers(0, rows, 20)
        stops = np.minimum(starts + rng.integers(0, 2000, 20), rows)
        pieces = [want[a:b] for a, b in zip(starts, stops, strict=True)]
        np.testing.assert_array_equal(column.read(starts, stops), np.concatenate(pieces))
    np.testing.assert_array_equal(column.read(np.array([0]), np.array([rows])), want)


@pytest.mark.parametrize("tool", ["pytables", "h5py"])
@pytest.mark.parametrize(
    ("shape", "chunk_rows"),
    [
        ((4000, 768), 256),
        ((4000, 512), 1024),
        ((1000, 64), 256),  # whose blocks are runs of rows
        ((300, 64, 64), 16),
        ((3000, 28, 28), 1000),  # which no whole boxes fill
        ((100, 96, 96, 3), 7),
    ],
)
def test_blocks_of_several_dimensions_are_put_together(
    tmp_path: Path, tool: str, shape: tuple[int, ...], chunk_rows: int
) -> None:
    """PyTables and HDF5's filter cut chunks of rows into boxes that cross the rows."""
    want = np.random.default_rng(0).integers(0, 99, shape).astype("f4")
    path, chunk = tmp_path / "a.h5", (chunk_rows, *shape[1:])
    if tool == "pytables":
        with tables.open_file(str(path), "w") as h5:
            group, filters = h5.create_group("/", "x"), tables.Filters(1, "blosc2:lz4")
            h5.create_carray(group, "data", obj=want, filters=filters, chunkshape=chunk)
    else:
        with h5py.File(path, "w") as h5:
            h5.create_dataset("x/data", data=want, chunks=chunk, **hdf5plugin.Blosc2("lz4"))

    store = rs.open(path)

    np.testing.assert_array_equal(store["x"].batch(slice(None)), want)
    wanted = np.random.default_rng(1).integers(0, len(want), 40)
    np.testing.assert_array_equal(store["x"].batch(wanted), want[wanted])
    np.testing.assert_array_equal(store["x"][-1], want[-1])
    assert not store.verify().faults


def test_what_pytables_appends_to_an_exported_file_is_read_with_it(tmp_path: Path) -> None:
    want = np.random.default_rng(0).integers(0, 9, (700, 768)).astype("f4")
    with rs.create(tmp_path / "store", {"x": rs.Field("f4", (768,))}) as store:
        with store.writer() as writer:
            writer.extend_batch({"x": want[:500]})
        store.export(tmp_path / "a.h5")
    with tables.open_file(str(tmp_path / "a.h5"), "a") as h5:
        h5.root.x.data.append(want[500:])

    np.testing.assert_array_equal(rs.open(tmp_path / "a.h5")["x"].batch(slice(None)), want)


def test_a_plug_in_that_a_file_without_a_table_asks_for_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor in the process that reads what is not read here."""
    (tmp_path / "blosc2_grok.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    want = np.arange(64 * 64, dtype="i4").reshape(64, 64) // 9
    for name, chunk in [("rows.h5", (32, 64)), ("parts.h5", (32, 32))]:
        with h5py.File(name, "w") as h5:
            made = h5.create_dataset("x/data", data=want, chunks=chunk, **hdf5plugin.Blosc2("lz4"))
            for at in [made.id.get_chunk_info(i).chunk_offset for i in range(2)]:
                mask, stored = made.id.read_direct_chunk(at)
                frame = bytearray(stored)
                head = int.from_bytes(frame[11:15], "big")
                frame[head + 2], frame[head + 22] = frame[head + 2] & 0x1F | 6 << 5, 37
                made.id.write_direct_chunk(at, bytes(frame), mask)
        for key in (3, slice(None), [40, 2]):
            with pytest.raises(rs.CorruptionError):
                rs.open(name)["x"].batch([key] if isinstance(key, int) else key)
    assert not (tmp_path / "ran").exists()


def test_names_that_are_no_ascii_are_read_without_an_idx(tmp_path: Path) -> None:
    """PyTables has HDF5 mark them as ASCII."""
    with rs.create(tmp_path / "store", {"größe": rs.Field("i4", (None,))}) as store:
        with store.writer() as writer:
            writer.extend({"größe": np.arange(i)} for i in range(10))
        store.export(tmp_path / "a.h5")
    (index,) = store.path.glob("segments/*.idx")
    index.unlink()
    with h5py.File(tmp_path / "a.h5", "a") as h5:  # which cuts the table off
        h5.attrs["seen"] = 1
    for path in (store.path, tmp_path / "a.h5"):
        with_name = rs.open(path)["größe"]
        assert [one.tolist() for one in with_name] == [list(range(i)) for i in range(10)]


def test_samples_without_shapes_are_no_scalars(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["x/data"] = np.arange(10)
        h5["x/data_start_and_stop"] = [[0, 4], [4, 10]]
    with pytest.raises(rs.FormatError, match="no data_shape"):
        rs.open(tmp_path / "a.h5")


def test_a_format_that_the_parser_lacks_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="v110") as h5:
        h5.create_dataset("x/data", data=np.arange(1000), chunks=(100,), maxshape=(None,))
    raw = path.read_bytes()
    layout = bytes([4, 2, 0, 2, 1, 100, 8])  # its version first
    assert raw.count(layout) == 1
    path.write_bytes(raw.replace(layout, b"\x06" + layout[1:]))
    with pytest.raises(rs.FormatError, match="version 6 of data layouts"):
        rs.open(path)


@pytest.mark.parametrize("filters", [{}, {"compression": "gzip"}, {"compression": "lzf"}])
def test_bools_of_h5py_are_bools(tmp_path: Path, filters: dict[str, Any]) -> None:
    values = np.arange(1000) % 3 == 0
    with h5py.File(tmp_path / "x.h5", "w") as file:
        options = {"chunks": (300,), **filters} if filters else {}
        file.create_dataset("flag/data", data=values, **options)
    store = rs.open(tmp_path / "x.h5")

    assert store.schema["flag"] == rs.Field("bool")
    np.testing.assert_array_equal(store.batch(range(1000))["flag"], values)


@pytest.mark.parametrize("library", [None, "zlib", "blosc", "blosc2", "bzip2"])
def test_bools_of_pytables_are_bools(tmp_path: Path, library: str | None) -> None:
    values = np.arange(1000) % 3 == 0
    with tables.open_file(tmp_path / "x.h5", "w") as file:
        group = file.create_group("/", "flag")
        if library is None:
            file.create_array(group, "data", obj=values)
        else:
            filters = tables.Filters(5, library)
            file.create_carray(group, "data", obj=values, chunkshape=(300,), filters=filters)
    store = rs.open(tmp_path / "x.h5")

    assert store.schema["flag"] == rs.Field("bool")
    np.testing.assert_array_equal(store.batch(range(1000))["flag"], values)


def test_bits_of_others_than_pytables_and_floats_of_other_kinds_are_refused(tmp_path: Path) -> None:
    bfloat = h5py.h5t.IEEE_F16LE.copy()
    bfloat.set_fields(15, 7, 8, 0, 7)
    bfloat.set_ebias(127)
    kinds = {"IEEE": bfloat, "stand for bools": h5py.h5t.STD_B8LE, "Bitfield": h5py.h5t.STD_B16LE}
    for message, kind in kinds.items():
        with h5py.File(tmp_path / "x.h5", "w") as file:
            space = h5py.h5s.create_simple((10,))
            h5py.h5d.create(file.create_group("x").id, b"data", kind, space)
        with pytest.raises(rs.FormatError, match=message):
            rs.open(tmp_path / "x.h5")


def with_rows(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("x/data", data=np.arange(6), chunks=(4,), compression=1)
    return path


def circle(file: h5py.File) -> None:
    file["one"], file["other"] = h5py.SoftLink("/other"), h5py.SoftLink("/one")


BESIDE = {
    "a link to another file": lambda f: f.__setitem__("far", h5py.ExternalLink("o.h5", "/x")),
    "a link": lambda f: f.__setitem__("near", h5py.SoftLink("/x")),
    "a circle of links": circle,
    "a dataset of no values": lambda f: f.create_dataset("none", data=h5py.Empty("f4")),
    "a type": lambda f: f.__setitem__("type", np.dtype("i4")),
    "records": lambda f: f.create_dataset("r", data=np.zeros(3, [("r", "i2"), ("i", "i2")])),
    "an enumeration": lambda f: f.create_dataset(
        "e", (3,), h5py.enum_dtype({"\u00e9": 0, "b": 1}, "i1")
    ),
    "an attribute of records": lambda f: f.attrs.create(
        "a", np.zeros((), [("r", "i2"), ("i", "i2")])
    ),
    "an attribute of an enumeration": lambda f: f.attrs.create(
        "a", 0, dtype=h5py.enum_dtype({"\u00e9": 0, "b": 1}, "i1")
    ),
}


@pytest.mark.filterwarnings("ignore:.*not implemented")
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("group", ["/", "/x"])
def test_what_lies_beside_the_fields_keeps_nobody_from_reading_them(
    tmp_path: Path, beside: str, group: str
) -> None:
    path = with_rows(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        BESIDE[beside](file)
    store = rs.open(path, group=group)
    (name,) = store.schema
    np.testing.assert_array_equal(store.batch(range(6))[name], np.arange(6))


@pytest.mark.parametrize(
    "dtype",
    [
        {"names": ["r", "i"], "formats": ["<f4", "<f4"], "offsets": [0, 8], "itemsize": 16},
        {"names": ["r", "i"], "formats": ["<f4", "<f8"], "offsets": [0, 8], "itemsize": 16},
        {"names": ["r", "i"], "formats": [">f8", "<f8"]},
        {"names": ["r", "i"], "formats": ["<i2", "<i2"]},
    ],
)
def test_records_that_are_no_complex_numbers_are_not_taken_for_them(
    tmp_path: Path, dtype: Any
) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x/data", data=np.ones(4, np.dtype(dtype)))
    with pytest.raises(rs.FormatError, match="not plain numbers"):
        rs.open(tmp_path / "x.h5")


def test_a_single_value_is_no_field(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x/data"] = 5.0
    with pytest.raises(rs.FormatError, match="single value"):
        rs.open(tmp_path / "x.h5")


def test_a_committed_datatype_is_refused_as_such(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["type"] = np.dtype("i4")
        file.create_dataset("x/data", (4,), file["type"])
    with pytest.raises(rs.FormatError, match="committed datatype"):
        rs.open(tmp_path / "x.h5")


@pytest.mark.parametrize("mask", [0, 1, 2, 3, 2**31])
def test_only_the_filters_that_there_are_can_be_skipped(tmp_path: Path, mask: int) -> None:
    values = np.arange(1000, dtype="i4")
    plain = hdf5plugin.Blosc2(cname="lz4")
    with h5py.File(tmp_path / "made.h5", "w") as file:
        made = file.create_dataset("x", data=values, chunks=(1000,), **plain)
        frame = made.id.read_direct_chunk((0,))[1]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x/data", (1000,), "i4", chunks=(1000,), **plain)
        data.id.write_direct_chunk((0,), values.tobytes() if mask & 1 else frame, mask)

    got = rs.open(tmp_path / "x.h5").batch(range(1000))["x"]
    np.testing.assert_array_equal(got, values)
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(lazy.adapt(file["x/data"]).compute(), values)


@pytest.mark.parametrize("plugins", [None, "of netCDF4", "/nowhere"])
def test_blosc_with_snappy_is_left_to_libhdf5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: str | None
) -> None:
    make = (
        "import h5py, hdf5plugin, numpy, sys; file = h5py.File(sys.argv[1], 'w');"
        "file.create_dataset('x/data', data=numpy.arange(40_000, dtype='i4') // 7,"
        "chunks=(10_000,), **hdf5plugin.Blosc(cname='snappy')); file.close()"
    )
    # By a process of its own: netCDF4 has h5py take its filters, which do not work there.
    monkeypatch.delenv("HDF5_PLUGIN_PATH", raising=False)
    subprocess.run([sys.executable, "-c", make, str(tmp_path / "x.h5")], check=True)
    values = np.arange(40_000, dtype="i4") // 7
    if plugins == "of netCDF4":
        plugins = str(next(Path(netCDF4.__file__).parent.glob("plugins*"), "/nowhere"))
    if plugins is not None:
        monkeypatch.setenv("HDF5_PLUGIN_PATH", plugins)

    np.testing.assert_array_equal(rs.open(tmp_path / "x.h5").batch(range(40_000))["x"], values)
    with h5py.File(tmp_path / "x.h5") as file:
        got = lazy.adapt(file["x/data"])
        assert type(source_of(got)) is not _ChunkedSource and got.shape == (40_000,)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_frame_of_nothing_but_nan_is_read(tmp_path: Path, dtype: str) -> None:
    frame = blosc2.full(5000, np.nan, dtype, chunks=(5000,), blocks=(1000,)).to_cframe()
    made = blosc2.SChunk(
        chunksize=5000 * np.dtype(dtype).itemsize, cparams={"typesize": int(dtype[1])}
    )
    made.fill_special(5000, blosc2.SpecialValue.NAN)
    for stored in (frame, made.to_cframe()):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            options = hdf5plugin.Blosc2()
            data = file.create_dataset("x/data", (5000,), dtype, chunks=(5000,), **options)
            data.id.write_direct_chunk((0,), stored)
        assert np.isnan(rs.open(tmp_path / "x.h5").batch(range(5000))["x"]).all()


@pytest.mark.parametrize("whole", [True, False])
def test_what_nobody_wrote_is_zeros(tmp_path: Path, whole: bool) -> None:
    made = blosc2.SChunk(chunksize=20_000, cparams={"typesize": 4})
    if whole:
        made.fill_special(5000, blosc2.SpecialValue.UNINIT)
        frame = made.to_cframe()
    else:  # a chunk that says so, and not a frame without one
        made.fill_special(5000, blosc2.SpecialValue.VALUE, value=np.int32(7))
        frame = made.to_cframe()
        (head,) = struct.unpack_from(">i", frame, 11)
        assert frame[head + 31] == 0x30  # one value
        size = struct.pack("<i", 32)
        header = frame[head : head + 12] + size + frame[head + 16 : head + 31] + b"\x40"
        frame = frame[:head] + header + frame[head + 32 :]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        options = hdf5plugin.Blosc2()
        data = file.create_dataset("x/data", (5000,), "i4", chunks=(5000,), **options)
        data.id.write_direct_chunk((0,), frame)
    for _ in range(3):
        np.full(5000, 3, "i4")  # what lies in memory
        store = rs.open(tmp_path / "x.h5")
        assert not store.batch(range(5000))["x"].any() and store[17]["x"] == 0


def test_a_dictionary_is_read_as_other_tools_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = np.array([b"speech ", b"text ", b"image ", b"sample "])
    values = np.frombuffer(b"".join(rng.choice(words, 30_000)), "u1")[:100_000]
    params = blosc2.CParams(
        codec=blosc2.Codec.ZSTD, use_dict=True, clevel=5, blocksize=4096, typesize=1, nthreads=1
    )
    frame = blosc2.SChunk(chunksize=100_000, data=values, cparams=params).to_cframe()
    (head,) = struct.unpack_from(">i", frame, 11)
    assert frame[head + 31] & 1
    with h5py.File(tmp_path / "x.h5", "w") as file:
        options = hdf5plugin.Blosc2()
        data = file.create_dataset("x/data", (100_000,), "u1", chunks=(100_000,), **options)
        data.id.write_direct_chunk((0,), frame)
    with h5py.File(tmp_path / "x.h5") as file:
        assert np.array_equal(file["x/data"], values)

    store = rs.open(tmp_path / "x.h5", verify=True)
    assert np.array_equal(store.batch(range(100_000))["x"], values)
    assert store[77_777]["x"] == values[77_777]
    with tables.open_file(tmp_path / "x.h5") as file:
        assert np.array_equal(rs.MemorySwapper(file.root.x.data)[5:50_000], values[5:50_000])


def test_samples_of_others_may_lie_as_they_please(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x/data"] = np.arange(10)
        file["x/data_start_and_stop"] = np.array([[6, 10], [0, 3], [2, 4]])
        file["x/data_shape"] = np.array([[4], [3], [2]])
    store = rs.open(tmp_path / "x.h5", verify=True)
    assert store.verify().ok and store[1]["x"].tolist() == [0, 1, 2]


def test_chunks_of_columns_are_put_together_in_bounded_memory() -> None:
    column = Column("data", np.dtype("f4"), (200,))
    assert _run_rows(column, 10**6, 10**6, whole=False) * column.row_nbytes <= 2**26
    assert _run_rows(column, 10**6, 2000, whole=False) == 2000


@pytest.mark.parametrize("dtype", ["longdouble", ">f16", "clongdouble", ">c32"])
def test_longdoubles_are_read_and_repaired_without_their_chunk_table(
    tmp_path: Path, dtype: str
) -> None:
    store = rs.create(tmp_path / "store", {"x": rs.Field(dtype, (None,)), "y": rs.Field(dtype)})
    wanted = [(np.arange(i) / np.longdouble(3)).astype(dtype) for i in range(1, 6)]
    with store.writer() as writer:
        writer.extend({"x": x, "y": x[-1]} for x in wanted)
    store.export(tmp_path / "x.h5")
    for path in (tmp_path / "store" / "segments").glob("*.idx"):
        path.unlink()

    def check(samples: Any) -> None:
        assert samples.schema["x"].dtype == np.dtype(dtype)
        for got, x in zip(samples, wanted, strict=True):
            assert (got["x"] == x).all() and got["y"] == x[-1]

    check(rs.open(tmp_path / "x.h5", checksums=False))
    check(rs.open(tmp_path / "store"))
    rs.open(tmp_path / "store", mode="a").repair()
    check(rs.open(tmp_path / "store"))
    assert rs.open(tmp_path / "store").verify().ok


def test_shapes_that_no_array_can_have_are_damage(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("x")
        group["data"] = np.zeros(4)
        group["data_start_and_stop"] = np.array([[0, 4], [4, 4]])
        group["data_shape"] = np.array([[4, 1, 1], [0, 2**40, 2**40]])
    samples = rs.open(tmp_path / "x.h5")

    assert not samples.verify().ok
    assert samples["x"][0].shape == (4, 1, 1)
    for key in 1, [0, 1], slice(None):
        with pytest.raises(rs.CorruptionError, match="sample 1"):
            samples["x"][key]
    with pytest.raises(rs.SampleError):
        rs.RaggedBatch(np.zeros(0), [0, 0], [[0, 2**40, 2**40]])
