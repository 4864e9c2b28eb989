"""Arguments that make no sense are refused at once, by an error that quotes them."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest

import raggedstore as rs
from raggedstore import lazy
from raggedstore.lazy.arguments import axis_number, lock_given

VALUES = np.arange(12.0).reshape(3, 4)
TILES: dict[str, Any] = {"grid": (2, 2), "tile": (2, 2), "dtype": "f8"}


def nothing(*place: int) -> np.ndarray:
    return np.zeros((2, 2))


class Odd:
    """No array, though it has all that one has."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("nothing is read")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "nope"),
        ("dtype", ["f4", "f4"]),
        ("grid", "ab"),
        ("grid", (2.5, 2)),
        ("grid", (None, 2)),
        ("tile", 5),
        ("shape", "xy"),
        ("chunks", "bad"),
        ("chunks", (3,)),
        ("lock", 7),
        ("load", 3),
    ],
)
def test_tiles_refuse_what_makes_none(name: str, value: Any) -> None:
    with pytest.raises(rs.UsageError, match=f"{name}="):
        lazy.tiles(**{"load": nothing, **TILES, name: value})


@pytest.mark.parametrize("axis", ["x", 1.0, (0,), None, 7])
def test_an_axis_is_a_number_of_one_that_is_there(axis: Any) -> None:
    for refused in (
        lambda: lazy.concatenate([VALUES, VALUES], axis=axis),
        lambda: lazy.stack([VALUES, VALUES], axis=axis),
        lambda: lazy.mosaic([VALUES, VALUES], axes=[axis]),
        lambda: lazy.sum(VALUES, axis=(axis,)),
    ):
        with pytest.raises(rs.UsageError, match=r"ax[ei]s.*(x|1\.0|0|None|7)"):
            refused()


def test_axes_may_be_counted_from_the_last_and_be_numpys_ints() -> None:
    assert [axis_number(axis, 3) for axis in (0, -1, np.int8(-3), np.uint64(2))] == [0, 2, 0, 2]
    with pytest.raises(rs.UsageError, match=r"\(0, -2\) names one twice"):
        lazy.mean(VALUES, axis=(0, -2))


@pytest.mark.parametrize("chunks", ["bad", "10 parsecs", (3,), -5, 0, 1.5, ((1, 1), (4,))])
@pytest.mark.parametrize("x", [VALUES, da.ones((3, 4))], ids=["array", "dask"])
def test_chunks_that_dask_does_not_take_are_quoted(chunks: Any, x: Any) -> None:
    with pytest.raises(rs.UsageError, match=r"chunks=.* of an array of \(3, 4\): .*"):
        lazy.adapt(x, chunks=chunks)


@pytest.mark.parametrize(("shape", "dtype"), [(None, "f4"), ((3, None), "f4"), ((3,), "nope")])
def test_an_object_whose_shape_or_dtype_is_none_is_refused(shape: Any, dtype: str) -> None:
    with pytest.raises(rs.UsageError, match=r"(shape|dtype)="):
        lazy.adapt(Odd(shape, dtype))


def test_locks_are_any_that_can_be_held() -> None:
    for lock in (True, False):
        with lock_given(lock):
            np.testing.assert_array_equal(lazy.adapt(VALUES, lock=lock), VALUES)
    with pytest.raises(rs.UsageError, match="lock='me'"):
        lazy.adapt(VALUES, lock="me")


@pytest.mark.parametrize(
    "refused",
    [
        lambda: lazy.var(VALUES, ddof="x"),  # type: ignore[arg-type]
        lambda: lazy.std(VALUES, ddof=None),  # type: ignore[arg-type]
        lambda: lazy.quantiles(VALUES, "median"),
        lambda: lazy.quantiles(VALUES, [[0.1], [0.2, 0.3]]),
        lambda: lazy.quantiles(VALUES, 0.5, error="small"),  # type: ignore[arg-type]
        lambda: lazy.histogram(VALUES, [[1, 2], [3]]),
        lambda: lazy.compute(5),  # type: ignore[arg-type]
        lambda: lazy.matmul([[1], [2, 3]], VALUES),
        lambda: lazy.matmul(VALUES, np.full((4, 2), "a")),
        lambda: lazy.save([VALUES], "x.h5"),  # type: ignore[arg-type]
        lambda: lazy.save({3: VALUES}, "x.h5"),  # type: ignore[dict-item]
        lambda: lazy.save({"x": VALUES}, 5),  # type: ignore[arg-type]
        lambda: lazy.save({"x": VALUES}, "nul\0.h5"),
        lambda: lazy.save({"nul\0": VALUES}, "x.h5"),
        lambda: lazy.save({"a/_i_b": VALUES}, "x.h5"),  # a name of PyTables' own
        lambda: lazy.field(5),  # type: ignore[arg-type]
        lambda: lazy.write_partitions(5, "store", {"x": "f4"}),
    ],
)
def test_other_arguments_are_refused_in_our_words(
    refused: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rs.UsageError):
        refused()
