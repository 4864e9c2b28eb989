"""RaggedEArray and RaggedVLArray against plain lists of arrays."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raggedstore.arrays import MemorySwapper, RaggedEArray, RaggedVLArray
from raggedstore.errors import (
    ConflictError,
    CorruptionError,
    FormatError,
    KeyTypeError,
    OutOfRangeError,
    SampleError,
    SampleTypeError,
    SchemaError,
    UsageError,
)

BOTH = pytest.mark.parametrize("kind", [RaggedEArray, RaggedVLArray])
DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
SAMPLES = st.lists(
    hnp.arrays("int16", hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5)),
    max_size=12,
)
FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def in_memory(name: str = "memory.h5") -> tables.File:
    return tables.open_file(name, "w", driver="H5FD_CORE", driver_core_backing_store=0)


@pytest.fixture
def h5(tmp_path: Path):
    with tables.open_file(tmp_path / "file.h5", "w") as file:
        yield file


def assert_same(found, expected) -> None:
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, strict=True)


def some_samples(count: int, *, seed: int = 0, dtype: str = "int16") -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 100, (int(rng.integers(0, 9)), int(rng.integers(1, 4)))).astype(dtype)
        for _ in range(count)
    ]


def keys(length: int):
    bound = st.none() | st.integers(-length - 3, length + 3)
    step = st.none() | st.integers(-4, 4).filter(bool)
    options = [
        st.builds(slice, bound, bound, step),
        st.lists(st.booleans(), min_size=length, max_size=length).map(
            lambda mask: np.array(mask, bool)
        ),
    ]
    if length:
        options.append(st.integers(-length, length - 1))
        options.append(st.lists(st.integers(-length, length - 1), max_size=10))
    return st.one_of(options)


def expected_of(samples: list, key):
    if isinstance(key, (int, slice)):
        return samples[key]
    if isinstance(key, np.ndarray):
        return [samples[i] for i in np.flatnonzero(key)]
    return [samples[i] for i in key]


@BOTH
@FEW
@given(data=st.data(), samples=SAMPLES, cut=st.integers(0, 12))
def test_every_key_gives_what_a_list_of_arrays_gives(kind, data, samples, cut):
    with in_memory() as h5:
        ragged = kind.create(h5.root, "x", "int16", ndim=2)
        ragged.extend(samples[:cut])
        for sample in samples[cut:]:
            ragged.append(sample)
        for _ in range(5):
            key = data.draw(keys(len(samples)))
            found, expected = ragged[key], expected_of(samples, key)
            if isinstance(key, int):
                found, expected = [found], [expected]
            else:
                assert isinstance(found, list)
            assert_same(found, expected)
        assert len(ragged) == len(samples)
        assert_same(ragged, samples)
        shapes = np.array([sample.shape for sample in samples], np.int64).reshape(-1, 2)
        np.testing.assert_array_equal(ragged.shapes, shapes, strict=True)
        np.testing.assert_array_equal(ragged.lengths, shapes[:, 0], strict=True)


@BOTH
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_of_either_byte_order_comes_back_as_it_went(kind, order, name, h5):
    dtype = np.dtype(name).newbyteorder(order)
    raw = np.random.default_rng(1).integers(0, 100, (7, 3))
    samples = [raw.astype(dtype), raw[:0].astype(dtype), raw[2:4, :1].astype(dtype)]
    ragged = kind.create(h5.root, "x", dtype, ndim=2)
    ragged.extend(samples)
    ragged.append(samples[0])
    if dtype.itemsize > 1:
        assert ragged.data.byteorder == {"<": "little", ">": "big"}[order]
    assert ragged.dtype == np.dtype(name)
    assert_same(ragged[:], [s.astype(name) for s in [*samples, samples[0]]])


@BOTH
def test_samples_of_one_to_many_dimensions(kind, h5):
    for ndim in (1, 3, 5):
        ragged = kind.create(h5.root, f"d{ndim}", "float32", ndim=ndim)
        samples = [np.ones((2,) * ndim, "float32"), np.zeros((0, *(3,) * (ndim - 1)), "float32")]
        ragged.extend(samples)
        assert ragged.ndim == ndim
        assert_same(ragged[:], samples)


@BOTH
def test_index_errors_are_those_of_a_store(kind, h5):
    ragged = kind.create(h5.root, "x", "int16", ndim=2)
    ragged.extend(some_samples(5))
    for key in (5, -6, 2**31, -(2**31), 2**63, -(2**63), 2**70, [0, 5], [-6], np.ones(4, bool)):
        with pytest.raises(OutOfRangeError):
            ragged[key]
    for key in (1.0, "1", (1, 2), None, [1.5], True, slice("a", None), np.zeros((2, 2), int)):
        with pytest.raises(KeyTypeError):
            ragged[key]


@BOTH
def test_nested_iteration_and_appends_while_iterating(kind, h5):
    samples = some_samples(6)
    ragged = kind.create(h5.root, "x", "int16", ndim=2)
    ragged.extend(samples[:3])
    pairs = [(a, b) for a in ragged for b in ragged]
    assert_same([a for a, _ in pairs], [a for a in samples[:3] for _ in range(3)])
    assert_same([b for _, b in pairs], samples[:3] * 3)
    ragged.extend(samples[3:])
    assert_same(ragged, samples)


@BOTH
def test_what_is_returned_is_the_callers_own(kind, h5):
    samples = some_samples(4)
    ragged = kind.create(h5.root, "x", "int16", ndim=2)
    ragged.extend(samples)
    found = ragged[[3, 1, 1]]
    first = ragged[0:2]
    found[1][...] = -7
    ragged[:]
    assert_same(found[::2], [samples[3], samples[1]])
    assert_same(first, samples[:2])
    assert_same(ragged[:], samples)


@BOTH
def test_several_ragged_groups_live_in_one_file_and_reopen(kind, tmp_path):
    path = tmp_path / "many.h5"
    one, two = some_samples(5, seed=1), some_samples(7, seed=2, dtype="float64")
    with tables.open_file(path, "w") as h5:
        inner = h5.create_group("/", "deep")
        kind.create(h5.root, "one", "int16", ndim=2).extend(one)
        kind.create(inner, "two", "float64", ndim=2).extend(two)
    with tables.open_file(path, "a") as h5:
        a, b = kind.attach(h5.root.one), kind.attach(h5.root.deep.two)
        a.append(one[0])
        a.flush()
        assert_same(a, [*one, one[0]])
        assert_same(b, two)


@BOTH
def test_opening_to_read_never_changes_a_byte(kind, tmp_path):
    path = tmp_path / "still.h5"
    with tables.open_file(path, "w") as h5:
        kind.create(h5.root, "x", "int16", ndim=2).extend(some_samples(9))
    before = hashlib.sha256(path.read_bytes()).digest()
    with tables.open_file(path, "r") as h5:
        ragged = kind.attach(h5.root.x)
        ragged[3], ragged[::-1], ragged.shapes, ragged.lengths, list(ragged), repr(ragged)
        with pytest.raises(UsageError, match="opened to read"):
            ragged.append(np.zeros((1, 1), "int16"))
        with pytest.raises(UsageError, match="opened to read"):
            kind.create(h5.root, "y", "int16", ndim=1)
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_no_class_of_pytables_is_patched():
    classes = (tables.EArray, tables.VLArray, tables.CArray, tables.Array, tables.Leaf)
    for cls in classes:
        for name in ("__getitem__", "append", "__len__", "__iter__"):
            method = getattr(cls, name, None)
            module = getattr(method, "__module__", None)
            assert module is None or not module.startswith("raggedstore")


# -- what may be appended


@BOTH
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", [1e300]),
        ("float32", np.array([1.0, -1e300])),
        ("float16", np.array([70000], "float32")),
        ("float16", np.array([2049])),
        ("complex64", np.array([1e300 + 0j])),
        ("int16", [1.0]),
        ("int16", np.array([1.0])),
        ("int16", [40000]),
        ("uint8", [-1]),
        ("uint8", [256]),
        ("int64", np.array([2**63], "uint64")),
        ("uint64", np.array([-1])),
        ("float64", np.array([2**53 + 1])),
        ("float64", np.array([1j])),
        ("bool", [1]),
        ("int16", ["1"]),
        ("int64", np.array(["2020-01-01"], "datetime64[D]")),
        ("int64", [2**70]),
        ("int16", [None]),
    ],
)
def test_values_that_do_not_convert_are_refused_and_nothing_is_written(kind, dtype, value, h5):
    ragged = kind.create(h5.root, "x", dtype, ndim=1)
    good = np.ones(2, dtype)
    ragged.append(good)
    with pytest.raises(SampleTypeError):
        ragged.append(value)
    with pytest.raises(SampleTypeError, match="sample 2"):
        ragged.extend([good, value])
    assert_same(ragged[:], [good])
    assert [len(node) for node in ragged.nodes] == [
        2 if kind is RaggedEArray and node is ragged.data else 1 for node in ragged.nodes
    ]


@BOTH
@pytest.mark.parametrize(
    ("dtype", "value", "stored"),
    [
        ("uint8", [1, 255], np.array([1, 255], "uint8")),
        ("int16", [], np.array([], "int16")),
        ("float32", [0.1, np.inf, -np.inf], np.array([0.1, np.inf, -np.inf], "float32")),
        ("float64", np.array([2**60, -3]), np.array([2.0**60, -3.0])),
        ("int32", np.array([True, False]), np.array([1, 0], "int32")),
        ("complex64", np.array([1.5]), np.array([1.5], "complex64")),
        ("uint64", np.array([2**64 - 1], "uint64"), np.array([2**64 - 1], "uint64")),
        ("int16", np.arange(10, dtype="int16")[::-2], np.array([9, 7, 5, 3, 1], "int16")),
        ("int16", np.arange(3).astype(">i2"), np.array([0, 1, 2], "int16")),
    ],
)
def test_values_that_convert_without_loss_are_stored(kind, dtype, value, stored, h5):
    ragged = kind.create(h5.root, "x", dtype, ndim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ragged.append(value)
    assert_same(ragged[:], [stored])


@BOTH
@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3, "int16"),
        np.zeros((1, 1, 1), "int16"),
        np.int16(3),
        [[1, 2], [3]],
        np.ma.array([[1, 2]], mask=[[True, False]]),
    ],
)
def test_samples_of_another_shape_are_refused_and_nothing_is_written(kind, value, h5):
    ragged = kind.create(h5.root, "x", "int16", ndim=2)
    with pytest.raises(SampleError):
        ragged.append(value)
    with pytest.raises(SampleError):
        ragged.extend([np.zeros((1, 1), "int16"), value])
    assert len(ragged) == 0
    assert [len(node) for node in ragged.nodes] == [0] * len(ragged.nodes)


def test_extend_takes_a_generator_and_makes_one_append_of_each_node(h5, monkeypatch):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=2)
    appended = []
    append = tables.EArray.append
    monkeypatch.setattr(
        tables.EArray, "append", lambda node, rows: (appended.append(node.name), append(node, rows))
    )
    samples = some_samples(500)
    ragged.extend(sample for sample in samples)
    ragged.extend([])
    assert appended == ["data", "data_start_and_stop", "data_shape"]
    assert_same(ragged[:], samples)


def test_a_failing_write_leaves_the_file_as_it_was(h5, monkeypatch):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=2)
    samples = some_samples(5)
    ragged.extend(samples)
    append = tables.EArray.append

    def failing(node, rows):
        if node.name == "data_shape":
            raise OSError("disk full")
        append(node, rows)

    lengths = [len(node) for node in ragged.nodes]
    with monkeypatch.context() as patch:
        patch.setattr(tables.EArray, "append", failing)
        with pytest.raises(OSError, match="disk full"):
            ragged.extend(samples)
    assert [len(node) for node in ragged.nodes] == lengths
    ragged.append(samples[1])
    assert_same(ragged[:], [*samples, samples[1]])


def test_append_after_a_crash_that_left_data_without_columns(h5):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=1)
    ragged.append([1, 2])
    ragged.data.append(np.array([9, 9, 9], "int16"))
    ragged.append([3])
    assert_same(ragged[:], [np.array([1, 2], "int16"), np.array([3], "int16")])
    assert h5.root.x.data_start_and_stop[:].tolist() == [[0, 2], [5, 6]]


def test_append_after_a_crash_between_the_columns(h5):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=1)
    ragged.append([1, 2])
    h5.root.x.data.append(np.array([9], "int16"))
    h5.root.x.data_start_and_stop.append(np.array([[2, 3]]))
    assert len(ragged) == 1
    ragged.append([3])
    assert_same(ragged[:], [np.array([1, 2], "int16"), np.array([3], "int16")])


@pytest.mark.parametrize("torn", ["data", "data_shape"])
def test_append_to_a_vlarray_after_a_crash_between_its_nodes(torn, h5):
    ragged = RaggedVLArray.create(h5.root, "x", "int16", ndim=1)
    ragged.append([1, 2])
    node = h5.root.x._f_get_child(torn)
    node.append(np.array([[7]] if torn == "data_shape" else [7], node.atom.dtype))
    assert len(ragged) == 1
    ragged.append([3])
    for found in (ragged, RaggedVLArray.attach(h5.root.x)):
        assert_same(found[:], [np.array([1, 2], "int16"), np.array([3], "int16")])


# -- the layout of the 2014 PyTables article


def article_earray(path: Path, samples: list[np.ndarray]) -> None:
    with tables.open_file(path, "w") as h5:
        data = h5.create_earray(
            h5.root, "data", tables.Float32Atom(), (0,), filters=tables.Filters(5, "blosc")
        )
        places = h5.create_earray(h5.root, "data_start_and_stop", tables.Int32Atom(), (0, 2))
        shapes = h5.create_earray(h5.root, "data_shape", tables.Int32Atom(), (0, 2))
        stop = 0
        for sample in samples:
            data.append(sample.ravel())
            places.append(np.array([[stop, stop + sample.size]]))
            shapes.append(np.array([sample.shape]))
            stop += sample.size


def article_earray_h5py(path: Path, samples: list[np.ndarray], **compression) -> None:
    places = np.cumsum([0] + [sample.size for sample in samples])
    with h5py.File(path, "w") as h5:
        flat = np.concatenate([sample.ravel() for sample in samples])
        h5.create_dataset("data", data=flat, maxshape=(None,), chunks=(64,), **compression)
        both = np.stack([places[:-1], places[1:]], axis=1).astype("int32")
        h5.create_dataset("data_start_and_stop", data=both, maxshape=(None, 2))
        shapes = np.array([sample.shape for sample in samples], "int32")
        h5.create_dataset("data_shape", data=shapes, maxshape=(None, 2))


def article_vlarray(path: Path, samples: list[np.ndarray]) -> None:
    with tables.open_file(path, "w") as h5:
        data = h5.create_vlarray(h5.root, "data", tables.Float32Atom())
        shapes = h5.create_earray(h5.root, "data_shape", tables.Int32Atom(), (0, 2))
        for sample in samples:
            data.append(sample.ravel())
            shapes.append(np.array([sample.shape]))


def article_vlarray_h5py(path: Path, samples: list[np.ndarray]) -> None:
    with h5py.File(path, "w") as h5:
        data = h5.create_dataset(
            "data", (len(samples),), h5py.vlen_dtype("float32"), maxshape=(None,)
        )
        for number, sample in enumerate(samples):
            data[number] = sample.ravel()
        shapes = np.array([sample.shape for sample in samples], "int32")
        h5.create_dataset("data_shape", data=shapes, maxshape=(None, 2))


def article_earray_h5py_blosc2(path: Path, samples: list[np.ndarray]) -> None:
    article_earray_h5py(path, samples, **hdf5plugin.Blosc2(cname="zstd"))


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (article_earray, RaggedEArray),
        (article_earray_h5py, RaggedEArray),
        (article_earray_h5py_blosc2, RaggedEArray),
        (article_vlarray, RaggedVLArray),
        (article_vlarray_h5py, RaggedVLArray),
    ],
)
def test_files_in_the_articles_layout_open_as_they_are_and_grow(build, kind, tmp_path):
    path, samples = tmp_path / "article.h5", some_samples(20, dtype="float32")
    build(path, samples)
    before = path.read_bytes()
    with tables.open_file(path, "r") as h5:
        ragged = kind.attach(h5.root)
        assert_same(ragged, samples)
        assert_same(ragged[::-3], samples[::-3])
        assert ragged.shapes.dtype == np.int64
        assert ragged.lengths.tolist() == [len(sample) for sample in samples]
    assert path.read_bytes() == before
    with tables.open_file(path, "a") as h5:
        ragged = kind.attach(h5.root)
        ragged.extend(samples[:3])
        assert_same(ragged, samples + samples[:3])


def test_what_is_written_here_reads_in_h5py(tmp_path):
    samples = some_samples(50)
    with tables.open_file(tmp_path / "ours.h5", "w") as h5:
        RaggedEArray.create(h5.root, "x", "int16", ndim=2).extend(samples)
    with h5py.File(tmp_path / "ours.h5") as h5:
        places, shapes = h5["x/data_start_and_stop"][:], h5["x/data_shape"][:]
        found = [
            h5["x/data"][start:stop].reshape(shape)
            for (start, stop), shape in zip(places, shapes, strict=True)
        ]
    assert_same(found, samples)


def test_int32_positions_refuse_to_overflow(h5):
    h5.create_earray(h5.root, "data", tables.Int8Atom(), (0,), chunkshape=(2**20,))
    h5.create_earray(h5.root, "data_start_and_stop", tables.Int32Atom(), (0, 2))
    h5.create_earray(h5.root, "data_shape", tables.Int32Atom(), (0, 1))
    h5.root.data.truncate(2**31 - 4)  # nothing is written: these chunks are not there
    h5.root.data_start_and_stop.append(np.array([[2**31 - 9, 2**31 - 4]]))
    h5.root.data_shape.append(np.array([[5]]))
    ragged = RaggedEArray.attach(h5.root)
    ragged.append(np.ones(3, "int8"))
    with pytest.raises(SampleError, match="2147483648 does not fit the file's int32"):
        ragged.append(np.ones(1, "int8"))
    assert [len(node) for node in ragged.nodes] == [2**31 - 1, 2, 2]
    assert_same(ragged[:], [np.zeros(5, "int8"), np.ones(3, "int8")])


def test_a_faked_last_stop_is_not_built_upon(h5):
    ragged = RaggedEArray.create(h5.root, "x", "int8", ndim=1)
    ragged.append([1])
    h5.root.x.data_start_and_stop[0] = [0, 2**31 - 1]
    ragged = RaggedEArray.attach(h5.root.x)
    with pytest.raises(CorruptionError, match="sample 0"):
        ragged.append([1])


# -- damage


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        ([5, 3], [2, 1]),
        ([-1, 1], [2, 1]),
        ([2, 10**9], [2, 1]),
        ([2, 4], [3, 1]),
        ([2, 4], [-1, -2]),
        ([2, 4], [2**33, 2**31]),
        ([2, 2], [2**62, 4]),
        ([-(2**63), 2**63 - 1], [2, 1]),
    ],
)
def test_a_damaged_side_column_names_its_sample(place, shape, h5):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=2)
    samples = [np.full((2, 1), value, "int16") for value in range(4)]
    ragged.extend(samples)
    h5.root.x.data_start_and_stop[1] = place
    h5.root.x.data_shape[1] = shape
    for key in (1, -3, slice(None), [0, 1], np.array([False, True, False, False])):
        with pytest.raises(CorruptionError, match="sample 1"):
            ragged[key]
    with pytest.raises(CorruptionError, match="sample 1"):
        list(ragged)
    with pytest.raises(CorruptionError, match="sample 1"):
        ragged.lengths  # noqa: B018
    assert_same(ragged[2:], samples[2:])


def test_a_damaged_shape_beside_a_vlarray_names_its_sample(h5):
    ragged = RaggedVLArray.create(h5.root, "x", "int16", ndim=1)
    ragged.extend([[1, 2], [3]])
    for shape in (3, -1, 2**62):
        h5.root.x.data_shape[1] = [shape]
        with pytest.raises(CorruptionError, match="sample 1"):
            ragged[1]
    assert_same([ragged[0]], [np.array([1, 2], "int16")])


def test_a_chunk_that_does_not_decode_is_corruption(h5):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=1)
    ragged.append(np.arange(1000))
    ragged.flush()
    ragged.data.write_chunk((0,), b"\xff" * 300)
    with pytest.raises(CorruptionError, match="chunk"):
        ragged[0]


def test_no_damage_to_a_stored_chunk_raises_anything_but_corruption(h5):
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=2)
    ragged.extend(some_samples(100))
    rng = np.random.default_rng(5)
    for node in ragged.nodes:
        corner = (0,) * len(node.shape)
        ragged.flush()
        good = node.read_chunk(corner)
        for _ in range(200):
            bad = bytearray(good[: rng.integers(1, len(good) + 1)])
            for at in rng.integers(0, min(len(bad), 300), rng.integers(1, 9)):
                bad[at] ^= int(rng.integers(1, 256))
            node.write_chunk(corner, bytes(bad))
            with contextlib.suppress(CorruptionError):
                ragged[5]
        node.write_chunk(corner, good)


@BOTH
def test_groups_of_another_layout_are_refused(kind, h5):
    with pytest.raises(FormatError, match="no node 'data'"):
        kind.attach(h5.root)
    h5.create_vlarray(h5.root, "data", tables.ObjectAtom())
    h5.create_array(h5.root, "data_start_and_stop", np.zeros((0, 2)))
    h5.create_array(h5.root, "data_shape", np.zeros((1, 1), int))
    with pytest.raises(FormatError):
        kind.attach(h5.root)
    with pytest.raises(UsageError):
        kind.attach(h5.root.data_shape)
    h5.create_earray(h5.root, "flat", tables.Int16Atom(), (0,))
    for name, obj in [("flat_shape", np.zeros((3, 1))), ("flat_start_and_stop", np.zeros(3, int))]:
        h5.create_array(h5.root, name, obj)
    with pytest.raises(FormatError):
        kind.attach(h5.root, "flat")


def test_an_array_of_fixed_size_reads_and_refuses_to_grow(h5):
    h5.create_array(h5.root, "data", np.arange(4))
    h5.create_array(h5.root, "data_start_and_stop", np.array([[0, 3], [3, 4]]))
    h5.create_array(h5.root, "data_shape", np.array([[3], [1]]))
    ragged = RaggedEArray.attach(h5.root)
    assert_same(ragged, [np.arange(3), np.array([3])])
    with pytest.raises(UsageError, match="fixed size"):
        ragged.append([1])


@BOTH
def test_create_refuses_what_cannot_be(kind, h5):
    kind.create(h5.root, "x", "int16", ndim=1)
    with pytest.raises(ConflictError):
        kind.create(h5.root, "x", "int16", ndim=1)
    for dtype in ("S3", "O", "datetime64[s]", "nonsense", [("a", "i4")]):
        with pytest.raises(SchemaError):
            kind.create(h5.root, "y", dtype, ndim=1)
    with pytest.raises(UsageError):
        kind.create(h5.root, "y", "int16", ndim=0)
    with pytest.raises(UsageError):
        kind.create("/", "y", "int16", ndim=1)
    with pytest.raises(UsageError):
        RaggedEArray.create(h5.root, "y", "int16", ndim=1, chunk_bytes="much")
    assert "y" not in h5.root


# -- compression, and what reading costs


def test_data_is_compressed_by_blosc2_and_never_by_blosclz(h5):
    assert RaggedEArray.create(h5.root, "a", "int16", ndim=1).data.filters.complib == "blosc2:zstd"
    bare = RaggedEArray.create(h5.root, "b", "int16", ndim=1, filters=tables.Filters(5, "blosc2"))
    assert bare.data.filters.complib == "blosc2:lz4"
    zlib = RaggedEArray.create(h5.root, "c", "int16", ndim=1, filters=tables.Filters(5, "zlib"))
    assert zlib.data.filters.complib == "zlib"
    with pytest.raises(UsageError, match="BloscLZ"):
        filters = tables.Filters(5, "blosc2:blosclz")
        RaggedEArray.create(h5.root, "d", "int16", ndim=1, filters=filters)


@pytest.mark.parametrize("complib", ["blosc2:lz4", "blosc2:zstd", "blosc:lz4", "zlib", None])
def test_every_filter_reads_the_same_across_many_chunks(complib, h5):
    filters = tables.Filters(1, complib) if complib else tables.Filters(0)
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=2, filters=filters, chunk_bytes=64)
    samples = some_samples(60)
    for start in range(0, 60, 7):
        ragged.extend(samples[start : start + 7])
        assert_same(ragged[-5:], samples[: start + 7][-5:])
    order = np.random.default_rng(0).integers(0, 60, 40)
    assert_same(ragged[order], [samples[i] for i in order])


@pytest.mark.parametrize("complib", ["blosc2:zstd", "zlib"])
def test_a_slice_costs_the_chunks_it_touches_and_not_its_samples(complib, h5, monkeypatch):
    ragged = RaggedEArray.create(
        h5.root, "x", "int16", ndim=1, filters=tables.Filters(1, complib), chunk_bytes=2000
    )
    samples = [np.full(10, number, "int16") for number in range(1000)]  # 100 in each chunk
    ragged.extend(samples)
    reads = []
    for cls, name in ((tables.Leaf, "read_chunk"), (tables.Array, "__getitem__")):
        real = getattr(cls, name)
        monkeypatch.setattr(
            cls, name, lambda node, key, real=real: (reads.append(node.name), real(node, key))[1]
        )
    found = ragged[100:500]
    assert reads.count("data") <= 4
    assert len(reads) - reads.count("data") <= 2
    assert_same(found, samples[100:500])
    reads.clear()
    found = ragged[np.arange(999, -1, -100)]
    assert reads.count("data") <= 10
    assert_same(found, samples[999::-100])


def test_reading_does_not_leak(h5):
    """PyTables' own slices of a Blosc2 array lose some 67 kB each: 1,500 would be 100 MB."""
    ragged = RaggedEArray.create(h5.root, "x", "int16", ndim=1)
    ragged.extend([np.arange(100)] * 500)
    ragged[0]
    before = resident()
    for number in range(1500):
        ragged[number % 500]
    assert resident() - before < 30e6


def resident() -> int:
    path = Path("/proc/self/statm")
    if not path.exists():
        pytest.skip("needs /proc")
    return int(path.read_text().split()[1]) * 4096


@BOTH
def test_a_closed_file_is_named_as_such(kind):
    with in_memory() as h5:
        ragged = kind.create(h5.root, "x", "int16", ndim=1)
        ragged.append([1])
        swapper = MemorySwapper(ragged, budget=10)
    for use in (len, list, lambda array: array[0], lambda array: array[:]):
        for array in (ragged, swapper):
            with pytest.raises(UsageError, match="closed"):
                use(array)
    with pytest.raises(UsageError, match="closed"):
        ragged.append([1])
    assert "closed" in repr(ragged)
    assert "closed" in repr(swapper)


@BOTH
def test_repr_and_nbytes_tell_what_it_is(kind, h5):
    ragged = kind.create(h5.root, "x", "int16", ndim=2)
    ragged.extend([np.zeros((3, 4), "int16"), np.zeros((1, 2), "int16")])
    assert ragged.nbytes == 28
    assert "2 samples" in repr(ragged)
    assert "int16" in repr(ragged)
