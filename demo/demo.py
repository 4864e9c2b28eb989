"""Speech, text and images to stores, a second day appended, and two small models trained.

Each training is cut off half way and gone on from a checkpoint, with the same losses as without.
Everything goes to demo/out, which is made anew: the stores, the checkpoints, and demo.png.

    python demo/demo.py
"""

import argparse
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import language
import numpy as np
import pictures
import speech
import torch
from rich.console import Console
from rich.table import Table
from training import History

import raggedstore as rs

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
OUT = ROOT / "demo" / "out"
KINDS = {"speech": "audio", "text": "text", "images": "image"}
STEPS = 600
BITS = 1 / math.log(2)  # in a nat


def raggedstore(*arguments: str | Path) -> None:
    """Run the command as a person would, and show it."""
    typed = [short(a) if isinstance(a, Path) else a for a in arguments]
    print("\n$ raggedstore", *typed, flush=True)
    subprocess.run([sys.executable, "-m", "raggedstore", *typed], cwd=ROOT, check=True)


def short(path: Path) -> str:
    """The path as one types it in the project's folder."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def build_stores(out: Path) -> dict[str, rs.Store]:
    """One store for each kind of sample: day 1, then day 2 appended."""
    for name, kind in KINDS.items():
        raggedstore("import", SAMPLES / "day1" / name, out / name, "--kind", kind)
    print("\nA day later:")
    for name, kind in KINDS.items():
        raggedstore("import", SAMPLES / "day2" / name, out / name, "--kind", kind, "--append")
    for command in ("info", "log", "stats"):
        raggedstore(command, out / "speech")
    return {name: rs.open(out / name) for name in KINDS}


def show_table(*columns: Iterable[Any]) -> None:
    """Print columns with their headings; all but the first are figures."""
    table = Table()
    for i, (heading, *_) in enumerate(columns):
        table.add_column(heading, justify="right" if i else "left")
    for row in list(zip(*columns, strict=True))[1:]:
        table.add_row(*map(str, row))
    print()
    Console(highlight=False).print(table)


def show_sizes(stores: dict[str, rs.Store]) -> None:
    """What the stores hold, and in how many bytes."""
    show_table(
        ["store", *stores],
        ["samples", *map(len, stores.values())],
        ["values", *(f"{store.nbytes:,} B" for store in stores.values())],
        ["stored in", *(f"{store.nbytes_stored:,} B" for store in stores.values())],
        ["that is", *(f"{s.nbytes_stored / s.nbytes:.0%}" for s in stores.values())],
    )


def show_break(history: History, checkpoint: Path) -> None:
    """How a training went on from its checkpoint."""
    lost, again = (
        " ".join(f"{step.loss:.6f}" for step in steps) for steps in (history.lost, history.again)
    )
    print(f"Cut off after step {history.cut}, and gone on from {short(checkpoint)}.")
    print(f"  The next losses, without a break: {lost}")
    print(f"  From the checkpoint:              {again}")
    print(f"  Of the same samples, such as      {history.again[0].samples[0]}", flush=True)


def show_learned(heard: speech.Learned, read: language.Learned) -> None:
    """What was learned from what, and how fast."""
    rows = (
        "trained on",
        "batches",
        "padding",
        "in plain batches",
        "steps",
        "loss",
        "held out",
        "new voices",
        "training",
        "loading alone",
    )
    last = heard.history.tests[-1][1]
    bits = read.history.tests[-1][1]["valid"] * BITS
    show_table(
        ["", *rows],
        [
            "digits in noise",
            f"{heard.sizes['train']} recordings",
            f"{speech.SIZE}, by length",
            f"{heard.padding['by length']:.1%}",
            f"{heard.padding['as they come']:.1%}",
            *common(heard.history, 1.0, ""),
            f"{last['valid']:.0%} of {heard.sizes['valid']} right",
            f"{last['new voices']:.0%} of {heard.sizes['new voices']} right",
            f"{heard.history.samples / heard.history.seconds:,.0f} samples/s",
            f"{heard.loaded:,.0f} samples/s",
        ],
        [
            "text, byte by byte",
            f"{read.sizes['train']} lines",
            f"{language.ROWS} rows of {language.ROW} B",
            f"{read.padding['packed']:.1%}",
            f"{read.padding['a row a line']:.1%}",
            *common(read.history, BITS, " bits a byte"),
            f"{bits:.2f} bits a byte",
            "",
            f"{read.history.samples / read.history.seconds:,.0f} samples/s",
            f"{read.loaded:,.0f} samples/s",
        ],
    )


def common(history: History, scale: float, unit: str) -> tuple[str, str]:
    """Steps and seconds; the loss at the beginning and at the end, times `scale`."""
    some = max(len(history.losses) // 20, 1)
    first = np.mean(history.losses[:some]) * scale
    last = np.mean(history.losses[-some:]) * scale
    return f"{len(history.losses)} in {history.seconds:.0f} s", f"{first:.2f} → {last:.2f}{unit}"


def prepare(out: Path) -> None:
    """An empty folder: the demo's own is made anew, any other is to be new or empty."""
    if out == OUT and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        sys.exit(f"{out} is not empty")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each model")
    parser.add_argument("--out", type=Path, default=OUT, help="a new folder for what comes of it")
    options = parser.parse_args()
    out = options.out.resolve()
    began = time.perf_counter()
    prepare(out)
    torch.set_num_threads(1)  # in models so small, threads mostly wait for one another

    stores = build_stores(out)
    show_sizes(stores)

    print(
        "\nDigits in noise: trained on day 1, tested on a fifth of it and on the voices of day 2."
    )
    heard = speech.learn(stores["speech"], options.steps, out / "speech.pt")
    show_break(heard.history, out / "speech.pt")
    print("\nText, byte by byte: trained on nine tenths of the lines, tested on the others.")
    read = language.learn(stores["text"], options.steps, out / "text.pt")
    show_break(read.history, out / "text.pt")

    show_learned(heard, read)
    pictures.draw(out / "demo.png", heard, read, stores["images"])
    print(f"\nPicture: {short(out / 'demo.png')}. All in {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
