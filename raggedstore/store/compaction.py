"""Compaction: many small segments written again as few large ones, as a new version.

Runs of neighbouring segments that are each under half the wanted size are joined; large ones
are left as they are, so that the work is in proportion to what is small. Versions that are
being read keep their files until `vacuum`. An append that commits meanwhile is no conflict:
what was read is replaced where it stands in the newest version. Only if that is no longer
there (another compaction was faster) is the work thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from raggedstore.batch import RaggedBatch, offsets_of
from raggedstore.errors import ConflictError
from raggedstore.progress import track
from raggedstore.samples import Samples
from raggedstore.segment.codec import Compression
from raggedstore.segment.context import ReadContext
from raggedstore.store.commit import commit, remove_segments, utc_now
from raggedstore.store.lists import SegmentEntry
from raggedstore.store.manifest import Manifest
from raggedstore.store.snapshot import Snapshot, newest_snapshot
from raggedstore.store.writer import SegmentSink

__all__ = ["compact", "copy_samples"]

_BUDGET = 2**27


def small_runs(segments: tuple[SegmentEntry, ...], segment_bytes: int) -> list[tuple[int, int]]:
    """Ranges of neighbouring segments, two at least, each under half of `segment_bytes`."""
    runs, start = [], None
    for i, entry in enumerate([*segments, None]):
        small = entry is not None and 2 * entry.bytes < segment_bytes
        if small and start is None:
            start = i
        elif not small and start is not None:
            if i - start > 1:
                runs.append((start, i))
            start = None
    return runs


def compact(root: Path, segment_bytes: int, *, progress: bool = False) -> int:
    """Join small segments; the new version's number, or the newest's with nothing to join."""
    newest = newest_snapshot(root, lambda version: Snapshot(root, version, ReadContext(_BUDGET)))
    with closing(newest) as snapshot:
        segments = snapshot.manifest.segments
        starts = offsets_of([entry.samples for entry in segments])
        runs = small_runs(segments, segment_bytes)
        if not runs:
            return snapshot.manifest.version
        written: list[SegmentEntry] = []
        with closing(SegmentSink(root, snapshot.manifest, _BUDGET, segment_bytes)) as sink:
            try:
                joined: list[tuple[tuple[SegmentEntry, ...], list[SegmentEntry]]] = []
                for a, b in runs:
                    positions = np.arange(starts[a], starts[b])
                    copy_samples(snapshot, positions, sink, progress=progress)
                    entries = sink.take()
                    written += entries
                    joined.append((segments[a:b], entries))
                manifest = commit(
                    root,
                    lambda latest: _replace(latest, joined, sink.compressions),
                    hint=snapshot.manifest.version,
                )
            except ConflictError:
                remove_segments(root, written)
                raise
    return manifest.version


def _replace(
    latest: Manifest,
    joined: list[tuple[tuple[SegmentEntry, ...], list[SegmentEntry]]],
    choices: Mapping[str, Compression | str],
) -> Manifest:
    """`latest` with each run of old segments replaced by the new ones."""
    runs = {old[0].file: (old, new) for old, new in joined}
    segments = latest.segments
    kept: list[SegmentEntry] = []
    at = 0
    while at < len(segments):
        old, new = runs.get(segments[at].file, ((), []))
        if old and segments[at : at + len(old)] == old:
            del runs[old[0].file]
            kept += new
            at += len(old)
        else:
            kept.append(segments[at])
            at += 1
    if runs:
        raise ConflictError("the segments were compacted by another process meanwhile")
    return latest.replaced(
        kept, time=utc_now(), operation="compact", compressions=latest.settled(choices)
    )


def copy_samples(
    source: Samples, positions: np.ndarray[tuple[int], np.dtype[np.int64]], sink: SegmentSink,
    *, progress: bool = False,
) -> None:  # fmt: skip
    """Append the samples at `positions` of `source` to `sink`, a block at a time."""
    with track("copying", len(positions), enabled=progress) as advance:
        for block in source.blocks(positions):
            parts = {}
            for name, field in source.schema.items():
                column = source.read(name, block)
                if isinstance(column, RaggedBatch):
                    parts[name] = (column.values, column.shapes)
                else:
                    shape = np.array([d or 0 for d in field.shape], np.int64)
                    parts[name] = (column.reshape(-1), np.tile(shape, (len(block), 1)))
            sink.extend(parts, len(block))
            advance(len(block))
