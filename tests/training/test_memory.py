"""What a loader takes, as the system counts it, whatever its samples are like: near the budget."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import raggedstore as rs
from raggedstore import kernel

MB = 2**20
#: Goes through an epoch, and prints how much memory that took at most, and its largest batch.
SCRIPT = """
import sys
import raggedstore as rs
from raggedstore.training import *

def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

if __name__ == "__main__":
    store = rs.open(sys.argv[1], budget="4MB")
    half = len(store) // 2
    halves = store.select(slice(half)), store.select(slice(half, len(store)))
    loader = eval(sys.argv[2])
    list(Loader(store.select(slice(0)), batch=8, collate=loader.collate))
    before, largest, samples = most(), 0, 0
    for batch in loader:
        column = batch["x"]
        if hasattr(column, "nbytes"):
            largest = max(largest, column.nbytes)
        samples += 1
    print(most() - before, largest, samples)
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="nothing says how much memory was taken"
)


@pytest.fixture(scope="module")
def tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short samples, and in the midst of them 300 of a megabyte."""
    sizes = np.full(100_000, 20, np.int64)
    sizes[40_850:41_150] = 2**18
    return written(tmp_path_factory.mktemp("tail") / "store", sizes)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of 4 kB: 160 MB."""
    return written(tmp_path_factory.mktemp("alike") / "store", np.full(40_000, 1000, np.int64))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 40 MB: 640 MB."""
    return written(tmp_path_factory.mktemp("long") / "store", np.full(16, 10_000_000, np.int64))


def written(path: Path, sizes: np.typing.NDArray[np.int64]) -> Path:
    schema = {"x": rs.Field("int32", (None,))}
    with rs.create(path, schema, profile="fast") as store, store.writer() as writer:
        for some in np.array_split(sizes, 8):
            offsets = np.concatenate([[0], np.cumsum(some)])
            values = np.arange(offsets[-1], dtype="i4") % 1000
            writer.extend_batch({"x": rs.RaggedBatch(values, offsets)})
    return path


def taken(path: Path, loader: str) -> tuple[int, int, int]:
    """Bytes that an epoch took, those of its largest batch, its batches."""
    root = Path(rs.__file__).resolve().parent.parent
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, loader],
        env={"PYTHONPATH": str(root), "RAGGEDSTORE_KERNEL": "1" if kernel.is_there() else "0"},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    most, largest, batches = map(int, printed.split())
    return most, largest, batches


@pytest.mark.parametrize("order", ["Shuffled(0)", "Permuted(0)", "Sequential()"])
def test_a_few_samples_that_are_long_do_not_take_a_read_beyond_the_budget(
    tail: Path, order: str
) -> None:
    most, largest, batches = taken(tail, f"Loader(store, order={order}, batch=32, budget='32MB')")
    assert batches == 100_000 // 32
    assert most < 32 * MB + 3 * largest + 32 * MB


@pytest.mark.parametrize("order", ["Shuffled(0)", "Permuted(0)"])
def test_nor_do_they_where_samples_lie_in_an_array(tail: Path, order: str) -> None:
    items = "rs.Items({'x': store['x'].batch(slice(None))})"
    loader = f"Loader({items}, order={order}, batch=32, budget='32MB')"
    most, largest, batches = taken(tail, loader)
    assert batches == 100_000 // 32
    assert most < 32 * MB + 3 * largest + 32 * MB


@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("order", ["Shuffled(0)", "Permuted(0)"])
def test_padding_to_a_few_long_samples_is_made_as_it_is_asked_for(
    tail: Path, order: str, batch: int
) -> None:
    loader = f"Loader(store, order={order}, batch={batch}, budget='32MB', collate='padded')"
    most, largest, batches = taken(tail, loader)
    assert batches == 100_000 // batch
    assert most < 32 * MB + 3 * largest + 32 * MB


@pytest.mark.parametrize(
    "rule", ["Windowed('x', 50_000, streams=8)", "Packed('x', 50_000, longer='split')"]
)
@pytest.mark.parametrize("order", ["Shuffled(0)", "Permuted(0)"])
def test_of_long_samples_only_the_parts_in_batches_are_read(
    long: Path, rule: str, order: str
) -> None:
    most, largest, _ = taken(long, f"Loader(store, order={order}, batch={rule}, budget='32MB')")
    assert most < 32 * MB + 3 * largest + 32 * MB


@pytest.mark.parametrize("samples", ["rs.concat(halves)", "Mixture(dict.fromkeys(halves, 1))"])
def test_several_stores_side_by_side_keep_to_the_budget(alike: Path, samples: str) -> None:
    most, _, _ = taken(alike, f"Loader({samples}, order=Shuffled(0), batch=64, budget='64MB')")
    assert most < 64 * MB + 64 * MB
