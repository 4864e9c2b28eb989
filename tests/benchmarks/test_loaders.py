"""The loaders that the benchmarks compare hand over every sample once, padded, in a new order."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("torch")

from benchmarks import loaders
from benchmarks.corpora import Corpus
from benchmarks.loading import LOADINGS, Loading, Setting, child, memory, padding, plot

# Other projects' modules warn of what is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def utterances() -> Corpus:
    rng = np.random.default_rng(0)
    lengths = [0, 5, 0, 900, 3, 1] * 25 + [0]
    return Corpus.of("utterances", [rng.integers(-99, 99, n).astype(np.int16) for n in lengths])


def pictures() -> Corpus:
    rng = np.random.default_rng(1)
    sizes = [(0, 5), (3, 4), (20, 30), (1, 1), (5, 0)] * 25
    return Corpus.of("pictures", [rng.integers(0, 9, (*s, 3)).astype(np.uint8) for s in sizes])


def setting_of(corpus: Corpus, workers: int = 0, *, flat: bool = False) -> Setting:
    return Setting(len(corpus), 16, workers, seed=0, budget=10_000_000, flat=flat)


@pytest.mark.parametrize(
    ("make", "workers", "flat"),
    [
        (utterances, 0, False),
        (utterances, 2, False),
        (pictures, 1, False),
        (utterances, 1, True),
        (pictures, 0, True),
    ],
)
@pytest.mark.parametrize("name", LOADINGS)
def test_an_epoch_has_every_sample_once_and_the_next_another_order(
    name, make, workers, flat, tmp_path
):
    loading, corpus = LOADINGS[name], make()
    if not loading.available():
        pytest.skip(f"{name} is not installed")
    if flat and name.endswith("plain"):
        pytest.skip("a way to pad")
    if workers not in loading.workers:
        workers = 0
    loading.load()
    loading.write(tmp_path, corpus)

    setting = setting_of(corpus, workers, flat=flat)
    child.hold_against(loading, tmp_path, setting, child.digests_of(corpus), seconds=60)


class Fake(Loading):
    """The same batches in every epoch."""

    name = storage = "fake"

    def __init__(self, batches: list[padding.Padded]) -> None:
        self.batches = batches

    def write(self, folder, corpus):
        pass

    def epochs(self, folder, setting):
        return (iter(self.batches) for _ in itertools.count())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda batch: None, "the second epoch has the order of the first"),
        (lambda batch: batch.values[0, 0].add_(1), "151 samples of 151, 1 missing"),
        (lambda batch: batch.lengths.sub_(1), "values in the padding"),
    ],
)
def test_what_is_not_as_it_should_be_is_found_out(spoil, message):
    rng = np.random.default_rng(0)
    corpus = Corpus.of("lines", [rng.integers(1, 99, 1 + i % 7) for i in range(151)])
    batches = [padding.pad([corpus[i]]) for i in range(len(corpus))]
    spoil(batches[4])

    with pytest.raises(child.Corrupt, match=message):
        child.hold_against(
            Fake(batches), Path(), setting_of(corpus), child.digests_of(corpus), seconds=60
        )


def test_an_epoch_cut_short_is_found_out_while_it_is_timed():
    batch = padding.pad([np.arange(3)])
    job = child.Job("time", "fake", "", "", "", samples=3, batch=2, seconds=60)

    with pytest.raises(child.Corrupt, match="an epoch of 2 samples in place of 3"):
        child.measure(Fake([batch, batch]), job)


@pytest.mark.parametrize("size", [7, 20_000])
@pytest.mark.parametrize("tail", [(), (2, 3)])
def test_padding_is_the_same_from_samples_and_from_what_a_worker_hands_over(size, tail):
    samples = [np.ones((n, *tail), np.int16) for n in (size, 0, 3)]

    one = padding.pad(samples)
    (other,) = padding.formed([padding.flatten(samples)], flat=False)

    assert one.values.shape == (3, size, *tail)
    assert one.values.sum() == (size + 3) * 6 ** bool(tail)
    assert one.values.equal(other.values) and one.lengths.equal(other.lengths)


HOLDING = """
import mmap, os, sys, tempfile
shared = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
os.write(shared, b"1" * 10_000_000)  # nobody has mapped it
own = b"1" * 20_000_000
file = tempfile.TemporaryFile(dir=".")
file.write(b"1" * 50_000_000)
file.flush()
pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(pages[::4096])
if os.fork() == 0:
    own_of_child = b"2" * 30_000_000
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="Linux alone has it")
def test_memory_is_that_of_all_processes_and_of_what_is_between_them(tmp_path):
    pipe, how = subprocess.PIPE, [sys.executable, "-c", HOLDING]
    with subprocess.Popen(how, stdin=pipe, stdout=pipe, cwd=tmp_path) as process:
        process.stdout.readline()
        held = memory.held_by(psutil.Process(process.pid))
        process.stdin.close()

    # Two interpreters take some, too: what they share after the fork counts once.
    assert 60e6 <= held.own < 80e6
    # And the file that is mapped, and libraries.
    assert held.own + 50e6 <= held.resident < held.own + 70e6


def test_a_run_prints_a_table_and_writes_its_figures_and_a_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = Corpus.of("counts", [np.arange(i % 9, dtype="int16") for i in range(600)]).save(tmp_path)
    out, picture = tmp_path / "out.json", tmp_path / "out.png"

    only = "raggedstore fast, Loader permuted, plain;pytables EArray"
    flags = ["--runs", "1", "--workers", "0", "--seconds", "0.05", "--only", only]
    flags += ["--skip", "EArray, plain", "--budget", "10MB"]
    status = loaders.main([str(path), *flags, "--json", str(out), "--plot", str(picture)])

    assert status == 0
    shown = capsys.readouterr().out
    assert "pytables EArray, careful" in shown and "EArray, plain" not in shown
    corpus = json.loads(out.read_text())["corpora"]["counts"]
    found = corpus["results"]["pytables EArray, careful"]["0"]
    assert {"rate", "rates", "first", "memory", "resident"} <= set(found)
    assert corpus["best"]["ours"][0] == "raggedstore fast, Loader permuted, plain"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_best_of_a_kind_is_at_its_own_number_of_workers():
    results = {
        "h5py flat, plain": {"": {"size": 1.0}, "0": {"rate": 10.0}, "1": {"rate": 30.0}},
        "h5py flat, careful": {"": {"size": 1.0}, "0": {"rate": 20.0}},
        "lmdb blosc2:lz4, careful": {"": {"size": 1.0}, "0": {"memory": 1.0}},
    }

    assert loaders.best_of(results, "hdf5") == ("h5py flat, plain", 30.0)
    assert loaders.best_of(results, "other") is None


def test_a_plot_needs_only_the_figures(tmp_path):
    pytest.importorskip("matplotlib")
    results = {"h5py flat, plain": {"0": {"rate": 10.0}}}
    corpus = {"results": results, "best": {"ours": ["raggedstore fast, Loader", 30.0]}}

    plot.draw({"workers": [0, 1], "corpora": {"speech": corpus}}, tmp_path / "out.png")

    assert (tmp_path / "out.png").stat().st_size > 1000
