"""Single files from elsewhere open with the same calls."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  # filters for h5py
import numpy as np
import pytest
import tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.segment.appended import hdf5_size
from raggedstore.segment.file import FileBytes, OpenFiles

ARRAYS = [np.random.default_rng(i).integers(0, 99, (i % 5, i % 4)).astype("i4") for i in range(60)]
FLAT = np.concatenate([array.reshape(-1) for array in ARRAYS])
STOPS = np.cumsum([array.size for array in ARRAYS])
SPANS = np.stack([STOPS - [array.size for array in ARRAYS], STOPS], axis=1).astype("i4")
SHAPES = np.array([array.shape for array in ARRAYS], "i4")


def by_pytables(path: Path, group: str, filters: tables.Filters) -> None:
    """The 2014 article's layout, by the calls that it makes."""
    with tables.open_file(str(path), "w") as file:
        node = file.root if group == "/" else file.create_group("/", group.strip("/"))
        data = file.create_earray(node, "data", tables.Int32Atom(), (0,), filters=filters)
        spans = file.create_earray(
            node, "data_start_and_stop", tables.Int32Atom(), (0, 2), filters=filters
        )
        shapes = file.create_earray(node, "data_shape", tables.Int32Atom(), (0, 2), filters=filters)
        for array, span in zip(ARRAYS, SPANS, strict=True):
            data.append(array.reshape(-1))
            spans.append(span[None])
            shapes.append(np.array(array.shape, "i4")[None])


def by_h5py(path: Path, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in {
            "data": FLAT,
            "data_start_and_stop": SPANS,
            "data_shape": SHAPES,
        }.items():
            file.create_dataset(name, data=values, **options)


def check(opened: Any) -> None:
    assert len(opened) == len(ARRAYS)
    for got, want in zip(opened["data"], ARRAYS, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert opened["data"].shapes.tolist() == SHAPES.tolist()
    np.testing.assert_array_equal(opened["data"][-1], ARRAYS[-1])


@pytest.mark.parametrize("complib", ["zlib", "blosc:lz4", "blosc2:zstd", "none"])
@pytest.mark.parametrize("group", ["/", "/train"])
def test_files_that_pytables_wrote_open_as_they_are(
    tmp_path: Path, complib: str, group: str
) -> None:
    filters = tables.Filters() if complib == "none" else tables.Filters(5, complib, shuffle=True)
    by_pytables(tmp_path / "x.h5", group, filters)
    before = (tmp_path / "x.h5").read_bytes()

    check(rs.open(tmp_path / "x.h5", group=group))

    assert (tmp_path / "x.h5").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": True},
        {"compression": "gzip", "shuffle": True, "chunks": True},
        {"fletcher32": True, "chunks": True},
    ],
)
def test_files_that_h5py_wrote_open_as_they_are(tmp_path: Path, options: dict[str, Any]) -> None:
    by_h5py(tmp_path / "x.h5", **options)

    check(rs.open(tmp_path / "x.h5", budget="1MB", in_memory=True))


def test_what_is_no_segment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    (tmp_path / "empty.h5").write_bytes(b"")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 3
    for name, error in (
        ("text", rs.CorruptionError),
        ("empty", rs.CorruptionError),
        ("other", rs.FormatError),
    ):
        with pytest.raises(error, match=f"{name}.h5"):
            rs.open(tmp_path / f"{name}.h5")
    with pytest.raises(rs.FormatError, match="no group"):
        rs.open(tmp_path / "other.h5", group="/train")


@pytest.mark.parametrize("lie", ["past the end", "backwards", "negative", "another shape"])
def test_side_columns_that_lie_are_an_error_that_names_the_sample(tmp_path: Path, lie: str) -> None:
    by_h5py(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        at = 9
        if lie == "another shape":
            file["data_shape"][at] = [7, 7]
        else:
            spans = {"past the end": [0, 10**6], "backwards": [9, 3], "negative": [-5, 3]}
            file["data_start_and_stop"][at] = spans[lie]
    opened = rs.open(tmp_path / "x.h5")

    with pytest.raises(rs.CorruptionError, match="sample 9"):
        opened[9]
    np.testing.assert_array_equal(opened["data"][8], ARRAYS[8])


def test_a_file_cut_anywhere_is_an_error_or_right(tmp_path: Path) -> None:
    by_pytables(tmp_path / "x.h5", "/", tables.Filters(5, "blosc2:zstd"))
    whole = (tmp_path / "x.h5").read_bytes()
    for size in range(0, len(whole), 211):
        (tmp_path / "cut.h5").write_bytes(whole[:size])
        try:
            check(rs.open(tmp_path / "cut.h5"))
        except rs.RaggedStoreError:
            continue


def test_a_failed_export_leaves_nothing_and_a_file_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = rs.create(tmp_path / "store", {"a": rs.Field("i4", (None,))})
    (tmp_path / "mine.h5").write_text("mine")
    with pytest.raises(rs.ConflictError):
        store.export(tmp_path / "mine.h5")
    assert (tmp_path / "mine.h5").read_text() == "mine"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(rs.StorageError, match="No space left"):
        store.export(tmp_path / "new.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.h5", "store"]


def test_a_single_file_is_only_read(tmp_path: Path) -> None:
    by_h5py(tmp_path / "x.h5")
    for options in ({"mode": "a"}, {"version": 1}):
        with pytest.raises(rs.UsageError):
            rs.open(tmp_path / "x.h5", **options)


# The checksums of an exported file


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    small = rs.Compression("lz4", 1, ("shuffle",), chunk_bytes=4096, block_bytes=1024)
    schema = {"data": rs.Field("int32", (None, None)), "text": rs.Field("str")}
    with rs.create(tmp_path / "store", schema, profile=small) as store:
        with store.writer() as writer:
            writer.extend({"data": a, "text": f"text {i}"} for i, a in enumerate(ARRAYS))
        store.export(tmp_path / "x.h5")
    return tmp_path / "x.h5"


def hdf5_bytes(path: Path) -> int:
    """Where the file ends for HDF5."""
    size = hdf5_size(FileBytes(path, OpenFiles()))
    assert size is not None
    return size


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
def test_a_damaged_export_gives_what_was_written_or_an_error(
    exported: Path, data: st.DataObject
) -> None:
    whole = exported.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "tail"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole[:at] if kind == "cut" else whole)
    if kind == "flip":
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "tail":
        damaged[at:] = bytes(len(whole) - at)
    path = exported.with_name("damaged.h5")
    path.write_bytes(damaged)

    with suppress(rs.CorruptionError, rs.FormatError):
        check(rs.open(path))


def test_an_export_is_held_to_its_checksums_unless_asked_not_to_be(exported: Path) -> None:
    whole = bytearray(exported.read_bytes())
    with h5py.File(exported) as file:
        info = file["data/data"].id.get_chunk_info(0)
    whole[info.byte_offset + info.size - 1] ^= 1
    exported.write_bytes(whole)

    with pytest.raises(rs.CorruptionError, match="field 'data'"):
        check(rs.open(exported))
    assert len(rs.open(exported, checksums=False)["data"][0]) == 0


@pytest.mark.parametrize("tool", ["h5py", "PyTables"])
@pytest.mark.parametrize("what", ["read", "open", "append", "rewrite"])
def test_checksums_are_gone_once_another_tool_may_have_changed_the_file(
    exported: Path, tool: str, what: str
) -> None:
    size = exported.stat().st_size
    mode = "r" if what == "read" else {"h5py": "r+", "PyTables": "a"}[tool]
    with h5py.File(exported, mode) if tool == "h5py" else tables.open_file(exported, mode) as file:
        node = file["data/data"] if tool == "h5py" else file.root.data.data
        first = node[:5]
        assert first.tolist() == FLAT[:5].tolist()
        if what == "append" and tool == "h5py":
            node.resize((len(FLAT) + 3,))
        elif what == "append":
            node.append(np.arange(3, dtype="i4"))
        elif what == "rewrite":
            node[:5] = first[::-1]

    opened = rs.open(exported)

    assert opened._reader.table.checksums == (what == "read")  # type: ignore[union-attr]
    assert (exported.stat().st_size == size) == (what == "read")
    assert exported.stat().st_size == hdf5_bytes(exported) or what == "read"
    if what == "rewrite":
        assert opened["data"].batch([*range(60)]).values[:5].tolist() == FLAT[:5][::-1].tolist()
    else:
        check(opened)
        assert opened["text"][7] == "text 7"


def test_a_table_that_is_cut_off_is_told_from_one_that_another_tool_removed(exported: Path) -> None:
    end = hdf5_bytes(exported)
    assert exported.stat().st_size > end
    whole = exported.read_bytes()

    exported.write_bytes(whole[:-1])
    with pytest.raises(rs.CorruptionError, match="chunk table at its end is damaged"):
        rs.open(exported)
    check(rs.open(exported, checksums=False))
    exported.write_bytes(whole[:end])
    check(rs.open(exported))
    exported.write_bytes(whole[: end - 1])
    with pytest.raises(rs.CorruptionError):
        check(rs.open(exported))


def test_verify_finds_what_is_damaged_in_an_export(exported: Path) -> None:
    opened = rs.open(exported, checksums=False)
    report = opened.verify()
    assert report.ok and report.checksums and report.samples == len(ARRAYS)
    assert report.chunks >= 5 and report.nbytes == exported.stat().st_size
    rs.open(exported, verify=True)

    whole = bytearray(exported.read_bytes())
    with h5py.File(exported) as file:
        info = file["data/data"].id.get_chunk_info(0)
    whole[info.byte_offset + info.size - 1] ^= 1
    exported.write_bytes(whole)
    report = opened.verify()  # of what lies there now
    assert not report.ok and 0 < report.damaged < len(ARRAYS)
    fault = report.faults[0]
    assert fault.field == "data" and "checksum" in fault.message
    bad = fault.sample
    assert bad is not None
    with pytest.raises(rs.CorruptionError, match="field 'data'"):
        rs.open(exported)[bad]
    with pytest.raises(rs.CorruptionError, match="field 'data'"):
        rs.open(exported, verify=True)


def test_verify_of_a_file_without_checksums_says_so(tmp_path: Path) -> None:
    by_h5py(tmp_path / "x.h5")
    report = rs.open(tmp_path / "x.h5").verify()
    assert report.ok and not report.checksums
    assert "of which none has a checksum" in str(report)


def test_a_group_of_an_export_opens_by_itself(exported: Path) -> None:
    check(rs.open(exported, group="/data"))


def test_a_field_of_an_export_opens_by_itself_as_what_it_is_there(tmp_path: Path) -> None:
    schema = {
        "text": rs.Field("str"),
        "mel": rs.Field("f4", (None, 3)),
        "flag": rs.Field("bool", (None,)),
        "label": rs.Field("i2"),
    }
    store = rs.create(tmp_path / "store", schema)
    with store.writer() as writer:
        for i, text in enumerate(["yes", "да", ""]):
            mel = np.full((i, 3), i, "f4")
            writer.append({"text": text, "mel": mel, "flag": [True] * i, "label": i})
    store.export(tmp_path / "x.h5")

    for name, field in schema.items():
        alone = rs.open(tmp_path / "x.h5", group=f"/{name}")
        assert alone.schema == rs.Schema({"data": field})
        for got, want in zip(alone["data"][:], store[name][:], strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_single_file_is_used_in_a_with_block_as_a_store_is(exported: Path) -> None:
    with rs.open(exported) as samples:
        first = samples[0]
    assert first.keys() == samples[0].keys()
