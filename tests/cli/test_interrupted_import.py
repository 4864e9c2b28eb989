"""An import that is stopped at any moment leaves a whole version and resumes without doubling."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import raggedstore as rs

ROOT = Path(rs.__file__).parents[1]
FILES = 150
LINES = 30_000


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for i in range(FILES):
        (folder / f"speaker{i % 3}").mkdir(exist_ok=True)
        values = rng.integers(-1000, 1000, 2000 + i, np.int16)
        soundfile.write(folder / f"speaker{i % 3}" / f"{i:04}.wav", values, 16_000)
    return folder


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("".join(f"line {i}\n" for i in range(1, LINES + 1)))
    return path


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "raggedstore", "import", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_at(process, corpus, version, number):
    """Send the signal as soon as the corpus has that version; what the process then says."""
    manifest = corpus / "versions" / f"{version:020}.json"
    while version >= 0 and not manifest.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def resume(*arguments):
    process = start(*arguments, "--append")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def check(corpus, recordings):
    with rs.open(corpus) as store:
        paths = sorted(p.relative_to(recordings).as_posix() for p in recordings.rglob("*.wav"))
        assert sorted(store["path"][:]) == paths
        for sample in store:
            values, rate = soundfile.read(recordings / sample["path"], dtype="int16")
            np.testing.assert_array_equal(sample["audio"], values)
            assert sample["sample_rate"] == rate
            assert sample["label"] == sample["path"].split("/")[0]
        assert store.verify().ok


@pytest.mark.parametrize("version", [0, 1, 4, 30])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_import_stopped_at_some_commit_resumes(tmp_path, recordings, number, version):
    corpus = tmp_path / "corpus"
    process = start(recordings, corpus, "--commit-every", "1")
    status, out, err = stop_at(process, corpus, version, number)

    with rs.open(corpus) as store:
        have = len(store)
        assert store.verify().ok and version <= store.version and have < FILES
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number
        assert out.startswith(f"{have} files ")
        assert err.count("\n") == 1 and "to go on: raggedstore import" in err
        assert "--append" in err and signal.Signals(number).name in err
    resume(recordings, corpus)
    check(corpus, recordings)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("after", [0.0, 0.3, 0.45])
def test_an_import_stopped_before_there_is_a_corpus_resumes(tmp_path, recordings, number, after):
    corpus = tmp_path / "corpus"
    process = start(recordings, corpus)
    time.sleep(after)
    stop_at(process, corpus, -1, number)
    resume(recordings, corpus)
    check(corpus, recordings)


def test_an_import_killed_again_and_again_still_ends_whole(tmp_path, recordings):
    corpus = tmp_path / "corpus"
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
    for i, number in enumerate(signals):
        process = start(recordings, corpus, "--append", "--commit-every", "1")
        stop_at(process, corpus, 10 * (i + 1), number)
    resume(recordings, corpus)
    check(corpus, recordings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_text_stopped_between_its_lines_goes_on_at_the_next(tmp_path, book, number):
    corpus = tmp_path / "corpus"
    process = start(book, corpus, "--commit-every", "1")
    stop_at(process, corpus, 2, number)
    with rs.open(corpus) as store:
        assert 0 < len(store) < LINES
    resume(book, corpus)
    with rs.open(corpus) as store:
        assert store["text"][:] == [f"line {i}" for i in range(1, LINES + 1)]
        assert [int(i) for i in store["line"][:]] == list(range(1, LINES + 1))


def test_vacuum_removes_what_a_killed_import_left(tmp_path, recordings):
    corpus = tmp_path / "corpus"
    stop_at(start(recordings, corpus, "--commit-every", "1"), corpus, 3, signal.SIGKILL)
    resume(recordings, corpus)
    with rs.open(corpus, mode="a") as store:
        store.vacuum(keep=1)
    with rs.open(corpus) as store:
        named = {entry.file for entry in store.manifest.segments}
    assert {name for name in os.listdir(corpus / "segments") if name.endswith(".h5")} == named
    check(corpus, recordings)
