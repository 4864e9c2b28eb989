"""A shop's sales, appended day by day and read as of any day.

Every day is one commit, and so one version: yesterday's books stay as they were.

    python examples/daily_sales.py OUT
"""

import sys
from pathlib import Path

import numpy as np

import raggedstore as rs

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sales"
    rng = np.random.default_rng(0)
    rs.create(
        path,
        {
            "day": rs.Field("str"),
            "basket": rs.Field("int32", (None, 2)),  # one row an article: its number, how many
            "cents": rs.Field("int64"),
        },
    )

    closing: dict[str, int] = {}  # the version that each day closed with
    for day in DAYS:
        store = rs.open(path, mode="a")
        with store.writer() as writer:
            for _ in range(int(rng.integers(20, 40))):  # customers, each with a basket
                kinds = int(rng.integers(1, 12))
                basket = np.stack([rng.integers(1, 50, kinds), rng.integers(1, 5, kinds)], axis=1)
                cents = int((basket[:, 0] * 10 * basket[:, 1]).sum())  # ten cents times its number
                writer.append({"day": day, "basket": basket.astype("int32"), "cents": cents})
        closing[day] = rs.open(path).version

    for day, version in closing.items():
        books = rs.open(path, version=version)
        takings = int(books["cents"].batch(slice(None)).sum()) / 100
        print(f"as of {day:10} version {version}: {len(books):4} sales, {takings:12,.2f}")

    last = rs.open(path)[-1]
    print(f"the last sale, on {last['day']}: {len(last['basket'])} articles")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "sales"))
