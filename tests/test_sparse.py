"""Sparse matrices in a store, held against SciPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raggedstore as rs

sparse: Any = pytest.importorskip("scipy.sparse")

FEW = settings(max_examples=40, deadline=None)
DTYPES = ["i1", "u2", "i4", "i8", "f4", "f8", "c8", "?"]


@st.composite
def matrices(
    draw: st.DrawFn, width: int | None = None, kind: str | None = None, dtype: str | None = None
) -> Any:
    """CSR and CSC with duplicates, zeros, entries in any order, and room behind the last."""
    kind = draw(st.sampled_from(["csr", "csc"])) if kind is None else kind
    width = draw(st.integers(0, 6)) if width is None else width
    rows = draw(
        st.lists(
            st.lists(st.integers(0, width - 1), max_size=5) if width else st.just([]), max_size=6
        )
    )
    indices = [i for row in rows for i in row]
    indptr = np.cumsum([0, *map(len, rows)])
    room = draw(st.integers(0, 2))
    dtype = draw(st.sampled_from(DTYPES)) if dtype is None else dtype
    index = draw(st.sampled_from(["i4", "i8"]))
    numbers = draw(st.lists(st.integers(0, 3), min_size=len(indices), max_size=len(indices)))
    shape = (len(rows), width) if kind == "csr" else (width, len(rows))
    made = {"csr": sparse.csr_array, "csc": sparse.csc_matrix}[kind](shape, dtype=dtype)
    made.indptr = indptr.astype(index)
    made.indices = np.array([*indices, *[99] * room], index)
    made.data = np.array([*numbers, *[1] * room], dtype)
    return made


def parts(matrix: Any) -> list[Any]:
    """What a matrix is made of, without the room behind it."""
    stop = int(matrix.indptr[-1])
    return [
        matrix.shape,
        matrix.format,
        matrix.data.dtype,
        matrix.indptr.tolist(),
        matrix.indices[:stop].tolist(),
        matrix.data[:stop].tolist(),
    ]


@FEW
@given(matrix=matrices())
def test_a_matrix_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, matrix: Any
) -> None:
    with rs.from_sparse(matrix, tmp_path_factory.mktemp("sparse") / "store") as store:
        assert parts(rs.to_sparse(store)) == parts(matrix)
        assert store.schema["indices"].dtype == matrix.indices.dtype
        with rs.open(store.path) as again:
            assert parts(rs.to_sparse(again)) == parts(matrix)


@FEW
@given(data=st.data())
def test_rows_are_samples_to_append_choose_and_multiply(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    width, kind = data.draw(st.integers(1, 6)), data.draw(st.sampled_from(["csr", "csc"]))
    dtype = data.draw(st.sampled_from(DTYPES))
    first, second = (data.draw(matrices(width, kind, dtype)) for _ in range(2))
    second.indices = second.indices.astype(first.indices.dtype)
    axis = 0 if kind == "csr" else 1
    want = np.concatenate([m.toarray() for m in (first, second)], axis)
    with rs.from_sparse(first, tmp_path_factory.mktemp("sparse") / "store") as store:
        assert rs.append_sparse(store, second) == store.version
        assert (rs.to_sparse(store).toarray() == want).all()
        chosen = data.draw(
            st.lists(st.integers(0, len(store) - 1), max_size=8) if len(store) else st.just([])
        )
        view = store.select(chosen)
        picked = want.take(np.array(chosen, int), axis)
        assert (rs.to_sparse(view).toarray() == picked).all()
        assert rs.to_sparse(rs.concat([store, view])).shape[axis] == len(store) + len(view)

        columns = data.draw(st.sampled_from([(), (1,), (3,)]))
        other = data.draw(st.sampled_from(["i1", "f4", "f8", ">f8", "c16"]))
        x = np.random.default_rng(0).integers(0, 4, (picked.shape[1], *columns)).astype(other)
        got, by_scipy = rs.sparse_matmul(view, x), rs.to_sparse(view) @ x
        assert got.dtype == np.result_type(picked, x) and got.shape == by_scipy.shape
        np.testing.assert_array_equal(got, by_scipy)


def test_blocks_of_rows_make_the_same_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raggedstore.sparse._BLOCK_SAMPLES", 7)
    matrix = sparse.random_array((100, 40), density=0.2, rng=np.random.default_rng(0), format="csr")
    x = np.random.default_rng(1).standard_normal((40, 3))
    for made in (matrix, matrix.tocsc()):
        store = rs.from_sparse(made, tmp_path / made.format)
        np.testing.assert_allclose(rs.sparse_matmul(store, x), made @ x, rtol=1e-12)


def test_what_is_no_sparse_matrix_is_refused(tmp_path: Path) -> None:
    for bad in (np.eye(3), sparse.coo_array(np.eye(3)), None):
        with pytest.raises(rs.SampleError, match="CSR or CSC"):
            rs.from_sparse(bad, tmp_path / "store")
    outside = sparse.csr_array(np.eye(3))
    outside.indices[1] = 3
    with pytest.raises(rs.SampleError, match="outside of the 3"):
        rs.from_sparse(outside, tmp_path / "store")
    assert not list(tmp_path.iterdir())

    store = rs.from_sparse(sparse.csr_array(np.eye(3)), tmp_path / "store")
    for other in (np.eye(4), np.ones((3, 2))):
        with pytest.raises(rs.SampleError, match="does not continue"):
            rs.append_sparse(store, sparse.csr_array(other))
    with pytest.raises(rs.SampleError, match="does not continue"):
        rs.append_sparse(store, sparse.csc_array(np.eye(3)))
    with pytest.raises(rs.SampleTypeError):
        rs.append_sparse(store, sparse.csr_array(np.eye(3) * 1j))
    assert len(rs.open(tmp_path / "store")) == 3
    for x in (np.ones(4), np.ones((2, 3)), np.float64(1)):
        with pytest.raises(rs.UsageError, match="times an array"):
            rs.sparse_matmul(store, x)


def test_a_store_of_something_else_is_no_matrix(tmp_path: Path) -> None:
    schema = {"indices": rs.Field("i4", (None,)), "values": rs.Field("f4", (None,))}
    told: list[dict[str, Any]] = [
        {},
        {"sparse": 3},
        {"sparse": {"format": "coo", "width": 3}},
        {"sparse": {"format": "csr", "width": 2}},
    ]
    for number, metadata in enumerate(told):
        store = rs.create(tmp_path / str(number), schema, metadata=metadata)
        with store.writer() as writer:
            writer.append({"indices": [0, 2], "values": [1.0, 2.0]})
        with pytest.raises(rs.FormatError):
            rs.to_sparse(store)
    store = rs.create(
        tmp_path / "uneven", schema, metadata={"sparse": {"format": "csr", "width": 3}}
    )
    with store.writer() as writer:
        writer.append({"indices": [0, 2], "values": [1.0]})
    with pytest.raises(rs.FormatError, match="more indices than values"):
        rs.to_sparse(store)


_CHILD = """
import sys, numpy as np, raggedstore as rs, scipy.sparse
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
store = rs.open(sys.argv[1], budget="16MB")
x = np.ones(30_000_000, "f4")
before = anonymous()
y = rs.sparse_matmul(store, x)
assert y.sum() == 8_000_000, y.sum()
print(anonymous() - before)
"""


def test_a_product_is_streamed_and_nothing_is_dense(tmp_path: Path) -> None:
    """8 million entries, 64 MB, of a matrix that were 24 TB."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 30_000_000, 8_000_000, dtype=np.int32)
    made = (np.ones(8_000_000, "f4"), indices, np.arange(0, 8_000_001, 40))
    rs.from_sparse(
        sparse.csr_array(made, (200_000, 30_000_000)), tmp_path / "store", profile="fast"
    )
    out = subprocess.run(
        [sys.executable, "-c", _CHILD, tmp_path / "store"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(out.stdout) < 100 * 1024
