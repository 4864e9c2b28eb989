"""The demo runs in short, and its language model looks at one sequence at a time."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import raggedstore as rs
from raggedstore.torch import LoaderDataset

ROOT = Path(__file__).resolve().parent.parent


def test_the_demo_runs_and_shows_its_losses(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "demo" / "demo.py", "--steps", "20", "--out", out],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # from a source tree that is not installed
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert {name: len(rs.open(out / name)) for name in ("speech", "text", "images")} == {
        "speech": 120,
        "text": 500,
        "images": 54,
    }
    with Image.open(out / "demo.png") as picture:
        assert min(picture.size) >= 800
        assert len(np.unique(np.asarray(picture.convert("L")))) > 100
    without = re.findall(r"The next losses, without a break: (.*)", done.stdout)
    resumed = re.findall(r"From the checkpoint: +(.*)", done.stdout)
    assert len(without) == 2 and without == resumed
    (losses,) = (line for line in done.stdout.splitlines() if line.startswith("│ loss "))
    (speech, text) = re.findall(r"(\d+\.\d+) → (\d+\.\d+)", losses)
    assert 2 < float(speech[1]) <= float(speech[0]) < 3  # of ten digits: guessing is 2.3
    assert float(text[1]) < float(text[0]) - 1
    assert list(tmp_path.iterdir()) == [out], "the demo writes in its own folder only"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, ROOT / "demo" / "demo.py", "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1 and "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_in_a_packed_row_each_sequence_costs_what_it_costs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "demo")
    language = importlib.import_module("language")
    lines = ["a tree", "of a large family of trees; some of them evergreen" * 8, "", "by ear", "ä"]
    fields = {"text": rs.Field("str"), "path": rs.Field("str"), "line": rs.Field("int64")}
    with rs.create(tmp_path / "text", fields).writer() as writer:
        writer.extend({"text": t, "path": "x", "line": i} for i, t in enumerate(lines))
    store = rs.open(tmp_path / "text")
    torch.manual_seed(0)
    model = language.ByteModel().eval()

    def costs(samples: rs.Samples) -> list[float]:
        with torch.no_grad():
            return [
                cost
                for batch in LoaderDataset(language.loader_of(samples, shuffled=False))
                for cost in language.nats_of(model, batch).tolist()
            ]

    together = costs(store)
    alone = [cost for i in range(len(store)) for cost in costs(store.select([i]))]

    assert len(together) == sum(len(line.encode()) for line in lines)
    np.testing.assert_allclose(sorted(together), sorted(alone), rtol=1e-4)
