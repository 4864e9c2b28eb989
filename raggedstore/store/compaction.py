"""Compaction: many small segments written again as few large ones, as a new version.

Runs of neighbouring segments that are each under half the wanted size are joined; large ones
are left as they are, so that the work is in proportion to what is small. Versions that are
being read keep their files until `vacuum`. An append that commits meanwhile is no conflict:
what was read is replaced where it stands in the newest version. Only if that is no longer
there (another compaction was faster) is the work thrown away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raggedstore.batch import RaggedBatch
from raggedstore.errors import ConflictError
from raggedstore.progress import track
from raggedstore.samples import Samples
from raggedstore.segment.reader import ReadContext
from raggedstore.store.commit import commit, remove_segments, utc_now
from raggedstore.store.manifest import Manifest, SegmentEntry, newest
from raggedstore.store.snapshot import Snapshot
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
    snapshot = Snapshot(root, newest(root).version, ReadContext(_BUDGET))
    runs = small_runs(snapshot.manifest.segments, segment_bytes)
    if not runs:
        return snapshot.manifest.version
    sink = SegmentSink(root, snapshot.manifest, _BUDGET, segment_bytes)
    written: list[SegmentEntry] = []
    try:
        joined: list[tuple[tuple[SegmentEntry, ...], list[SegmentEntry]]] = []
        for a, b in runs:
            low, high = int(snapshot.starts[a]), int(snapshot.starts[b])
            copy_samples(snapshot, np.arange(low, high), sink, progress=progress)
            entries = sink.take()
            written += entries
            joined.append((snapshot.manifest.segments[a:b], entries))
        manifest = commit(root, lambda latest: _replace(latest, joined))
    except ConflictError:
        remove_segments(root, written)
        raise
    finally:
        sink.close()
        snapshot.close()
    return manifest.version


def _replace(
    latest: Manifest, joined: list[tuple[tuple[SegmentEntry, ...], list[SegmentEntry]]]
) -> Manifest:
    """`latest` with each run of old segments replaced by the new ones."""
    segments = list(latest.segments)
    for old, new in joined:
        try:
            at = segments.index(old[0])
        except ValueError:
            at = len(segments)
        if tuple(segments[at : at + len(old)]) != old:
            raise ConflictError("the segments were compacted by another process meanwhile")
        segments[at : at + len(old)] = new
    return latest.child(segments=tuple(segments), time=utc_now(), operation="compact")


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
