"""The `bench` command, on small stores: what it says, not how fast anything is."""

import json
from pathlib import Path

import numpy as np
import pytest

import raggedstore as rs


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    fields = {
        "audio": rs.Field("int16", (None,)),
        "mel": rs.Field("f4", (None, 8)),
        "text": rs.Field("str"),
        "label": rs.Field("int64"),
    }
    store = rs.create(tmp_path / "corpus", fields)
    rng = np.random.default_rng(0)
    for _ in range(2):
        with store.writer() as writer:
            for i in range(100):
                n = int(rng.integers(0, 3000))
                writer.append({
                    "audio": rng.integers(-99, 99, n), "mel": np.ones((n // 100, 8)),
                    "text": "word " * (i % 9), "label": i,
                })  # fmt: skip
    store.close()
    return tmp_path / "corpus"


def test_bench_measures_epochs_gets_limits_and_profiles(corpus, run):
    status, out, err = run("bench", corpus, "--runs", "1", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["samples"] == 200 and told["batch"] == 64 and told["bytes"] > 200_000
    whats = [figure["what"] for figure in told["figures"]]
    assert whats[:5] == [
        "open, and read the first sample", "epoch in order", "epoch permuted",
        "epoch shuffled in a window", "one sample at random",
    ]  # fmt: skip
    assert whats[5].startswith("limit: decode the same") and whats[6].startswith("limit: copy")
    assert all(figure["value"] > 0 for figure in told["figures"])
    trials = {(trial["field"], trial["profile"]) for trial in told["profiles"]}
    assert trials == {
        (field, profile)
        for field in ("audio", "mel", "text", "label")
        for profile in ("fast", "balanced", "small")
    }


def test_bench_of_some_fields_and_the_first_samples_only(corpus, run):
    status, out, err = run(
        "bench", corpus, "--runs", "1", "--fields", "audio,label", "--limit", "50kB", "--batch", "7"
    )
    assert (status, err) == (0, "")
    assert "batches of 7" in out and "lz4 9" in out and "mel" not in out
    assert int(out.split(" samples")[0].split()[-1]) < 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fields", "nothing"], "nothing"),
        (["--limit", "much"], "not a size"),
        (["--runs", "0"], "0"),
    ],
)
def test_a_wrong_call_is_refused(corpus, run, arguments, says):
    status, out, err = run("bench", corpus, *arguments)
    assert status == 2 and out == "" and says in err


def test_an_empty_store_has_nothing_to_measure(tmp_path, run):
    rs.create(tmp_path / "empty", {"x": rs.Field("i4", (None,))}).close()
    status, _, err = run("bench", tmp_path / "empty")
    assert status == 2 and "holds no data" in err
