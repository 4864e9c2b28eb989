"""The disk begins with what is written: a hint, which changes nothing else."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.segment import writeback, writer
from raggedstore.segment.writer import SegmentWriter

NOISE = np.random.default_rng(0).integers(0, 2**16, 6 * 2**20, np.uint16)


def written(path: Path) -> rs.Store:
    store = rs.create(path, {"x": rs.Field("u2", (None,))}, profile=rs.Compression("lz4", 0))
    with store.writer() as adding:
        adding.extend({"x": part} for part in np.split(NOISE, 64))
    return store


def test_the_disk_begins_every_few_megabytes_and_with_the_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, int]] = []

    def noted(descriptor: int) -> None:
        begun.append((os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))

    monkeypatch.setattr(writer, "begin_writeback", noted)
    field = rs.Schema({"x": rs.Field("u2")})
    with ThreadPoolExecutor(2) as pool:
        segment = SegmentWriter(tmp_path / "a.h5", field, {"x": rs.Compression("lz4", 0)}, pool)
        segment.extend({"x": (NOISE, np.empty((len(NOISE), 0), np.int64))}, len(NOISE))
        segment.seal()
    assert {path for path, _ in begun} == {str(tmp_path / "a.h5")}
    sizes = [size for _, size in begun]
    assert len(sizes) >= NOISE.nbytes // 2**22
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("call", [None, lambda *_: -1])
def test_where_the_system_cannot_the_store_is_the_same(
    call: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writeback, "_call", call)
    with written(tmp_path / "store") as store:
        assert np.array_equal(store.batch(range(64))["x"].values, NOISE)


def test_a_descriptor_that_leads_nowhere_is_no_error() -> None:
    writeback.begin_writeback(-1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        writeback.begin_writeback(nothing)
    finally:
        os.close(nothing)
