"""MemorySwapper against NumPy, over every kind of array that it may stand in front of."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import tables
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.arrays import MemorySwapper, RaggedEArray, RaggedVLArray
from raggedstore.errors import CorruptionError, KeyTypeError, OutOfRangeError, UsageError

FEW = settings(max_examples=40, deadline=None)
RAGGED = pytest.mark.parametrize("kind", [RaggedEArray, RaggedVLArray])
BLOSC2 = tables.Filters(1, "blosc2:lz4", shuffle=True)
ZLIB = tables.Filters(1, "zlib")


def in_memory() -> tables.File:
    return tables.open_file("m.h5", "w", driver="H5FD_CORE", driver_core_backing_store=0)


@pytest.fixture
def h5():
    with in_memory() as file:
        yield file


def make_node(h5: tables.File, kind: str, array: np.ndarray):
    if kind == "array":
        return h5.create_array(h5.root, "x", array)
    if kind == "carray":
        chunks = tuple(min(4, extent) for extent in array.shape)
        return h5.create_carray(h5.root, "x", obj=array, filters=BLOSC2, chunkshape=chunks)
    filters = ZLIB if kind == "zlib" else BLOSC2
    atom = tables.Atom.from_dtype(array.dtype.newbyteorder("="))
    order = "big" if array.dtype.byteorder == ">" else "little"
    node = h5.create_earray(
        h5.root, "x", atom, (0, *array.shape[1:]), filters=filters, byteorder=order,
        chunkshape=(7, *array.shape[1:]),
    )  # fmt: skip
    node.append(array)
    return node


NODES = pytest.mark.parametrize("kind", ["array", "carray", "earray", "zlib"])


def keys(length: int):
    bound = st.none() | st.integers(-length - 3, length + 3)
    step = st.none() | st.integers(-length, length).filter(bool)
    return st.one_of(
        st.integers(-length, length - 1),
        st.builds(slice, bound, bound, step),
        st.lists(st.integers(-length, length - 1), max_size=8),
        st.lists(st.booleans(), min_size=length, max_size=length).map(np.array),
    )


def assert_rows(found, expected) -> None:
    np.testing.assert_array_equal(found, expected, strict=True)


def assert_samples(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_rows(one, other)


def numpy_key(key):
    return np.array(key, int) if isinstance(key, list) and not key else key


@NODES
@FEW
@given(data=st.data(), columns=st.sampled_from([(), (5,), (2, 3)]), rows=st.integers(1, 9))
def test_every_key_gives_what_numpy_gives(kind, data, columns, rows):
    shape = (20, *columns)
    array = np.arange(math.prod(shape), dtype="int32").reshape(shape)
    with in_memory() as h5:
        node = make_node(h5, kind, array)
        swapper = MemorySwapper(node, budget=rows * array[:1].nbytes)
        for _ in range(10):
            key = data.draw(keys(20))
            assert_rows(swapper[key], array[numpy_key(key)])
            assert swapper.nbytes <= swapper.budget
            start, stop = swapper.limits
            assert 0 <= start <= stop <= 20
            assert stop - start <= rows


@pytest.mark.parametrize("kind", ["array", "earray"])
@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "uint8",
        "int16",
        ">i2",
        "uint64",
        "float16",
        "float64",
        ">f8",
        "complex128",
        "S5",
        "S300",
    ],
)
def test_the_budget_counts_bytes_of_any_dtype(kind, dtype, h5):
    array = np.arange(1000).astype(dtype)
    budget = max(160, array.itemsize)
    if kind == "array" and array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    swapper = MemorySwapper(make_node(h5, kind, array), budget=budget)
    for start in range(0, 1000, 3):
        assert_rows(swapper[start : start + 3], array[start : start + 3].astype(swapper.dtype))
        assert swapper.nbytes <= budget
    swapper[500]
    rows = budget // array.itemsize
    assert swapper.nbytes == rows * array.itemsize
    assert swapper.limits == (500, 500 + rows)
    assert swapper.shape == (1000,)


def test_h5py_datasets_and_memmaps(tmp_path):
    array = np.arange(60.0).reshape(20, 3)
    np.save(tmp_path / "x.npy", array)
    memmap = np.load(tmp_path / "x.npy", mmap_mode="r")
    with h5py.File(tmp_path / "x.h5", "w") as h5:
        chunked = h5.create_dataset("x", data=array, chunks=(4, 2), compression="gzip")
        for source in (chunked, h5.create_dataset("y", data=array), memmap):
            swapper = MemorySwapper(source, budget=5 * 24)
            for key in (3, -1, slice(None, None, -1), slice(2, 17, 4), [9, 1, 1], slice(0, 3)):
                assert_rows(swapper[key], array[key])
            found = swapper[0:2]
            found[...] = -1
            assert_rows(swapper[0:2], array[:2])
            assert_rows(np.array(list(swapper)), array)


@pytest.mark.parametrize("other", [{"shuffle": True}, {"fletcher32": True}, {}])
@pytest.mark.parametrize("chunks", [(9, 30), (9, 7)])
def test_blosc2_chunks_with_other_filters_beside_it(other, chunks, tmp_path):
    array = np.arange(600, dtype="int32").reshape(20, 30)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset(
            "x", data=array, chunks=chunks, maxshape=(None, 30), **other,
            **hdf5plugin.Blosc2(cname="lz4"),
        )  # fmt: skip
    with tables.open_file(tmp_path / "x.h5") as file:
        swapper = MemorySwapper(file.root.x, budget=5 * 120)
        assert_rows(swapper[7:11], array[7:11])
        assert_rows(swapper[:], array)


def test_the_wrong_turns_of_a_naive_buffer(h5):
    """Integer keys on a miss, ends counted from the back, steps, and ends past the length."""
    array = np.arange(100, dtype="uint8")
    swapper = MemorySwapper(make_node(h5, "earray", array), budget=10)
    swapper[0:5]
    assert swapper[77] == 77
    assert swapper.limits == (77, 87)
    assert swapper[-1] == 99
    for key in (
        slice(-5, None), slice(None, -1), slice(None, None, -1), slice(95, 1000),
        slice(-1000, 3), slice(200, 300), slice(50, 40), slice(None, None, 33), slice(9, 0, -2),
    ):  # fmt: skip
        assert_rows(swapper[key], array[key])


@NODES
def test_indices_out_of_range_or_of_a_wrong_type(kind, h5):
    swapper = MemorySwapper(make_node(h5, kind, np.arange(20)), budget=80)
    for key in (20, -21, 10**6, -(10**6), 2**63, -(2**63) - 1, [20], [0, -21], np.ones(3, bool)):
        with pytest.raises(OutOfRangeError):
            swapper[key]
    for key in (1.0, "a", (1, 2), None, True, [0.5], slice("a", "b"), np.zeros((1, 1), int)):
        with pytest.raises(KeyTypeError):
            swapper[key]
    assert (swapper.hits, swapper.misses) == (0, 0)


def test_reads_ahead_a_whole_budget_from_the_position_asked_for(h5):
    swapper = MemorySwapper(make_node(h5, "earray", np.arange(1000)), budget=100 * 8)
    assert swapper.limits == (0, 0)
    swapper[300:310]
    assert swapper.limits == (300, 400)
    assert (swapper.hits, swapper.misses) == (0, 1)
    swapper[310:400], swapper[399], swapper[300:310]
    assert (swapper.hits, swapper.misses) == (3, 1)
    swapper[950]
    assert swapper.limits == (950, 1000)
    assert swapper.nbytes == 50 * 8
    swapper.clear()
    assert (swapper.limits, swapper.nbytes) == ((0, 0), 0)


@pytest.mark.parametrize("width", [1, 7, 30, 99, 100])
@pytest.mark.parametrize("kind", ["earray", "zlib", "array"])
def test_a_sequential_pass_costs_one_read_per_budget(kind, width, h5, monkeypatch):
    array = np.arange(1050)
    node = make_node(h5, kind, array)
    swapper = MemorySwapper(node, budget=100 * 8)
    ranges = counted_ranges(monkeypatch)
    for start in range(0, 1050, width):
        assert_rows(swapper[start : start + width], array[start : start + width])
    assert swapper.misses <= math.ceil(1050 / 100) + 1
    assert len(ranges) == math.ceil(1050 / 100)
    assert sum(stop - start for start, stop in ranges) == 1050  # each value once


def counted_ranges(monkeypatch) -> list[tuple[int, int]]:
    from raggedstore.arrays.rows import Rows

    ranges: list[tuple[int, int]] = []
    read = Rows.read

    def counting(rows: Rows, start: int, stop: int):
        if rows.node._v_name in ("x", "data"):
            ranges.append((start, stop))
        return read(rows, start, stop)

    monkeypatch.setattr(Rows, "read", counting)
    return ranges


def test_a_request_larger_than_the_budget_is_served_directly(h5):
    array = np.arange(1000)
    swapper = MemorySwapper(make_node(h5, "earray", array), budget=100 * 8)
    swapper[40:50]
    assert_rows(swapper[30:500], array[30:500])
    assert_rows(swapper[::-7], array[::-7])
    assert_rows(swapper[[999, 0, 5]], array[[999, 0, 5]])
    assert swapper.limits == (40, 140)
    assert swapper.nbytes <= swapper.budget
    assert (swapper.hits, swapper.misses) == (0, 4)
    swapper[139]
    assert swapper.hits == 1


def test_a_budget_under_one_row_is_an_error(h5):
    node = make_node(h5, "earray", np.zeros((5, 4)))
    for budget in (31, 0, "1B"):
        with pytest.raises(UsageError, match="less than one row"):
            MemorySwapper(node, budget=budget)
    swapper = MemorySwapper(node, budget=32)
    assert_rows(np.array(list(swapper)), np.zeros((5, 4)))


@RAGGED
def test_a_budget_under_every_sample_is_an_error(kind, h5):
    ragged = kind.create(h5.root, "x", "int16", ndim=1)
    with pytest.raises(UsageError):
        MemorySwapper(ragged, budget=1)
    ragged.extend([[], [1, 2, 3], [1, 2, 3, 4]])
    with pytest.raises(UsageError):
        MemorySwapper(ragged, budget=5)
    swapper = MemorySwapper(ragged, budget=6)
    assert [sample.tolist() for sample in swapper] == [[], [1, 2, 3], [1, 2, 3, 4]]


def test_earlier_batches_are_never_overwritten_by_later_reads(h5):
    array = np.arange(100)
    swapper = MemorySwapper(make_node(h5, "earray", array), budget=20 * 8)
    batches = [swapper[start : start + 10] for start in range(0, 100, 10)]
    batches[0][0] = -5
    assert swapper[0] == 0
    for start, batch in enumerate(batches[1:], start=1):
        assert_rows(batch, array[start * 10 : start * 10 + 10])
    a, b = swapper[0:5], swapper[0:5]
    a[...] = 0
    assert_rows(b, array[:5])


def test_iteration_and_nested_iteration(h5):
    array = np.arange(12)
    swapper = MemorySwapper(make_node(h5, "earray", array), budget=5 * 8)
    assert list(swapper) == array.tolist()
    assert [(a, b) for a in swapper for b in swapper] == [(a, b) for a in array for b in array]


def test_reads_after_an_append_and_after_a_truncate(h5):
    node = make_node(h5, "earray", np.arange(10))
    swapper = MemorySwapper(node, budget=100 * 8)
    swapper[5]
    node.append(np.arange(10, 20))
    assert len(swapper) == 20
    assert swapper[-1] == 19
    assert_rows(swapper[3:15], np.arange(3, 15))
    node.truncate(4)
    node.append(np.arange(50, 60))
    assert_rows(swapper[:], np.r_[0:4, 50:60])
    with pytest.raises(OutOfRangeError):
        swapper[14]


def test_what_has_no_rows_is_refused(h5):
    vl = h5.create_vlarray(h5.root, "v", tables.Int32Atom())
    scalar = h5.create_array(h5.root, "s", np.float64(3))
    objects = np.array([None, 1], object)
    for source in (vl, scalar, objects, h5.root, 5):
        with pytest.raises(UsageError):
            MemorySwapper(source)
    with pytest.raises(UsageError):
        MemorySwapper(make_node(h5, "earray", np.arange(3)), budget="much")


def test_an_empty_array_and_rows_of_no_bytes(h5):
    swapper = MemorySwapper(make_node(h5, "earray", np.zeros((0, 3))), budget=24)
    assert_rows(swapper[:], np.zeros((0, 3)))
    assert_rows(swapper[[]], np.zeros((0, 3)))
    assert list(swapper) == []
    assert_rows(MemorySwapper(np.zeros((4, 0)), budget=1)[1:3], np.zeros((2, 0)))


# -- over ragged arrays


def some_samples(count: int, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 9, (count, 2))
    return [rng.integers(-99, 99, shape).astype("int16") for shape in sizes]


@RAGGED
@FEW
@given(data=st.data(), budget=st.integers(130, 600), seed=st.integers(0, 5))
def test_over_ragged_every_key_gives_what_a_list_gives(kind, data, budget, seed):
    samples = some_samples(25, seed=seed)
    with in_memory() as h5:
        ragged = kind.create(h5.root, "x", "int16", ndim=2)
        ragged.extend(samples)
        swapper = MemorySwapper(ragged, budget=budget)
        for _ in range(12):
            key = data.draw(keys(25))
            if isinstance(key, int):
                assert_rows(swapper[key], samples[key])
            elif isinstance(key, slice):
                assert_samples(swapper[key], samples[key])
            else:
                wanted = np.arange(25)[numpy_key(key)]
                assert_samples(swapper[key], [samples[at] for at in wanted])
            assert swapper.nbytes <= budget
            start, stop = swapper.limits
            assert 0 <= start <= stop <= 25
            assert sum(sample.nbytes for sample in samples[start:stop]) <= budget
            before = swapper.misses
            assert_samples(swapper[start:stop], samples[start:stop])
            assert swapper.misses == before  # what limits says is held is held


@RAGGED
@pytest.mark.parametrize("width", [1, 3, 8])
def test_over_ragged_a_sequential_pass_costs_one_read_per_budget(kind, width, h5, monkeypatch):
    samples = [np.arange(size % 5 + 8, dtype="int16") for size in range(600)]
    ragged = kind.create(h5.root, "x", "int16", ndim=1)
    ragged.extend(samples)
    budget = 2000
    least = math.ceil(sum(sample.nbytes for sample in samples) / budget)
    swapper = MemorySwapper(ragged, budget=budget)
    ranges = counted_ranges(monkeypatch)
    for start in range(0, 600, width):
        assert_samples(swapper[start : start + width], samples[start : start + width])
    assert swapper.misses <= least + 1
    assert len(ranges) <= least
    assert swapper.hits + swapper.misses == math.ceil(600 / width)


@RAGGED
def test_over_ragged_limits_hits_and_misses(kind, h5):
    ragged = kind.create(h5.root, "x", "int16", ndim=1)
    ragged.extend([np.full(10, number) for number in range(50)])
    swapper = MemorySwapper(ragged, budget=5 * 20 + 6)
    swapper[10]
    assert swapper.limits == (10, 15)
    swapper[11:15], swapper[[14, 10, 10]]
    assert (swapper.hits, swapper.misses) == (2, 1)
    assert_samples(swapper[20:40], ragged[20:40])
    assert swapper.limits == (10, 15)
    swapper[48]
    assert swapper.limits == (48, 50)
    assert swapper.nbytes == 40
    swapper.clear()
    assert swapper.limits == (0, 0)


@RAGGED
def test_over_ragged_masks_iteration_lengths_and_appends(kind, h5):
    samples = some_samples(30)
    ragged = kind.create(h5.root, "x", "int16", ndim=2)
    ragged.extend(samples[:20])
    swapper = MemorySwapper(ragged, budget=200)
    assert_samples(list(swapper), samples[:20])
    pairs = [(a, b) for a in swapper[:5] for b in swapper]
    assert_samples([b for _, b in pairs], samples[:20] * 5)
    ragged.extend(samples[20:])
    assert len(swapper) == 30
    assert_samples(swapper[15:], samples[15:])
    mask = np.arange(30) % 3 == 0
    assert_samples(swapper[mask], samples[::3])
    assert swapper.lengths.tolist() == [len(sample) for sample in samples]
    assert swapper.shapes.tolist() == [list(sample.shape) for sample in samples]
    assert swapper.shape == (30,)
    with pytest.raises(UsageError):
        MemorySwapper(np.zeros(3)).lengths  # noqa: B018
    for key in (30, -31, [30], np.ones(3, bool)):
        with pytest.raises(OutOfRangeError):
            swapper[key]


@RAGGED
@FEW
@given(data=st.data())
def test_over_ragged_appends_between_reads_are_seen(kind, data):
    with in_memory() as h5:
        ragged = kind.create(h5.root, "x", "int16", ndim=2)
        swapper, samples = MemorySwapper(ragged, budget=300), []
        for step in range(12):
            more = some_samples(data.draw(st.integers(0, 4)), seed=step)
            ragged.extend(more)
            samples += more
            start = data.draw(st.integers(0, len(samples)))
            stop = data.draw(st.integers(0, len(samples)))
            assert_samples(swapper[start:stop], samples[start:stop])
            assert_samples(swapper[-3:], samples[-3:])


def test_over_ragged_an_append_cut_short_is_not_held(h5):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=1)
    ragged.extend([[1, 2], [3]])
    h5.root.x.data_start_and_stop.append(np.array([[1, 3]]))
    swapper = MemorySwapper(ragged, budget=100)
    assert [sample.tolist() for sample in swapper] == [[1, 2], [3]]
    ragged.append([4, 5, 6])
    assert [sample.tolist() for sample in swapper] == [[1, 2], [3], [4, 5, 6]]


def test_over_ragged_damage_names_its_sample(h5):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=1)
    ragged.extend([[1, 2], [3], [4]])
    h5.root.x.data_start_and_stop[1] = [2, 10**9]
    swapper = MemorySwapper(ragged, budget=100)
    for key in (1, slice(None), [2, 1]):
        with pytest.raises(CorruptionError, match="sample 1"):
            swapper[key]
    assert swapper[2].tolist() == [4]
    assert swapper.limits == (2, 3)


@RAGGED
def test_over_ragged_a_sample_larger_than_the_budget_is_served_directly(kind, h5):
    samples = [np.arange(n, dtype="int16") for n in (3, 500, 4, 5)]
    ragged = kind.create(h5.root, "x", "int16", ndim=1)
    ragged.extend(samples)
    swapper = MemorySwapper(ragged, budget=40)
    for _ in range(2):
        assert_samples(list(swapper), samples)
        assert swapper.nbytes <= 40


@pytest.mark.parametrize("kind", ["earray", "carray"])
def test_reading_does_not_leak(kind, h5):
    """PyTables' own slices of a Blosc2 array lose some 67 kB each: 1,500 would be 100 MB."""
    swapper = MemorySwapper(make_node(h5, kind, np.arange(200)), budget=8)
    list(swapper)
    before = resident()
    for _ in range(8):
        list(swapper)
    assert swapper.misses == 1800
    assert resident() - before < 30e6


def resident() -> int:
    path = Path("/proc/self/statm")
    if not path.exists():
        pytest.skip("needs /proc")
    return int(path.read_text().split()[1]) * 4096


def test_repr_tells_what_it_holds(h5):
    swapper = MemorySwapper(make_node(h5, "earray", np.arange(20)), budget="80B")
    swapper[3]
    assert "[3, 13)" in repr(swapper)
    assert "1 misses" in repr(swapper)


ATOMS = {
    "items that are arrays": (tables.Int32Atom(shape=(2,), dflt=7), np.arange(1200).reshape(-1, 2)),
    "32-bit times": (tables.Time32Atom(), np.arange(600) * 1000),
    "64-bit times": (tables.Time64Atom(), np.random.default_rng(0).normal(size=600) * 1e6),
    "64-bit times in arrays": (tables.Time64Atom(shape=(1,)), -np.arange(600.0)[:, None] / 7),
    "enumerations": (tables.EnumAtom(["a", "b", "c"], "b", "uint8"), np.arange(600) % 3),
}


@pytest.mark.parametrize("name", ATOMS)
@pytest.mark.parametrize("columns", [(), (3,)])
@pytest.mark.parametrize("library", ["blosc2:lz4", "zlib"])
def test_all_of_pytables_kinds_of_items_are_read_as_pytables_reads_them(
    name, columns, library, tmp_path
):
    atom, values = ATOMS[name]
    values = values.reshape(-1, *columns, *atom.shape)
    with tables.open_file(str(tmp_path / "x.h5"), "w") as h5:
        node = h5.create_carray(
            "/", "x", atom, (800, *columns), filters=tables.Filters(1, library),
            chunkshape=(30, *(2 for _ in columns)),
        )  # fmt: skip
        node[: len(values)] = values  # and what comes after was never written
        swapper = MemorySwapper(node, budget="2kB")
        for key in (slice(2, 500), slice(100, 800), [3, 799, 5, 5], 17):
            got, want = swapper[key], node[:][key]
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ATOMS)
def test_reading_other_kinds_of_items_does_not_leak(name, tmp_path):
    atom, values = ATOMS[name]
    with tables.open_file(str(tmp_path / "x.h5"), "w") as h5:  # of those in memory none leak
        node = h5.create_carray("/", "x", atom, (600,), filters=BLOSC2, chunkshape=(30,))
        node[...] = values
        swapper = MemorySwapper(node, budget=16)
        list(swapper)
        before = resident()
        for _ in range(4):
            list(swapper)
        assert resident() - before < 30e6


def test_what_gives_other_values_than_it_says_is_refused():
    class Scaled:
        shape, dtype = (10, 2), np.dtype("i2")

        def __getitem__(self, key):
            return np.arange(20).reshape(10, 2)[key] / 2

    with pytest.raises(rs.UsageError, match="float64"):
        MemorySwapper(Scaled(), budget=64)[[1, 7]]
    with pytest.raises(rs.FormatError, match="float64"):
        rs.Items({"x": Scaled()}).batch([1, 7])
