"""Loading shuffled batches of tensors: raggedstore and what else there is, in one run.

    python benchmarks/loaders.py CORPUS.npz... [--workers 0 1 2] [--runs 5]
        [--flat] [--only NAMES] [--skip NAMES] [--seconds 2] [--budget 512MB] [--json OUT]
        [--plot OUT.png]

Nothing is trained. Each way of loading is checked once, with each number of workers: that an epoch
has every sample of the corpus once. Then come the runs. In a run each has its turn, in a process of
its own. README.md beside this file says what is measured, and how.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.corpora import Corpus
from benchmarks.loading import LOADINGS, Loading
from benchmarks.loading.child import BEGIN, Job, digests_of
from benchmarks.loading.memory import held_by, peak
from benchmarks.machine import machine
from raggedstore.units import parse_bytes

ROOT = Path(__file__).resolve().parent.parent
#: A child that takes longer is stuck.
PATIENCE_SECONDS = 180.0
PACKAGES = [
    *["raggedstore", "numpy", "torch", "h5py", "hdf5plugin", "tables", "datasets", "pyarrow"],
    *["grain", "array_record", "litdata", "mosaicml-streaming", "lmdb", "blosc2"],
]

Found = dict[str, float]
#: By name, by number of workers; the key "" holds what does not depend on workers.
Results = dict[str, dict[str, Found]]


class Failed(Exception):
    """A child ended badly; its last words are the message."""


class Child:
    """A child at work, in a session of its own: what it leaves behind is ended with it."""

    def __init__(self, job: Job, scratch: Path) -> None:
        self._log = scratch / "errors"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self._log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.loading.child", job.dumps()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                # What it leaves behind, where it is ended, goes with the folder.
                env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(scratch)},
                start_new_session=True,
            )

    def answer(self) -> Found:
        """What it found."""
        try:
            out, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"nothing after {PATIENCE_SECONDS} seconds") from None
        finally:
            self.end()
        if self.process.returncode:
            words = self._log.read_text().strip().splitlines()
            raise Failed(words[-1] if words else f"exit status {self.process.returncode}")
        found: Found = json.loads(out.strip().splitlines()[-1])
        return found

    def watched(self) -> Found:
        """The same, with the peak of its memory over what it held before it began."""
        assert self.process.stdout is not None and self.process.stdin is not None
        for line in self.process.stdout:  # some libraries have something to say first
            if line.strip() == BEGIN:
                base = held_by(psutil.Process(self.process.pid))
                self.process.stdin.write("\n")
                self.process.stdin.flush()
                most = peak(self.process, PATIENCE_SECONDS)
                over = [
                    float(max(after - before, 0)) for before, after in zip(base, most, strict=True)
                ]
                return {**self.answer(), "memory": over[0], "resident": over[1]}
        return self.answer()

    def end(self) -> None:
        """End it, and every process that it started and left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measure_corpus(
    path: Path,
    corpus: Corpus,
    loadings: list[Loading],
    workers: list[int],
    runs: int,
    work: Path,
    scratch: Path,
    options: dict[str, Any],
) -> tuple[Results, dict[str, str]]:
    """Medians by name and number of workers, and what went wrong, by both."""
    np.save(work / "digests.npy", digests_of(corpus))
    failures: dict[str, str] = {}
    results: Results = {}
    sizes: dict[str, Found | None] = {}

    def job(action: str, loading: Loading, count: int = 0, seed: int = 0) -> Child:
        made = Job(
            action,
            loading.name,
            corpus=str(path.resolve()),
            digests=str(work / "digests.npy"),
            folder=str(work / loading.storage),
            samples=len(corpus),
            batch=corpus.batch,
            workers=count,
            seed=seed,
            **options,
        )
        return Child(made, scratch)

    cases = [(each, n) for n in workers for each in loadings if n in each.workers]
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task(path.stem, total=len(loadings) + len(cases) * (runs + 1))

        def say(what: str) -> None:
            progress.update(bar, description=f"{path.stem}: {what}", advance=1)

        for each in loadings:
            say(f"writing {each.storage}")
            if each.storage not in sizes:
                try:
                    sizes[each.storage] = job("write", each).answer()
                except Failed as failure:
                    sizes[each.storage] = None
                    failures[f"{each.storage}, writing"] = str(failure)
        cases = [(each, n) for each, n in cases if sizes[each.storage] is not None]
        all_runs: dict[tuple[str, int], list[Found]] = {}
        for each, n in cases:
            say(f"checking {each.name}, {n} workers")
            try:
                all_runs[each.name, n] = [job("check", each, n).watched()]
            except Failed as failure:
                failures[f"{each.name}, {n} workers"] = str(failure)
        for run in range(runs):
            for each, n in cases:
                if f"{each.name}, {n} workers" in failures:
                    continue
                say(f"run {run + 1}: {each.name}, {n} workers")
                try:
                    all_runs[each.name, n].append(job("time", each, n, run).answer())
                except Failed as failure:
                    failures[f"{each.name}, {n} workers"] = str(failure)
    for (name, n), found in all_runs.items():
        if f"{name}, {n} workers" in failures:
            continue
        keys = {key: None for run_found in found for key in run_found}
        medians = {key: statistics.median(f[key] for f in found if key in f) for key in keys}
        medians["rates"] = [f["rate"] for f in found if "rate" in f]  # type: ignore[assignment]
        results.setdefault(name, {"": sizes[LOADINGS[name].storage] or {}})[str(n)] = medians
    return results, failures


def best_rate(of_loading: dict[str, Found]) -> float:
    """With whichever number of workers it is fastest; 0 where it was not timed."""
    return max((found.get("rate", 0.0) for found in of_loading.values()), default=0.0)


def best_of(results: Results, kind: str) -> tuple[str, float] | None:
    """The fastest of a kind, and its samples a second."""
    rates = {
        name: best_rate(found) for name, found in results.items() if LOADINGS[name].kind == kind
    }
    if not any(rates.values()):
        return None
    name = max(rates, key=rates.__getitem__)
    return name, rates[name]


def as_table(corpus: Corpus, results: Results, workers: list[int], *, flat: bool) -> Table:
    """Rates, and how many times those of the best HDF5 way and of the best other one each is."""
    title = (
        f"{corpus.name}: {len(corpus):,} samples of {corpus.dtype}, {corpus.nbytes / 1e6:.1f} MB, "
        f"shuffled batches of {corpus.batch}, {'values and lengths' if flat else 'padded'}"
    )
    best = {kind: best_of(results, kind) for kind in ("hdf5", "other")}
    known = ", ".join(f"{k}: {b[0]}" for k, b in best.items() if b)
    caption = "° not compressed; first batch and memory by number of workers"
    if known:
        caption = (
            f"×: each at its best number of workers, of the best at its own ({known}); {caption}"
        )
    table = Table(title=title, caption=caption, pad_edge=False)
    table.add_column("", no_wrap=True)
    slashes = "/".join(map(str, workers))
    heads = [
        "shuffled\nwithin",
        "size\nof raw",
        *[f"{n} workers\nsamples/s" for n in workers],
        "× best\nHDF5",
        "× best\nother",
        f"first batch\nms, {slashes}",
        f"memory\nMB, {slashes}",
        f"resident\nMB, {slashes}",
    ]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name in [name for name in LOADINGS if name in results]:
        loading, found = LOADINGS[name], results[name]
        times = [
            f"{best_rate(found) / b[1]:.2f}×" if b and best_rate(found) else ""
            for b in best.values()
        ]

        def several(key: str, scale: float, found: dict[str, Found] = found) -> str:
            values = [found.get(str(n), {}).get(key) for n in workers]
            return " / ".join("–" if v is None else f"{v * scale:,.0f}" for v in values)

        label = f"[bold]{name}[/bold]" if loading.kind == "ours" else name
        rates = [found.get(str(n), {}).get("rate") for n in workers]
        table.add_row(
            label + ("" if loading.compressed else "°"),
            loading.shuffle,
            f"{found['']['size']:.3f}",
            *["" if rate is None else f"{rate:,.0f}" for rate in rates],
            *times,
            several("first", 1e3),
            several("memory", 1e-6),
            several("resident", 1e-6),
        )
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="+", type=Path, metavar="CORPUS.npz")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--flat", action="store_true", help="values one after another, in place of padded batches"
    )
    parser.add_argument("--runs", type=int, default=5, help="0 only checks")
    parser.add_argument("--only", help="beginnings of names, with semicolons")
    parser.add_argument("--skip", help="parts of names to leave out, with semicolons")
    parser.add_argument("--budget", type=parse_bytes, default="512MB", help="of decoded data")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each is timed for (2)")
    parser.add_argument("--folder", type=Path, help="where to write (the system's temporary one)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this .png")
    options = parser.parse_args(arguments)

    console = Console(width=None if sys.stdout.isatty() else 220)
    wanted = tuple(options.only.split(";")) if options.only else ("",)
    unwanted = options.skip.split(";") if options.skip else []
    loadings = []
    for name, loading in LOADINGS.items():
        if not name.startswith(wanted) or any(part in name for part in unwanted):
            continue
        if options.flat and name.endswith("plain"):
            continue  # which is a way to pad
        if loading.available():
            loadings.append(loading)
        else:
            console.print(f"{name}: not installed, left out")
    settings = {"budget": options.budget, "seconds": options.seconds, "flat": options.flat}
    report: dict[str, Any] = {"machine": machine(PACKAGES), "settings": settings}
    report |= {"runs": options.runs, "workers": options.workers, "corpora": {}}
    bad = False
    for path in options.corpora:
        corpus = Corpus.load(path)
        with (
            tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as work,
            # Not in there: the name of a socket can't be long.
            tempfile.TemporaryDirectory(prefix="b") as scratch,
        ):
            where = Path(work).resolve(), Path(scratch)
            results, failures = measure_corpus(
                path, corpus, loadings, options.workers, options.runs, *where, settings
            )
        console.print(as_table(corpus, results, options.workers, flat=options.flat))
        for name, message in failures.items():
            console.print(f"{name} failed: {message}", style="red", markup=False)
        bad = bad or bool(failures)
        report["corpora"][corpus.name] = {
            "samples": len(corpus),
            "bytes": corpus.nbytes,
            "batch": corpus.batch,
            "results": results,
            "best": {kind: best_of(results, kind) for kind in ("ours", "hdf5", "other")},
            "failures": failures,
        }
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        from benchmarks.loading.plot import draw

        draw(report, options.plot)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
