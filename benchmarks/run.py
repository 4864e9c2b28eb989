"""raggedstore and its peers on the same data, in one run.

    python benchmarks/run.py CORPUS.npz... [--runs 5] [--only NAMES] [--json OUT] [--plot OUT.png]

Each peer's files are written once and all that is read from them is held against the corpus; then
come the runs. In a run every peer has its turn, in a process of its own, so that a machine's moods
fall on all of them alike. README.md beside this file says what is measured, and how.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.corpora import Corpus
from benchmarks.limits import LIMITS
from benchmarks.machine import machine
from benchmarks.measure import BEGIN, END, Job, Measures
from benchmarks.peers import PEERS, Peer

CHILD = Path(__file__).resolve().with_name("measure.py")
WATCH_SECONDS = 0.002
#: Modules whose packages are called otherwise.
_PACKAGES = {"lance": "pylance", "streaming": "mosaicml-streaming"}


@dataclass(frozen=True)
class Measure:
    """A column of the table."""

    key: str
    title: str
    more_is_better: bool
    scale: float = 1.0  #: from bytes, seconds and samples to what the title says
    digits: int = 0

    @property
    def label(self) -> str:
        """The title without its unit, which a ratio hasn't."""
        words = self.title.split("\n")
        return words[0] if len(words) < 3 else f"{words[0]}, {words[1]}"


MEASURES = [
    Measure("size", "size\nof raw", False, digits=3),
    Measure("write", "write\nMB/s", True, 1e-6),
    Measure("append", "append\nsamples/s", True),
    Measure("open", "open\nms", False, 1e3, 2),
    Measure("sequential", "in order\nMB/s", True, 1e-6),
    Measure("permuted", "permuted\nMB/s", True, 1e-6),
    Measure("windowed", "windowed\nMB/s", True, 1e-6),
    Measure("get_p50", "get p50\nµs", False, 1e6, 1),
    Measure("get_p99", "get p99\nµs", False, 1e6, 1),
    Measure("memory_sequential", "memory\nin order\nMB", False, 1e-6, 1),
    Measure("memory_permuted", "memory\npermuted\nMB", False, 1e-6, 1),
]


class Failed(Exception):
    """A child ended badly; its last words are the message."""


def start(job: Job) -> subprocess.Popen[str]:
    """A child at work on `job`."""
    return subprocess.Popen(
        [sys.executable, str(CHILD), job.dumps()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(child: subprocess.Popen[str]) -> Measures:
    """What a child found."""
    out, err = child.communicate()
    if child.returncode:
        raise Failed((err.strip() or f"exit status {child.returncode}").splitlines()[-1])
    found: Measures = json.loads(out.strip().splitlines()[-1])
    return found


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is no file's: what mapped files bring in is the page cache's."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def watch(child: subprocess.Popen[str]) -> Measures:
    """Peak memory between a child's BEGIN and END lines, over what it had at the first BEGIN."""
    assert child.stdout is not None
    found: Measures = {}
    baseline: int | None = None
    name, peak = "", 0
    while child.poll() is None:
        if name:
            try:
                peak = max(peak, anonymous_bytes(child.pid))
            except (OSError, KeyError):  # it has just ended
                break
        if not select.select([child.stdout], [], [], WATCH_SECONDS)[0]:
            continue
        # Unbuffered lines: select must not be told that nothing is there while a buffer holds it.
        word, _, rest = _line(child.stdout.fileno()).partition(" ")
        if word == BEGIN:
            name, peak = rest, 0
            baseline = anonymous_bytes(child.pid) if baseline is None else baseline
        elif word == END:
            if rest and baseline is not None:
                found[f"memory_{name}"] = float(max(peak - baseline, 0))
            name = ""
        else:
            break
    child.communicate()
    if child.returncode:
        raise Failed(f"exit status {child.returncode} while its memory was watched")
    return found


def _line(descriptor: int) -> str:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line.decode().rstrip("\n")


def measure_corpus(
    path: Path,
    corpus: Corpus,
    peers: list[Peer],
    limits: list[str],
    runs: int,
    work: Path,
    options: dict[str, Any],
) -> tuple[dict[str, Measures], dict[str, str]]:
    """Medians of each peer and limit by name, and what went wrong, by name."""
    of_corpus: dict[str, Any] = {
        "corpus": str(path.resolve()),
        "samples": len(corpus),
        "batch": corpus.batch,
    }
    failures: dict[str, str] = {}
    all_runs: dict[str, list[Measures]] = {}

    def job(action: str, name: str, folder: Path, seed: int = 0) -> Job:
        return Job(action, name, folder=str(folder), seed=seed, **of_corpus, **options)

    def attempt(name: str, jobs: Iterable[Job]) -> None:
        found: Measures = {}
        try:
            for each in jobs:
                child = start(each)
                found |= watch(child) if each.action == "memory" else answer(child)
        except Failed as failure:
            failures[name] = str(failure)
            return
        all_runs.setdefault(name, []).append(found)

    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task(path.stem, total=len(peers) * (runs + 1))
        for peer in peers:
            progress.update(bar, description=f"{path.stem}: writing and checking {peer.name}")
            folder = work / peer.name
            jobs = [job(action, peer.name, folder) for action in ("prepare", "memory")]
            attempt(peer.name, jobs)
            progress.advance(bar)
        good = [peer for peer in peers if peer.name not in failures]
        for run in range(runs):
            for peer in good:
                progress.update(bar, description=f"{path.stem}, run {run + 1}: {peer.name}")
                write = job("write", peer.name, work / "scratch", run)
                attempt(peer.name, [write, job("read", peer.name, work / peer.name, run)])
                progress.advance(bar)
            for name in limits:
                needs = LIMITS[name]
                if needs is None or any(peer.name == needs for peer in good):
                    attempt(name, [job("limit", name, work / (needs or ""), run)])
    results = {}
    for name, found in all_runs.items():
        if name in failures:
            continue
        keys = {key for run_found in found for key in run_found}
        results[name] = {
            key: statistics.median(each[key] for each in found if key in each) for key in keys
        }
    for name in PEERS:
        if name in results and not PEERS[name].writes:
            results[name].pop("size", None)
    return results, failures


def best_peers(results: dict[str, Measures]) -> dict[str, tuple[str, float]]:
    """For each measure the best of the others that compress: (name, value)."""
    best = {}
    for measure in MEASURES:
        pick = max if measure.more_is_better else min
        values = {
            name: found[measure.key]
            for name, found in results.items()
            if measure.key in found
            and name in PEERS
            and PEERS[name].compressed
            and not PEERS[name].ours
        }
        if values:
            name = pick(values, key=values.__getitem__)
            best[measure.key] = (name, values[name])
    return best


def ratio(measure: Measure, value: float, best: float) -> float | None:
    """How many times as good as the best: above 1 is better, whichever way better lies."""
    better, worse = (value, best) if measure.more_is_better else (best, value)
    return better / worse if worse > 0 else None


def as_table(corpus: Corpus, results: dict[str, Measures]) -> Table:
    """Values, and how many times as good as the best compressed peer each is."""
    title = (
        f"{corpus.name}: {len(corpus):,} samples of {corpus.dtype}, {corpus.nbytes / 1e6:.1f} MB, "
        f"batches of {corpus.batch}"
    )
    caption = "×: times as good as the best compressed peer, above 1 better; ° not compressed"
    table = Table(title=title, caption=caption, pad_edge=False)
    table.add_column("", no_wrap=True)
    for measure in MEASURES:
        table.add_column(measure.title, justify="right", no_wrap=True)
    best = best_peers(results)
    for name in [*PEERS, *LIMITS]:
        if name not in results:
            continue
        cells = []
        for measure in MEASURES:
            value = results[name].get(measure.key)
            if value is None:
                cells.append("")
                continue
            cell = f"{value * measure.scale:,.{measure.digits}f}"
            if measure.key in best:
                times = ratio(measure, value, best[measure.key][1])
                if times is not None:
                    cell += f" [dim]{times:>5.{0 if times >= 100 else 2}f}×[/dim]"
            cells.append(cell)
        bold = name in PEERS and PEERS[name].ours
        mark = "°" if name in PEERS and not PEERS[name].compressed else ""
        label = f"[bold]{name}[/bold]" if bold else name + mark
        table.add_row(label, *cells)
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="+", type=Path, metavar="CORPUS.npz")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", help="beginnings of names of peers and limits, with commas")
    parser.add_argument("--cache", type=int, default=256, help="MB a reader may hold (256)")
    parser.add_argument("--seconds", type=float, default=2.0, help="at which an epoch is cut (2)")
    parser.add_argument("--gets", type=int, default=2_000, help="single samples to get (2000)")
    parser.add_argument("--folder", type=Path, help="where to write (the system's temporary one)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this .png")
    options = parser.parse_args(arguments)

    wanted = tuple(options.only.split(",")) if options.only else ("",)
    chosen = [peer for peer in PEERS.values() if peer.name.startswith(wanted)]
    limits = [name for name in LIMITS if name.startswith(wanted)]
    peers = [peer for peer in chosen if peer.available()]
    console = Console(width=None if sys.stdout.isatty() else 220)
    for peer in chosen:
        if peer not in peers:
            console.print(f"{peer.name}: not installed, left out")
    settings = {
        "cache_bytes": options.cache * 1_000_000,
        "seconds": options.seconds,
        "gets": options.gets,
    }
    modules = {module for peer in PEERS.values() for module in peer.modules}
    packages = sorted({package for m in modules for package in (m, _PACKAGES.get(m, m))})
    report: dict[str, Any] = {"machine": machine(packages), "settings": settings}
    report["runs"] = options.runs
    report["corpora"] = {}
    bad = False
    for path in options.corpora:
        corpus = Corpus.load(path)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as work:
            results, failures = measure_corpus(
                path, corpus, peers, limits, options.runs, Path(work), settings
            )
        console.print(as_table(corpus, results))
        for name, message in failures.items():
            console.print(f"{name} failed: {message}", style="red", markup=False)
        bad = bad or bool(failures)
        report["corpora"][corpus.name] = {
            "samples": len(corpus),
            "bytes": corpus.nbytes,
            "results": results,
            "best": best_peers(results),
            "failures": failures,
        }
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        from benchmarks.plot import draw

        draw(report, options.plot)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
