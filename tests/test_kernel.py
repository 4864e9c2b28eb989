"""What is compiled does what NumPy does, and believes nothing that it is told."""

import importlib
import itertools
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import OrderedDict
from pathlib import Path

import blosc2
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from raggedstore import kernel
from raggedstore.batch import copy_ranges, offsets_of

needs_kernel = pytest.mark.skipif(not kernel.is_there(), reason="the kernel is not compiled here")
HUGE = st.sampled_from([-(2**63), -(2**31), -1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1])
LENGTHS = st.lists(st.integers(-2, 40) | HUGE, max_size=5)


def test_it_is_compiled_where_it_can_be() -> None:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not shutil.which("cc") or not header.exists():
        pytest.skip("no compiler here")
    importlib.import_module("raggedstore._kernel")
    if os.environ.get("RAGGEDSTORE_KERNEL") == "0":
        pytest.skip("switched off by RAGGEDSTORE_KERNEL")
    if not blosc2.blosclib_version.startswith("3."):
        pytest.skip("a Blosc2 that it was not tried with")
    assert kernel.is_there()


def test_it_can_be_switched_off() -> None:
    code = "from raggedstore import kernel; print(kernel.is_there())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAGGEDSTORE_KERNEL": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("by_kernel", [pytest.param(True, marks=needs_kernel), False])
@pytest.mark.parametrize("dtype", ["u1", "<i4", ">f8", "c16", "M8[s]", "S3", "O"])
@pytest.mark.parametrize("row", [(), (3,), (2, 0)])
@given(data=st.data())
def test_ranges_are_copied_as_slices_are(
    by_kernel: bool, dtype: str, row: tuple[int, ...], data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, 400))
    values = np.arange(size * max(int(np.prod(row)), 1)).astype("u1").astype(dtype)
    values = values[: size * int(np.prod(row))].reshape(size, *row)
    point = st.integers(0, size)
    ranges = data.draw(st.lists(st.tuples(point, point).map(sorted), max_size=20))
    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    if data.draw(st.booleans()):
        values = values[::-1]
    offsets = offsets_of(stops - starts)
    out = np.empty((offsets[-1], *row), dtype)

    with pytest.MonkeyPatch.context() as patch:
        if not by_kernel:
            patch.setattr(kernel, "_compiled", None)
        copy_ranges(values, starts, stops, offsets, out)

    np.testing.assert_array_equal(
        out, np.concatenate([values[:0], *[values[a:b] for a, b in ranges]])
    )


@needs_kernel
@given(
    edges=LENGTHS,
    starts=LENGTHS,
    counts=LENGTHS,
    places=LENGTHS,
    sources=st.integers(0, 2),
    row=st.sampled_from(["u1", "i8", "S7"]),
)
def test_no_run_outside_of_an_array_is_copied(
    edges: list[int],
    starts: list[int],
    counts: list[int],
    places: list[int],
    sources: int,
    row: str,
) -> None:
    out = np.zeros(30, row)
    arrays = [np.array(numbers, np.int64) for numbers in (edges, starts, counts, places)]
    fits = len(edges) == sources + 1 and len(starts) == len(counts) == len(places)
    runs = list(zip(starts, counts, places, strict=False))
    pairs = list(itertools.pairwise(edges))
    fits = fits and all(0 <= a <= b <= len(starts) for a, b in pairs)
    fits = fits and all(
        start >= 0 and place >= 0 and count >= 0 and start + count <= 20 and place + count <= 30
        for a, b in pairs
        for start, count, place in runs[a:b]
    )
    try:
        size = out.itemsize
        sources_of = [np.ones(20, row).view(np.uint8)] * sources
        kernel.compiled().copy(sources_of, size, *arrays, out.view(np.uint8))
    except IndexError:
        assert not fits
    else:
        assert fits


RISING = st.builds(range, st.integers(-2, 20), st.integers(0, 30)).map(list)
NUMBERS = st.lists(st.integers(-2, 30) | HUGE, max_size=5) | RISING


@needs_kernel
@pytest.mark.parametrize("row", ["u1", "i8", "S7", "c16"])
@given(
    starts=NUMBERS,
    stops=st.none() | NUMBERS,
    places=st.none() | NUMBERS,
    sizes=st.lists(st.integers(0, 5), max_size=4),
    first=st.sampled_from([0, 1, 3, -1, 2**62]),
)
def test_ranges_of_chunks_at_hand_are_copied_as_slices_are_or_refused(
    starts: list[int],
    stops: list[int] | None,
    places: list[int] | None,
    sizes: list[int],
    first: int,
    row: str,
) -> None:
    each = 5
    chunks = [np.arange(i, i + size).astype(row) for i, size in enumerate(sizes)]
    there = {(first + i) * each + j: v for i, c in enumerate(chunks) for j, v in enumerate(c)}
    out, want = np.zeros(20, row), np.zeros(20, row)
    fits, at = first >= 0 and first < 2**60, 0
    ends = [start + 1 for start in starts] if stops is None else stops
    fits = fits and len(starts) == len(ends) == len(starts if places is None else places)
    for i, (start, stop) in enumerate(zip(starts, ends, strict=False)):
        at = at if places is None or i >= len(places) else places[i]
        fits = fits and first * each <= start <= stop <= start + 20 and at >= 0
        fits = fits and at + stop - start <= 20 and all(r in there for r in range(start, stop))
        if not fits:
            break
        want[at : at + stop - start] = [there[r] for r in range(start, stop)]
        at += stop - start
    arrays = [None if n is None else np.array(n, np.int64) for n in (starts, stops, places)]
    try:
        raw = [chunk.view(np.uint8) for chunk in chunks]
        kernel.compiled().copy_held(raw, first, each, out.itemsize, *arrays, out.view(np.uint8))
    except IndexError:
        assert not fits
    else:
        assert fits
        np.testing.assert_array_equal(out, want)


COUNTS = st.integers(-1, 12) | HUGE


@needs_kernel
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">f8"])
@given(
    span=st.tuples(COUNTS, COUNTS),
    shape=st.none() | st.lists(COUNTS, min_size=2, max_size=2),
    dims=st.tuples(st.sampled_from([-1, 2, 3]), st.sampled_from([-1, 2, 2**62])),
    position=st.integers(-1, 4) | HUGE,
    per=st.tuples(*[st.integers(0, 3) | HUGE] * 3),
    rows=st.integers(0, 12) | HUGE,
    dropped=st.sets(st.integers(0, 8)),
)
def test_a_sample_is_found_in_chunks_at_hand_as_slices_find_it_or_not_at_all(
    span: tuple[int, int],
    shape: list[int] | None,
    dims: tuple[int, int],
    position: int,
    per: tuple[int, int, int],
    rows: int,
    dropped: set[int],
    dtype: str,
) -> None:
    values = np.arange(10).astype(dtype)
    chunks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
    whole = {
        "span": np.array([span] * 4, np.int64),
        "shape": np.array([shape or (0, 0)] * 4, np.int64),
        "data": values,
    }
    for (name, array), each in zip(whole.items(), per, strict=True):
        for i in range(0, len(array) if 0 < each < 2**31 else 0, max(each, 1)):
            chunks[name, i // each] = array[i : i + each]
    for key in [key for i, key in enumerate(chunks) if i in dropped]:
        del chunks[key]
    held = dict(chunks)
    fixed = dims if shape is not None else dims[:1]
    found = np.array([*per, rows, values.itemsize, len(fixed), *fixed], np.int64)
    got = kernel.compiled().sample(
        chunks, "span", None if shape is None else "shape", "data", found.tobytes(), position
    )
    assert len(chunks) == len(held) and all(chunks[key] is held[key] for key in held)
    start, stop = span
    size = [stop - start] if shape is None else shape
    if got is None:
        return
    assert got[:3] == (start, stop, tuple(size))
    assert 0 <= start < stop <= min(rows, 10) and 0 <= position < 4
    assert math.prod(size) == stop - start
    assert all(want in (-1, have) for want, have in zip(fixed, size, strict=True))
    np.testing.assert_array_equal(np.frombuffer(got[3], dtype), values[start:stop])


@needs_kernel
@given(start=st.integers(0, 9), count=st.integers(1, 10), per=st.integers(1, 10))
def test_a_sample_of_chunks_at_hand_is_found_and_they_are_the_last_to_be_dropped(
    start: int, count: int, per: int
) -> None:
    values, stop = np.arange(10, dtype=np.int16), min(start + count, 10)
    chunks = OrderedDict([(("span", 0), np.array([[start, stop]], np.int64))])
    chunks |= {("data", i // per): values[i : i + per] for i in range(0, 10, per)}
    chunks["other", 0] = values
    found = np.array([1, 1, per, 10, 2, 1, -1], np.int64).tobytes()
    got = kernel.compiled().sample(chunks, "span", None, "data", found, 0)
    assert got == (start, stop, (stop - start,), bytearray(values[start:stop].tobytes()))
    used = [("span", 0), *(("data", i) for i in range(start // per, (stop - 1) // per + 1))]
    assert list(chunks)[-len(used) :] == used


@needs_kernel
@pytest.mark.parametrize("found", [b"", bytes(47), bytes(48), bytes(56), b"\x01" * 56])
def test_a_sample_is_not_found_by_numbers_that_make_no_sense(found: bytes) -> None:
    sample = kernel.compiled().sample
    chunks = OrderedDict([(("span", 0), np.array([[0, 1]], np.int64)), (("data", 0), np.ones(1))])
    assert sample(chunks, "span", None, "data", found, 0) is None
    with pytest.raises(TypeError):
        sample([], "span", None, "data", found, 0)
    with pytest.raises(TypeError):
        sample(chunks, "span", None, "data", found)
    with pytest.raises(OverflowError):
        sample(chunks, "span", None, "data", found, 2**63)


SPANS = st.lists(st.tuples(COUNTS, COUNTS), max_size=5) | st.lists(
    st.integers(0, 12), max_size=6
).map(lambda edges: list(itertools.pairwise(sorted(edges))))


@needs_kernel
@given(spans=SPANS, limit=COUNTS, many=st.booleans())
def test_spans_are_measured_as_numpy_would_where_they_and_their_sum_are_within_bounds(
    spans: list[tuple[int, int]], limit: int, many: bool
) -> None:
    spans = spans * 2000 if many else spans  # then it lets go of the interpreter's lock
    found = kernel.measure(np.array(spans, np.int64).reshape(-1, 2), limit)

    sizes = [stop - start for start, stop in spans]
    if any(not 0 <= a <= b <= limit for a, b in spans) or (spans and sum(sizes) > limit):
        assert found is None
    else:
        assert found is not None
        assert found[0].tolist() == sizes
        assert found[1].tolist() == [0, *itertools.accumulate(sizes)]
        assert found[2] == all(b == c for (_, b), (c, _) in itertools.pairwise(spans))


@needs_kernel
def test_no_arrays_but_such_as_belong_together_are_measured() -> None:
    measure, spans = kernel.compiled().measure, np.zeros((3, 2), np.int64)
    for sizes, offsets in [(2, 4), (3, 3), (4, 4), (3, 5)]:
        with pytest.raises(ValueError, match="belong together"):
            measure(spans, 5, np.empty(sizes, np.int64), np.empty(offsets, np.int64))
    with pytest.raises(ValueError, match="belong together"):
        measure(spans.reshape(-1)[:5], 5, np.empty(2, np.int64), np.empty(3, np.int64))


@needs_kernel
@given(st.binary(max_size=40), st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_no_checksum_is_taken_of_what_is_not_there(stored: bytes, edges: list[int]) -> None:
    parts = list(itertools.pairwise(edges))
    try:
        digests = kernel.digests_of(stored, np.array(edges, np.uint32))
    except IndexError:
        assert not all(a <= b <= len(stored) for a, b in parts)
    else:
        expected = [xxhash.xxh3_64_intdigest(stored[a:b]) & 0xFFFFFFFF for a, b in parts]
        assert digests is not None and digests.tolist() == expected
        assert all(a <= b <= len(stored) for a, b in parts)


@needs_kernel
@pytest.mark.parametrize("run", [(-1, 1, 0), (0, 21, 0), (20, 1, 0), (0, 1, 30), (0, 1, -1)])
def test_rows_outside_of_an_array_are_an_error(run: tuple[int, int, int]) -> None:
    out = np.zeros(30)
    with pytest.raises(IndexError):
        kernel.copy_rows(np.ones(20), *np.array(run, np.int64).reshape(3, 1), out)
    assert not out.any()
