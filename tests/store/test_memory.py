"""However much is streamed through a writer or a reader, memory stays within the budget."""

import os
import subprocess
import sys
from pathlib import Path

import raggedstore as rs

MEGABYTE = 10**6

# Peak resident memory over what a warm interpreter holds, in a process of its own.
CHILD = """
import sys
import numpy as np, psutil
import raggedstore as rs

def resident():
    return psutil.Process().memory_info().rss

block = np.random.default_rng(0).integers(-3000, 3000, 250_000).astype("i2")
store = rs.create(sys.argv[1], {"a": rs.Field("i2", (None,)), "t": rs.Field("str")})
with store.writer() as writer:
    writer.append({"a": block, "t": "x"})
before, peak = resident(), 0
with store.writer(budget="32MB", segment_bytes="100MB") as writer:
    for i in range(800):
        writer.append({"a": block, "t": "x"})
        peak = max(peak, resident())
print(peak - before)
store = rs.open(sys.argv[1], budget="32MB")
before, peak = resident(), 0
for start in range(0, len(store), 8):
    store["a"].batch(slice(start, start + 8))
    peak = max(peak, resident())
print(peak - before)
"""


def test_400_MB_go_in_and_out_within_a_budget_of_32_MB(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    env = {**os.environ, "PYTHONPATH": str(Path(rs.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], env=env, capture_output=True, text=True, check=True
    )

    written, read = map(int, done.stdout.split())
    assert written < (32 + 32) * MEGABYTE
    assert read < (32 + 32) * MEGABYTE
