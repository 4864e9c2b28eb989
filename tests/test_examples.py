"""Every example runs, in a process of its own, with warnings as errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example), str(out)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # from a source tree that is not installed
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.strip()
    assert list(tmp_path.iterdir()) == [out], "an example writes in its own folder only"


def test_processes_under_torchrun_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    example = str(ROOT / "examples" / "ddp.py")

    def run(*start: str) -> str:
        done = subprocess.run(
            [sys.executable, *start, example, str(out)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "going on with 3 processes" in run()
    said = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

    assert said.startswith("epoch 1, 2 processes")
    assert "300 of 300 samples, 0 of them twice" in said.splitlines()[-1]
