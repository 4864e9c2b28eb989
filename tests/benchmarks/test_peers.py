"""The peers that the benchmarks compare with give back what they were given."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure, plot, run
from benchmarks.corpora import Corpus
from benchmarks.peers import PEERS, Flat, Peer, Reader
from benchmarks.peers.base import UnitCache

# Other projects' modules warn of what is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def utterances() -> Corpus:
    rng = np.random.default_rng(0)
    lengths = [0, 5, 0, 900, 3, 1] * 20 + [0]
    return Corpus.of("utterances", [rng.integers(-99, 99, n).astype(np.int16) for n in lengths])


def pictures() -> Corpus:
    rng = np.random.default_rng(1)
    sizes = [(0, 5), (3, 4), (20, 30), (1, 1), (5, 0)] * 20
    return Corpus.of("pictures", [rng.integers(0, 9, (*s, 3)).astype(np.uint8) for s in sizes])


def thumbnails() -> Corpus:
    """All of one size, which is a ragged corpus too."""
    return Corpus.of("thumbnails", [np.full((4, 4, 3), i, np.uint8) for i in range(110)])


def job(action: str, name: str, folder: Path, corpus: Corpus, **options) -> measure.Job:
    files = str(folder / "files")
    return measure.Job(action, name, "", files, len(corpus), corpus.batch, **options)


@pytest.mark.parametrize("make", [utterances, pictures, thumbnails])
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_back_every_sample_in_order_permuted_and_alone(name, make, tmp_path):
    peer, corpus = PEERS[name], make()
    if not peer.available():
        pytest.skip(f"{name} is not installed")

    found = measure.prepare(
        peer, job("prepare", name, tmp_path, corpus, cache_bytes=10_000), corpus
    )

    assert found["size"] > 0


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_measured_in_every_way_that_it_has(name, tmp_path):
    peer, corpus = PEERS[name], utterances()
    if not peer.available():
        pytest.skip(f"{name} is not installed")
    peer.write(measure.fresh(str(tmp_path / "files")), corpus)

    found = measure.read(peer, job("read", name, tmp_path, corpus, seconds=0.01, gets=20))

    assert {"open", "sequential"} <= set(found)
    assert all(math.isfinite(value) and value > 0 for value in found.values())


class Liar(Peer):
    """Reads its first sample again in place of the last."""

    name = "liar"

    def write(self, folder, corpus):
        self.corpus = corpus

    def open(self, folder, cache_bytes):
        corpus = self.corpus

        class Lies(Reader):
            def sequential(self, batch):
                yield [corpus[i % (len(corpus) - 1)] for i in range(len(corpus))]

        return Lies()


def test_a_peer_that_gives_wrong_data_is_found_out(tmp_path):
    corpus = Corpus.of("three", [np.arange(n, dtype=np.int16) for n in (1, 2, 3)])

    with pytest.raises(measure.Corrupt, match="liar: sequential: sample 2"):
        measure.prepare(Liar(), job("prepare", "liar", tmp_path, corpus), corpus)


def test_a_slice_of_a_longer_array_keeps_its_own_offsets():
    batch = Flat(np.arange(6), np.array([10, 12, 12, 16]), np.array([[1, 2], [0, 3], [2, 2]]))

    assert [a.tolist() for a in batch.to_list()] == [[[0, 1]], [], [[2, 3], [4, 5]]]


def test_a_cache_of_units_drops_the_one_used_longest_ago():
    loaded = []
    cache = UnitCache(lambda number: (loaded.append(number), 4), cache_bytes=8)

    for number in (0, 1, 0, 2, 0, 1):
        cache[number]

    assert loaded == [0, 1, 2, 1]


def test_a_ratio_above_one_is_better_whichever_way_better_lies():
    by_key = {m.key: m for m in run.MEASURES}

    assert run.ratio(by_key["sequential"], 300.0, 100.0) == 3
    assert run.ratio(by_key["size"], 0.5, 1.0) == 2


def test_a_run_prints_a_table_and_writes_its_figures_and_a_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = utterances().save(tmp_path)
    out, picture = tmp_path / "out.json", tmp_path / "out.png"

    only = "raggedstore fast,pytables blosc:,limit: memcpy"
    flags = ["--runs", "1", "--only", only, "--seconds", "0.05", "--gets", "20"]
    status = run.main([str(path), *flags, "--json", str(out), "--plot", str(picture)])

    assert status == 0
    shown = capsys.readouterr().out
    assert "raggedstore fast" in shown and "limit: memcpy" in shown
    results = json.loads(out.read_text())["corpora"]["utterances"]["results"]
    assert {"size", "write", "sequential", "permuted"} <= set(results["raggedstore fast"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plot_needs_only_the_figures(tmp_path):
    pytest.importorskip("matplotlib")
    best = {"sequential": ["other", 50.0], "size": ["other", 0.5]}
    ours = {"sequential": 100.0, "size": 1.0}
    report = {
        "runs": 1,
        "corpora": {"speech": {"results": {"raggedstore fast": ours}, "best": best}},
    }

    plot.draw(report, tmp_path / "out.png")

    assert (tmp_path / "out.png").stat().st_size > 1000
