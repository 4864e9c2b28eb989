"""Items: samples in arrays on disk, held against lists and NumPy."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raggedstore as rs
from raggedstore.training import FixedSize, Loader, Permuted, Shuffled
from tests import strategies

Array = npt.NDArray[Any]

FIXTURE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
RNG = np.random.default_rng(0)


def same(got: Any, want: Any) -> bool:
    """Equal in type, shape and every value."""
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[n], want[n]) for n in want)
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, (np.ndarray, np.generic)):
        nans = want.dtype.kind in "fc"
        return got.dtype == want.dtype and np.array_equal(got, want, equal_nan=nans)
    return type(got) is type(want) and bool(got == want)


def raises_like(call: Callable[[], Any], error: BaseException) -> None:
    """`call` raises one of ours that is also what `error` is."""
    kind = next(kind for kind in (IndexError, TypeError, ValueError) if isinstance(error, kind))
    with pytest.raises(kind):
        call()


@pytest.fixture
def ragged(tmp_path: Path) -> tuple[Path, list[Array]]:
    """A folder with a .npy file a sample, of (n, 3) int16, some column by column."""
    folder = tmp_path / "ragged"
    folder.mkdir()
    samples = []
    for i in range(12):
        sample = RNG.integers(-99, 99, (i * 5 % 7, 3)).astype("int16")
        np.save(folder / f"{i:03}.npy", np.asfortranarray(sample) if i % 4 == 3 else sample)
        samples.append(sample)
    return folder, samples


def columns(tmp_path: Path) -> dict[str, Any]:
    """Eleven samples kept in each of the ways that there are."""
    tmp_path.mkdir(exist_ok=True)
    dense = RNG.standard_normal((11, 2, 3)).astype(">f4")
    np.save(tmp_path / "dense.npy", dense)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(dense))
    mapped = np.load(tmp_path / "dense.npy", mmap_mode="r")
    lengths = RNG.integers(0, 5, 11)
    offsets = np.append(0, lengths.cumsum())
    np.save(tmp_path / "values.npy", np.arange(offsets[-1], dtype="u2"))
    return {
        "mapped": mapped,
        "fortran": np.load(tmp_path / "fortran.npy", mmap_mode="r"),
        "stepped": np.repeat(mapped, 2, axis=0)[::2],
        "memory": np.arange(11),
        "flat": rs.RaggedBatch(np.load(tmp_path / "values.npy", mmap_mode="r"), offsets),
        "empty": np.zeros((11, 0, 4), "i1"),
    }


@pytest.fixture
def items(tmp_path: Path) -> rs.Items:
    return rs.Items(columns(tmp_path / "columns"))


def as_lists(items: rs.Items) -> list[dict[str, Any]]:
    """What items hold, sample by sample."""
    return [{name: np.array(value)[()] for name, value in items[i].items()} for i in range(11)]


# Indexing


@FIXTURE
@given(data=st.data())
def test_items_index_like_a_list(items: rs.Items, data: st.DataObject) -> None:
    everything, key = as_lists(items), data.draw(strategies.keys(len(items)))
    where = np.arange(len(items))
    try:
        picked = where[
            slice(0) if isinstance(key, list) and not key else key
        ]  # NumPy takes [] for floats
        want = [everything[i] for i in np.atleast_1d(picked)]
    except (IndexError, TypeError, ValueError) as error:
        raises_like(lambda: items[key], error)
        return
    if isinstance(key, (tuple, type(None), float)):
        return  # NumPy knows axes; a list does not, and refuses
    got = items[key]
    if np.ndim(picked) == 0:
        assert same(got, want[0])
    else:
        assert isinstance(got, rs.Items if isinstance(key, slice) else list)
        assert same(list(got), want)
        batch = items.batch(key)
        assert same(batch["mapped"], np.array([s["mapped"] for s in want], ">f4").reshape(-1, 2, 3))
        assert same(list(batch["flat"]), [s["flat"] for s in want])


@FIXTURE
@given(data=st.data())
def test_slices_of_slices_are_slices_of_lists(items: rs.Items, data: st.DataObject) -> None:
    want, got = as_lists(items), items
    for _ in range(3):
        ends = st.none() | st.integers(-13, 13)
        key = data.draw(st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, 3, -1, -2])))
        want, got = want[key], got[key]
        assert len(got) == len(want)
        assert same([got[i] for i in range(len(want))], want)
        assert same([got[-i] for i in range(1, len(want) + 1)], want[::-1])
        assert same(list(got), want)
        assert same(list(pickle.loads(pickle.dumps(got))), want)


@pytest.mark.parametrize("key", [11, -12, 2**70, [0, 11], np.array([11]), np.array([-12])])
def test_what_is_out_of_range_is_refused_in_our_words(items: rs.Items, key: Any) -> None:
    for call in (lambda: items[key], lambda: items.batch(key), lambda: items["flat"][key]):
        with pytest.raises(rs.OutOfRangeError, match="out of range for length 11"):
            call()
    with pytest.raises(rs.KeyTypeError):
        items[1.0:]  # type: ignore[misc]
    with pytest.raises(rs.UnknownFieldError, match="the fields are mapped"):
        items["no"]


@FIXTURE
@given(data=st.data())
def test_anything_indexed_like_an_array_is_read_in_runs(data: st.DataObject) -> None:
    class Tracked:
        """Rows that remember what was asked for."""

        def __init__(self, array: Array) -> None:
            self.array, self.shape, self.dtype = array, array.shape, array.dtype
            self.asked: list[Any] = []

        def __getitem__(self, key: int | slice) -> Any:
            self.asked.append(key)
            return self.array[key]

    array = np.arange(40).reshape(20, 2)
    tracked = Tracked(array)
    step = data.draw(st.sampled_from([slice(None), slice(2, None, 3), slice(None, None, -1)]))
    items, want = rs.Items({"x": tracked})[step], array[step]
    positions = data.draw(st.lists(st.integers(0, len(want) - 1), max_size=12))
    got = items.batch(positions)["x"]
    assert same(got, want[np.array(positions, int)])
    rows = [row for key in tracked.asked for row in range(20)[key]]
    assert rows == sorted({range(20)[step][i] for i in positions})
    assert all(
        tracked.asked[i].stop < tracked.asked[i + 1].start for i in range(len(tracked.asked) - 1)
    )
    if len(want):
        assert same(items[-1]["x"], want[-1])


def test_h5py_datasets_are_items(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.arange(30).reshape(10, 3)
        items = rs.Items({"x": file["x"], "y": np.arange(10)})
        assert same(items[2:7].batch([4, 0, 0])["x"], file["x"][:][[6, 2, 2]])
        assert [(s["x"].tolist(), s["y"]) for s in items[[1]]] == [([3, 4, 5], 1)]


def test_an_item_of_a_map_is_a_view_and_a_batch_is_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    items = rs.Items({"x": mapped})
    items.batch([1, 2])["x"][:] = 7
    items[[1]][0]["x"][:] = 7
    assert not mapped.any()
    items[3]["x"][0] = 1
    items[4:][0]["x"][1] = 2
    items.arrays()["x"][0, 0] = 3
    assert mapped[3, 0] == 1 and mapped[4, 1] == 2 and mapped[0, 0] == 3
    assert not np.load(tmp_path / "x.npy").any()  # copy on write: the file stays


# Together


def test_items_zip_like_lists(tmp_path: Path) -> None:
    x, y = np.arange(6).reshape(3, 2), np.array([5, 6, 7])
    zipped = rs.Items({"x": x}).zip(rs.Items({"y": y}), rs.Items({"z": y + 1}))
    assert same(zipped[1], {"x": x[1], "y": y[1], "z": y[1] + 1})
    pairs = zip(rs.Items({"x": x}), rs.Items({"y": y}), strict=True)
    assert same([a | b for a, b in pairs], [{"x": x[i], "y": y[i]} for i in range(3)])
    with pytest.raises(rs.UsageError, match="more than one has a field 'x'"):
        zipped.zip(rs.Items({"x": y}))
    with pytest.raises(rs.UsageError, match=r"agree in length, got \{'x': 3, 'y': 2\}"):
        rs.Items({"x": x}).zip(rs.Items({"y": y[:2]}))


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (np.array(3), rs.UsageError, "no dimensions"),
        (np.array([None, 1], object), rs.SchemaError, "object cannot be stored"),
        (np.array(["a"]), rs.SchemaError, "cannot be stored"),
        (np.ma.masked_array([1, 2], [True, False]), rs.UsageError, "masked"),
        ([1, 2], rs.UsageError, "field 'x': an array"),
        ("x.npy", rs.UsageError, "files are for from_npy"),
    ],
)
def test_what_holds_no_samples_is_refused(value: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        rs.Items({"x": value})


def test_no_fields_or_names_are_refused() -> None:
    with pytest.raises(rs.SchemaError):
        rs.Items({})
    with pytest.raises(rs.SchemaError):
        rs.Items({"no name": np.arange(3)})
    with pytest.raises(rs.UsageError, match="mapping"):
        rs.Items(np.arange(3))  # type: ignore[arg-type]


def test_items_are_samples(items: rs.Items) -> None:
    everything = as_lists(items)
    assert same(list(items.select([3, 1])), [everything[3], everything[1]])
    assert same(list(rs.concat([items, items[2:5]])), everything + everything[2:5])
    assert items["flat"].lengths.tolist() == [len(s["flat"]) for s in everything]
    assert items["memory"].stats().mean == 5
    cropped = items["flat"].crop([4, 2, 4], [1, 0, 0], [3, 2, 9])
    assert same(
        list(cropped),
        [everything[4]["flat"][1:3], everything[2]["flat"][:2], everything[4]["flat"]],
    )
    parts = items.split({"a": 0.5, "b": 0.5})
    assert sorted(x for part in parts.values() for x in part["memory"]) == list(range(11))


@pytest.mark.parametrize("order", [Shuffled(seed=1, window="1kB"), Permuted(seed=1)])
def test_items_feed_a_loader(items: rs.Items, order: Any) -> None:
    loader = Loader(items, order=order, batch=FixedSize(4), where="flat.length > 0")
    got = {}
    for batch in loader:
        for k, number in enumerate(batch["memory"].tolist()):
            got[number] = {name: batch[name][k] for name in items.schema}
    want = {i: s for i, s in enumerate(as_lists(items)) if len(s["flat"])}
    assert got.keys() == want.keys() and all(same(got[i], want[i]) for i in want)


def test_items_pickle_by_path(tmp_path: Path) -> None:
    big = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "f8", (50_000, 10))
    big[:] = np.arange(10)
    big.flush()
    items = rs.Items({"x": np.load(tmp_path / "x.npy", mmap_mode="r"), "y": big})[7:40_000:3]
    pickled = pickle.dumps(items)
    assert len(pickled) < 2000
    again = pickle.loads(pickle.dumps(pickle.loads(pickled)))
    assert same(again[-1], items[-1]) and len(again) == len(items)
    with pytest.raises(ValueError, match="read-only"):
        again[0]["x"][0] = 1
    os.truncate(tmp_path / "x.npy", 1000)
    with pytest.raises(rs.CorruptionError, match="shorter"):
        pickle.loads(pickled)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(rs.StorageError, match=r"x\.npy"):
        pickle.loads(pickled)


def test_threads_read_at_once(ragged: tuple[Path, list[Array]]) -> None:
    items, wrong = rs.from_npy(ragged[0]), []

    def read() -> None:
        for _ in range(20):
            got = items.batch([5, 1, 3])["data"]
            if not same(list(got), [ragged[1][i] for i in (5, 1, 3)]):
                wrong.append(got)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Tensors


@pytest.mark.parametrize("mode", ["r", "c"])
def test_tensors_share_memory_that_may_be_written_and_no_other(tmp_path: Path, mode: str) -> None:
    pytest.importorskip("torch")
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    items = rs.from_npy(tmp_path / "x.npy", mode=mode)
    one, view = rs.torch.MapDataset(items)[4]["data"], items[4]["data"]
    assert (one.data_ptr() == view.ctypes.data) == (mode == "c")
    one[:] = -1
    assert np.load(tmp_path / "x.npy")[4].tolist() == [8, 9]
    assert (items[4]["data"] == -1).all() == (mode == "c")


def test_a_batch_over_the_files_becomes_tensors_without_a_copy(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    rs.Items({"x": rs.RaggedBatch(np.arange(9), [0, 2, 2, 9])}).to_npy(tmp_path / "x")
    batch = rs.from_npy(tmp_path / "x", mode="c")[1:].arrays()["x"]
    assert same(list(batch), [np.arange(0), np.arange(2, 9)])
    assert batch.to_torch().values.data_ptr() == batch.values.ctypes.data
    with pytest.raises(rs.UsageError, match="one after another"):
        rs.from_npy(tmp_path / "x")[::-1].arrays()


def test_data_loader_workers_read_items(ragged: tuple[Path, list[Array]]) -> None:
    torch = pytest.importorskip("torch")
    dataset = rs.torch.MapDataset(rs.from_npy(ragged[0]))
    loader = torch.utils.data.DataLoader(
        dataset, 5, num_workers=1, collate_fn=rs.torch.collate, multiprocessing_context="fork"
    )
    got = [
        row[:n].numpy()
        for batch in loader
        for row, n in zip(batch["data"], batch["data_lengths"], strict=True)
    ]
    assert same(got, ragged[1])


# .npy files


@FIXTURE
@given(data=st.data())
def test_a_folder_is_a_ragged_field(ragged: tuple[Path, list[Array]], data: st.DataObject) -> None:
    folder, samples = ragged
    items = rs.from_npy(folder, mode=data.draw(st.sampled_from("rc")))
    assert items.schema == rs.Schema({"data": rs.Field("int16", (None, 3))})
    positions = data.draw(st.lists(st.integers(-12, 11), max_size=8))
    assert same(list(items.batch(positions)["data"]), [samples[i] for i in positions])
    assert same([items[i]["data"] for i in positions], [samples[i] for i in positions])
    starts = data.draw(st.lists(st.integers(0, 8), min_size=12, max_size=12))
    stops = data.draw(st.lists(st.integers(0, 8), min_size=12, max_size=12))
    cropped = items["data"].crop(slice(None), starts, stops)
    want = [x[a : max(a, b)] for x, a, b in zip(samples, starts, stops, strict=True)]
    assert same(list(cropped), want)


def test_files_and_folders_lie_side_by_side(ragged: tuple[Path, list[Array]]) -> None:
    folder, samples = ragged
    np.save(folder.parent / "labels.npy", np.arange(12))
    items = rs.from_npy({"audio": folder, "label": str(folder.parent / "labels.npy")})
    assert same(items[::-5][1], {"audio": samples[6], "label": np.int64(6)})
    again = pickle.loads(pickle.dumps(items[3:]))
    assert same(list(again["audio"]), samples[3:])


def test_a_folder_of_scalars_is_a_field_of_scalars(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.float32(i))
    items = rs.from_npy(tmp_path)
    assert items.schema["data"] == rs.Field("float32")
    assert same(items.batch([2, 0])["data"], np.array([2, 0], "f4"))
    assert same(items[1]["data"], np.float32(1))


def test_files_that_are_none_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, source: Any = tmp_path) -> None:
        with pytest.raises(error, match=match):
            rs.from_npy(source)

    refused(rs.NotAStoreError, "no .npy file in this folder")
    refused(rs.NotAStoreError, "no such file", tmp_path / "x.npy")
    np.save(tmp_path / "a.npy", np.arange(9.0))
    with pytest.raises(rs.UsageError, match="copy on write"):
        rs.from_npy(tmp_path, mode="r+")
    np.save(tmp_path / "b.npy", np.arange(9))
    refused(rs.SchemaError, r"b\.npy: 1 dimensions of int64, where .*a\.npy has 1 of float64")
    np.save(tmp_path / "b.npy", np.zeros((2, 2)))
    refused(rs.SchemaError, "2 dimensions")
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    refused(rs.FormatError, "Python objects, which are never unpickled")
    (tmp_path / "b.npy").write_bytes(b"not NumPy's")
    refused(rs.FormatError, "not a .npy file")
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    refused(rs.CorruptionError, "too few")


def test_a_file_cut_short_while_it_is_open_is_an_error_and_no_crash(
    ragged: tuple[Path, list[Array]],
) -> None:
    items = rs.from_npy(ragged[0])
    os.truncate(ragged[0] / "004.npy", 129)
    for call in (lambda: items[4], lambda: items.batch([1, 4])):
        with pytest.raises(rs.CorruptionError, match=r"004\.npy"):
            call()
    (ragged[0] / "004.npy").unlink()
    for call in (lambda: items[4], lambda: items.batch([1, 4])):
        with pytest.raises(rs.StorageError, match=r"004\.npy"):
            call()


# Both ways


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_stores_become_npy_files_and_these_a_store(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("both")
    schema = data.draw(strategies.schemas())
    samples = data.draw(st.lists(strategies.samples(schema), max_size=6))
    with rs.create(folder / "store", schema) as store:
        with store.writer() as writer:
            writer.extend(samples)
        store.to_npy(folder / "npy")
        want = list(store)
        items = rs.from_npy(folder / "npy")
        assert items.schema == schema and same(list(items), want)
        assert same([items[i] for i in range(len(items))], want)
        with rs.create(folder / "again", items.schema) as again:
            with again.writer() as writer:
                writer.extend(items)
            assert same(list(again), want)


def test_npy_files_are_written_whole_or_not_at_all(
    items: rs.Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    target = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(rs.StorageError, match="No space left"):
            items.to_npy(target)
        with pytest.raises(rs.StorageError, match="No space left"):
            rs.write_npy(target, [np.arange(3)])
    assert [path.name for path in tmp_path.iterdir()] == ["columns"]
    items.to_npy(target)
    for call in (lambda: items.to_npy(target), lambda: rs.write_npy(target, [np.arange(3)])):
        with pytest.raises(rs.ConflictError):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["columns", "out"]
    assert same(list(rs.from_npy(target)), as_lists(items))


def test_a_damaged_folder_of_npy_files_is_refused(items: rs.Items, tmp_path: Path) -> None:
    items.select(fields=["flat", "memory"]).to_npy(tmp_path / "out")
    offsets = tmp_path / "out" / "flat.offsets.npy"
    good = np.load(offsets)
    bad: list[Any] = [good[::-1], good + 1, good.astype("i4"), good[:-1], good[:, None]]
    for wrong in bad:
        np.save(offsets, wrong)
        with pytest.raises((rs.FormatError, rs.UsageError)):
            rs.from_npy(tmp_path / "out")
    np.save(offsets, good)
    (tmp_path / "out" / "schema.json").write_text("[]")
    with pytest.raises(rs.FormatError, match=r"schema\.json"):
        rs.from_npy(tmp_path / "out")


@given(
    hnp.arrays(st.sampled_from(["i2", ">f8", "?", "c8"]), hnp.array_shapes(max_dims=3, min_side=0)),
    st.lists(st.integers(0, 6), max_size=4),
)
def test_pieces_make_the_array_that_concatenate_makes(
    tmp_path_factory: pytest.TempPathFactory, array: Array, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "x.npy"
    pieces = np.split(array, sorted(min(cut, len(array)) for cut in cuts))
    assert rs.write_npy(path, iter(pieces)) == array.shape
    got = np.load(path, allow_pickle=False)
    assert got.dtype == array.dtype and got.tobytes() == array.tobytes()


def test_pieces_that_differ_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    x, path = np.zeros((2, 3)), tmp_path / "x.npy"
    for pieces in ([x, x[:, :2]], [x, x.astype("f4")], [np.float64(1)], [x, np.float64(1)]):
        with pytest.raises(rs.SampleError):
            rs.write_npy(path, pieces)
    with pytest.raises(rs.SampleTypeError, match="pickled"):
        rs.write_npy(path, [np.array([None])])
    with pytest.raises(rs.UsageError, match="no pieces"):
        rs.write_npy(path, [])
    assert not list(tmp_path.iterdir())


def test_filling_takes_no_more_room_on_disk_than_the_result(tmp_path: Path) -> None:
    rows = np.ones((1000, 100))
    peaks = []

    def used() -> int:
        return sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*") if file.is_file())

    def pieces() -> Iterator[Array]:
        for _ in range(10):
            peaks.append(used())
            yield rows

    rs.write_npy(tmp_path / "x.npy", pieces())
    done = used()
    assert done >= 10 * rows.nbytes and max(peaks) <= 1.1 * done
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


_CHILD = """
import resource, sys
import numpy as np, raggedstore as rs
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
items = rs.from_npy(sys.argv[1])
before = anonymous()
total = sum(float(items[i]["data"][::512].sum()) for i in range(0, len(items), 7))
part = items[1000:].batch([5, 0, 17])["data"]
rs.from_npy(sys.argv[1])[:2000].to_npy(sys.argv[2])
print(anonymous() - before)
"""


def test_items_larger_than_the_memory_allowed_stay_on_disk(tmp_path: Path) -> None:
    """400 MB of sparse file; what is looked at and written is page cache."""
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "f4", (10_000, 10_000))
    out = subprocess.run(
        [sys.executable, "-c", _CHILD, tmp_path / "x.npy", tmp_path / "out"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(out.stdout) < 64 * 1024


def test_an_int_that_is_too_large_is_out_of_range() -> None:
    items = rs.Items({"x": np.zeros(3)})
    for index in 3, 2**63, -(2**70):
        with pytest.raises(rs.OutOfRangeError):
            items[index]
