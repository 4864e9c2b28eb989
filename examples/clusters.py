"""Four clusters of points as an Array, a CArray and an EArray: written, read back and plotted.

Everything here is plain PyTables, compressed with Blosc2: the ground that raggedstore stands on.

    python examples/clusters.py OUT
"""

import sys
from pathlib import Path

import numpy as np
import tables
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CENTRES = np.array([[-2, -2], [-2, 2], [2, -2], [2, 2]])
EACH = 500


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    # Readings to a 64th: noise in the last bits would not compress.
    clusters = [np.round(rng.normal(centre, 0.5, (EACH, 2)) * 64) / 64 for centre in CENTRES]
    points = np.concatenate(clusters)
    blosc2 = tables.Filters(complevel=5, complib="blosc2:lz4", shuffle=True)

    with tables.open_file(out / "clusters.h5", "w") as h5:
        h5.create_array("/", "array", points)  # as it is: one piece, no compression
        h5.create_carray("/", "carray", obj=points, filters=blosc2)  # in compressed chunks
        earray = h5.create_earray(
            "/", "earray", tables.Float64Atom(), (0, 2), filters=blosc2, expectedrows=len(points)
        )
        for cluster in clusters:  # … that grow as data comes in
            earray.append(cluster)

    with tables.open_file(out / "clusters.h5") as h5:
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        for ax, name in zip(figure.subplots(1, 3), ("array", "carray", "earray"), strict=True):
            node = h5.get_node("/", name)
            read = node[:]
            if not np.array_equal(read, points):
                raise AssertionError(f"{name} is not what was written")
            for i in range(len(CENTRES)):
                ax.scatter(*read[i * EACH : (i + 1) * EACH].T, s=2)
            ax.set_title(f"{type(node).__name__}: {node.size_on_disk:,} bytes")
            print(
                f"{name:8}{len(node):,} points, as they were written, {node.size_on_disk:,} bytes"
            )
        figure.savefig(out / "clusters.png", dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "clusters"))
