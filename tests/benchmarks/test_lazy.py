"""All ways to answer a question about an array on disk give the same answer."""

from pathlib import Path

import pytest

pytest.importorskip("hdf5plugin")
pytest.importorskip("dask.array")

from benchmarks import lazy

# Other projects' modules warn of what is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_all_ways_agree_and_are_timed(tmp_path: Path) -> None:
    import h5py

    paths = lazy.make(tmp_path, 300, 5000, ["contiguous", "square, blosc2"])
    assert list(paths) == ["contiguous", "square, blosc2"]
    results = {}
    for name, path in paths.items():
        with h5py.File(path, "r") as file:
            results[name] = lazy.measured(file["x"], 1)
    assert all(
        len(times) == 3 and min(times.values()) > 0
        for questions in results.values()
        for times in questions.values()
    )
    lazy.show(results)


def test_a_way_that_is_wrong_is_noticed() -> None:
    with pytest.raises(AssertionError):
        lazy.agree({"one": [1.0, 2.0], "other": [1.0, 2.5]})
