"""What opening, a sample and a commit cost does not grow with how much is there."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import raggedstore as rs

FEW, MANY = 2_000, 1_000_000


def batch(count: int) -> rs.RaggedBatch:
    rng = np.random.default_rng(count)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(8, 56, count))])
    return rs.RaggedBatch(rng.integers(97, 113, int(offsets[-1]), np.uint8), offsets)


def store_of(path: Path, commits: list[int]) -> Path:
    with rs.create(path, {"x": rs.Field("bytes")}) as store:
        for count in commits:
            with store.writer() as writer:
                writer.extend_batch({"x": batch(count)})
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("few") / "store", [FEW])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("many") / "store", [MANY])


def passed(way: str, do: Callable[[], object]) -> int:
    """Bytes that this process reads or writes ("rchar", "wchar") while it does something."""

    def count() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(way)))

    before = count()
    own = count() - before  # to look is to read, too
    before = count()
    do()
    return count() - before - own


def test_opening_many_samples_reads_as_little_as_opening_few(few: Path, many: Path) -> None:
    lengths: list[int] = []

    def look(path: Path) -> None:
        with rs.open(path) as store:
            lengths.append(len(store))

    look(few)
    of_few, of_many = (passed("rchar", lambda p=path: look(p)) for path in (few, many))
    tracemalloc.start()
    look(many)
    with rs.open(many) as store:
        store[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert lengths == [FEW, FEW, MANY, MANY]
    assert of_many < of_few + 100 < 5_000
    assert peak < 1_000_000


def test_a_sample_of_many_reads_no_more_than_one_of_few(few: Path, many: Path) -> None:
    read = []
    for path in (few, many):
        with rs.open(path, budget="1kB") as store:
            want = batch(len(store))
            store[0]
            positions = np.random.default_rng(0).integers(0, len(store), 100).tolist()
            # A block of where it lies, and one or two of its values.
            for i in positions:
                got: list[bytes] = []
                read.append(passed("rchar", lambda s=store, i=i, g=got: g.append(s[i]["x"])))
                assert got == [want[i].tobytes()]
    assert np.mean(read[100:]) <= 1.5 * np.mean(read[:100])
    assert max(read) < 3 * 2**14


def test_many_segments_open_without_one_of_them(tmp_path: Path) -> None:
    path = store_of(tmp_path / "store", [1] * 300)
    for segment in (path / "segments").iterdir():
        segment.unlink()

    def look() -> None:
        with rs.open(path) as store:
            assert len(store) == 300

    assert passed("rchar", look) < 256 * 140 + 5_000  # those that the manifest names itself


def test_a_commit_writes_what_it_adds_however_much_is_there(tmp_path: Path) -> None:
    written = []
    for before in (FEW, MANY // 5):
        with rs.open(store_of(tmp_path / str(before), [before]), "a") as store:

            def commit(store: rs.Store = store) -> None:
                with store.writer() as writer:
                    writer.extend_batch({"x": batch(10)})

            commit()
            written.append(passed("wchar", commit))
    assert written[1] == pytest.approx(written[0], abs=500)
