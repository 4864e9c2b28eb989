"""`log`, `verify`, `repair`, `compact`, `vacuum`, `export`: keeping a store whole and small."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from raggedstore.cli.opening import CORPUS, opened, opened_store
from raggedstore.cli.output import one_line, plain, print_json, print_table, when
from raggedstore.errors import UsageError
from raggedstore.store.repair import RepairReport
from raggedstore.store.repair import repair as repair_store
from raggedstore.store.store import history
from raggedstore.store.vacuum import vacuum as vacuum_store
from raggedstore.units import format_bytes

__all__ = ["compact", "export", "log", "repair", "vacuum", "verify"]


@click.command()
@CORPUS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def log(corpus: str, as_json: bool) -> int:
    """List the versions of CORPUS, newest first.

    One whose manifest is damaged is a line on stderr besides, and the exit status is then 1.

    \b
    Example:
      raggedstore log corpus
    """
    _check_folder(corpus, "has versions")
    entries = history(Path(corpus))[::-1]
    status = int(any(entry.damage for entry in entries))
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return status
    for entry in entries:
        if entry.damage:
            click.echo(f"raggedstore: fault: {one_line(entry.damage)}", err=True)
    rows = (
        (e.version, "?", e.operation, "?", "?", "?")
        if e.damage
        else (
            e.version, when(e.time), e.operation, e.samples, e.segments,
            format_bytes(e.nbytes_stored),
        )
        for e in entries
    )  # fmt: skip
    header = ["version", "time", "operation", "samples", "segments", "stored"]
    print_table(header, rows, right="rllrrr")
    return status


def _check_folder(corpus: str, what: str) -> None:
    if os.path.isfile(corpus):
        raise UsageError(f"{corpus} is a single file: only a store's folder {what}")


@click.command()
@CORPUS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(corpus: str, as_json: bool) -> int:
    """Check all of CORPUS, a store or a single file, against its checksums.

    Every fault is one line on stderr, and the exit status is 1 if there is any. What another tool
    wrote has no checksums: of that, only what does not decode or fit together is found.

    \b
    Examples:
      raggedstore verify corpus && raggedstore vacuum corpus
      raggedstore verify exported.h5
    """
    with opened(corpus) as samples:
        report = samples.verify(progress=True)
    if as_json:
        faults = [
            {"segment": f.segment, "field": f.field, "sample": f.sample, "message": f.message}
            for f in report.faults
        ]
        checked = {**report.checked, "damaged": report.damaged, "checksums": report.checksums}
        print_json({"ok": report.ok, "checked": checked, "faults": faults})
        return 0 if report.ok else 1
    for fault in report.faults:
        click.echo(f"raggedstore: fault: {one_line(fault)}", err=True)
    click.echo(f"{plain(corpus)}: {plain(str(report).splitlines()[0])}")
    return 0 if report.ok else 1


@click.command()
@CORPUS
@click.option("--dry-run", is_flag=True, help="Only say what would be lost; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def repair(corpus: str, dry_run: bool, as_json: bool) -> int:
    """Save what is intact of a damaged CORPUS.

    This makes a new version of all samples that still read. Old versions stay as they are.
    Samples that are lost are listed on stderr, a line for each field of a segment, and the exit
    status is then 1. Those that stood after them move up.

    \b
    Examples:
      raggedstore repair corpus --dry-run
      raggedstore repair corpus && raggedstore verify corpus
    """
    _check_folder(corpus, "can be repaired")
    report = repair_store(Path(corpus), dry_run=dry_run, progress=True)
    lost = bool(report.lost or report.unreadable)
    if as_json:
        print_json(_repair_as_json(report))
        return int(lost)
    for version in report.unreadable:
        message = f"the manifest of version {version} is damaged, and what it added is lost"
        click.echo(f"raggedstore: lost: {message}", err=True)
    for loss in report.lost:
        click.echo(f"raggedstore: lost: {one_line(loss)}", err=True)
    name = plain(corpus)
    if report.ok:
        click.echo(f"{name}: nothing to repair in version {report.base}, {report.samples} samples")
        return 0
    made = "the new version" if report.version is None else f"version {report.version}"
    click.echo(
        f"{name}: {made} holds {report.kept} of the {report.samples} samples of version "
        f"{report.base}; segments: {len(report.rewritten)} written anew, {len(report.reindexed)} "
        f"with a new chunk table, {len(report.lost_segments)} lost"
    )
    if report.first_lost is not None:
        click.echo(f"{name}: samples that stood after position {report.first_lost} have moved up")
    if report.unnamed:
        click.echo(
            f"{name}: segment files that no readable version names: {len(report.unnamed)} in "
            f"{name}/segments; each opens by itself, and vacuum removes it"
        )
    if report.version is None:
        click.echo(f"{name}: nothing was changed; run it without --dry-run to make that version")
    else:
        click.echo(
            f"{name}: next, raggedstore verify {name}; and when nothing in the old versions is "
            f"wanted any more, raggedstore vacuum {name} --keep 1"
        )
    return int(lost)


def _repair_as_json(report: RepairReport) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "base": report.base,
        "version": report.version,
        "samples": report.samples,
        "kept": report.kept,
        "lost": [asdict(loss) for loss in report.lost],
        "lost_segments": report.lost_segments,
        "rewritten": report.rewritten,
        "reindexed": report.reindexed,
        "unreadable": report.unreadable,
        "unnamed": report.unnamed,
    }


@click.command()
@CORPUS
def compact(corpus: str) -> None:
    """Join small segments into large ones.

    This makes a new version of CORPUS. Old versions stay until vacuum removes them, and
    whoever reads them is not disturbed.

    \b
    Example:
      raggedstore compact corpus && raggedstore vacuum corpus --keep 1
    """
    with opened_store(corpus, "a") as store:
        before = store.version
        version = store.compact(progress=True)
        if version == before:
            click.echo(f"{plain(corpus)}: nothing to join, still version {version}")
        else:
            click.echo(
                f"{plain(corpus)}: version {version}, {store.manifest.segment_count} segments, "
                f"{format_bytes(store.nbytes_stored)}"
            )


@click.command()
@CORPUS
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="How many of the newest versions to keep.",
)
def vacuum(corpus: str, keep: int) -> None:
    """Remove old versions and stray files.

    Versions that somebody has open are kept. Stray files are those that an interrupted
    import left behind. Versions whose manifests are damaged are not counted; as long as one
    stays, so does every segment, since it may name any.

    \b
    Example:
      raggedstore vacuum corpus --keep 1
    """
    _check_folder(corpus, "has versions")
    removed = vacuum_store(Path(corpus), keep)
    for path in removed:
        click.echo(f"removed {plain(path)}")
    click.echo(f"{plain(corpus)}: {len(removed)} files removed")


@click.command()
@CORPUS
@click.argument("out", type=click.Path(dir_okay=False))
def export(corpus: str, out: str) -> None:
    """Write CORPUS to one HDF5 file.

    OUT ends in .h5 and must not exist.

    \b
    Example:
      raggedstore export corpus corpus.h5
    """
    suffix = Path(out).suffix.lower()
    if suffix in (".parquet", ".arrow"):
        raise UsageError(f"{out}: {suffix} is not supported yet; export to .h5")
    if suffix not in (".h5", ".hdf5"):
        raise UsageError(f"{out}: export writes HDF5: give a name that ends in .h5")
    with opened_store(corpus) as store:
        store.export(out, progress=True)
        click.echo(
            f"{len(store)} samples of version {store.version} exported to {plain(out)}, "
            f"{format_bytes(os.path.getsize(out))}"
        )
