"""Sequential reading through a memory swapper: many small slices, few reads.

python examples/swapper.py OUT
"""

import sys
from pathlib import Path

import numpy as np
import tables

import raggedstore as rs

FRAMES, STEP = 20_000, 100


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    blosc2 = tables.Filters(complevel=5, complib="blosc2:lz4", shuffle=True)
    with tables.open_file(out / "frames.h5", "w") as h5:
        frames = h5.create_earray("/", "frames", tables.Float32Atom(), (0, 80), filters=blosc2)
        frames.append(rng.normal(size=(FRAMES, 80)).astype("float32"))

    with tables.open_file(out / "frames.h5") as h5:
        for budget in ("256kB", "1MB", "4MB"):
            swapper = rs.MemorySwapper(h5.root.frames, budget=budget)
            for start in range(0, FRAMES, STEP):
                swapper[start : start + STEP]
            print(
                f"budget {budget:>6}: {swapper.hits} hits, {swapper.misses} misses, "
                f"{swapper.nbytes:,} bytes held, frames {swapper.limits} in memory at the end"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "swapper"))
