"""Verify: walk every chunk against its checksum and every side column against its data.

It goes on after a fault, so that one report names all that is wrong and how much still reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError, RaggedStoreError
from raggedstore.layout import DATA, SHAPE, SPAN
from raggedstore.progress import track
from raggedstore.samples import present
from raggedstore.segment.reader import SegmentReader, bad_spans
from raggedstore.store.commit import digest_of, segments_folder
from raggedstore.store.snapshot import Snapshot, open_segment

__all__ = ["Fault", "Report", "verify"]

_ROWS = 2**16
_LISTED = 1000  # faults of one segment that are listed; more add nothing


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    segment: str
    field: str | None
    sample: int | None  #: position in the store of the first sample affected
    message: str

    def __str__(self) -> str:
        place = f"segment {self.segment}"
        if self.field is not None:
            place += f", field {self.field!r}"
        if self.sample is not None:
            place += f", sample {self.sample}"
        return f"{place}: {self.message}"


@dataclass(slots=True)
class Report:
    """What `verify` looked at and found."""

    samples: int = 0
    segments: int = 0
    chunks: int = 0
    nbytes: int = 0  #: stored bytes looked at
    faults: list[Fault] = field(default_factory=list)
    damaged: int = 0  #: samples that do not read whole

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    @property
    def checked(self) -> dict[str, int]:
        """How much was looked at."""
        return {
            "samples": self.samples,
            "segments": self.segments,
            "chunks": self.chunks,
            "nbytes": self.nbytes,
        }

    def __str__(self) -> str:
        what = f"{self.samples} samples, {self.segments} segments, {self.chunks} chunks"
        if self.ok:
            return f"no faults in {what}"
        reads = self.samples - self.damaged
        return (
            f"{len(self.faults)} faults in {what}; {reads} samples still read whole\n"
            + "\n".join(f"  {fault}" for fault in self.faults)
        )

    def raise_for_faults(self) -> None:
        """CorruptionError where anything is wrong."""
        if self.faults:
            raise CorruptionError(str(self))


def verify(snapshot: Snapshot, *, progress: bool = False) -> Report:
    """Look at everything in one version."""
    report = Report()
    total = sum(entry.bytes for entry in snapshot.manifest.segments)
    with track("verifying", total, enabled=progress) as advance:
        for number, entry in enumerate(snapshot.manifest.segments):
            first = int(snapshot.starts[number])
            report.segments += 1
            report.samples += entry.samples
            report.nbytes += entry.bytes + entry.index_bytes
            _verify_segment(snapshot, number, first, report)
            advance(entry.bytes)
    return report


def _verify_segment(snapshot: Snapshot, number: int, first: int, report: Report) -> None:
    entry = snapshot.manifest.segments[number]
    name = entry.file[:-3]
    try:
        reader = open_segment(snapshot.root, snapshot.manifest, number, snapshot.context)
    except RaggedStoreError as error:
        report.faults.append(Fault(name, None, first, f"cannot be opened: {error}"))
        report.damaged += entry.samples
        return
    damaged = np.zeros(entry.samples, bool)
    faults = len(report.faults)
    for field_name in snapshot.manifest.schema:
        _verify_field(reader, field_name, first, damaged, report)
    # Bytes between the chunks belong to HDF5: other tools need them, ours do not.
    if len(report.faults) == faults and digest_of(reader.file) != entry.digest:
        message = "the file's digest does not hold: HDF5's own structures are damaged, no sample is"
        report.faults.append(Fault(name, None, None, message))
    index = segments_folder(snapshot.root) / entry.index
    if not index.exists():
        report.faults.append(Fault(name, None, None, "its chunk table is missing; samples read"))
    report.damaged += int(damaged.sum())
    del report.faults[faults + _LISTED :]


def _verify_field(
    reader: SegmentReader,
    name: str,
    first: int,
    damaged: npt.NDArray[np.bool_],
    report: Report,
) -> None:
    """Every chunk of a field, then its side columns; marks the samples that do not read."""
    spec = reader.table.schema[name]
    bad_rows: dict[str, npt.NDArray[np.bool_]] = {}
    messages: list[tuple[str, int, str]] = []  # column, first bad row, what
    for column, dataset in reader.table.datasets[name].items():
        bad = np.zeros(len(dataset.entries), bool)
        for number in range(len(dataset.entries)):
            report.chunks += 1
            fault = reader.fault_of(dataset, number)
            if fault is not None:
                bad[number] = True
                messages.append((column, number * dataset.chunk_rows, fault))
        bad_rows[column] = bad
    if not spec.is_ragged:
        rows = np.arange(reader.table.samples) // reader.table.datasets[name][DATA].chunk_rows
        damaged |= bad_rows[DATA][rows] if len(rows) else False
        for _, row, message in messages:
            report.faults.append(Fault(reader.name, name, first + row, message))
        return
    _verify_ragged(reader, name, first, damaged, bad_rows, messages, report)


def _verify_ragged(
    reader: SegmentReader,
    name: str,
    first: int,
    damaged: npt.NDArray[np.bool_],
    bad_rows: dict[str, npt.NDArray[np.bool_]],
    messages: list[tuple[str, int, str]],
    report: Report,
) -> None:
    spec, datasets = reader.table.schema[name], reader.table.datasets[name]
    first_of: dict[int, int] = {}  # data chunk -> first sample that needs it
    expected = 0
    for low in range(0, reader.table.samples, _ROWS):
        positions = np.arange(low, min(low + _ROWS, reader.table.samples))
        lost = np.zeros(len(positions), bool)
        for column in (SPAN, SHAPE):
            lost |= bad_rows[column][positions // datasets[column].chunk_rows]
        damaged[positions[lost]] = True
        good = positions[~lost]
        if not len(good):
            continue
        spans = reader.rows(name, SPAN, good, good + 1)
        shapes = reader.rows(name, SHAPE, good, good + 1)
        wrong = bad_spans(spec, spans, shapes, datasets[DATA].rows)
        if not lost.any():  # samples lie one after another, without gap or overlap
            before = np.concatenate([[expected], spans[:-1, 1]])
            wrong |= spans[:, 0] != before
            expected = int(spans[-1, 1])
        for i in np.flatnonzero(wrong)[:_LISTED].tolist():
            message = (
                f"start and stop {spans[i].tolist()} do not go with shape {shapes[i].tolist()}"
            )
            report.faults.append(Fault(reader.name, name, first + int(good[i]), message))
        damaged[good[wrong]] = True
        _mark_data(good[~wrong], spans[~wrong], bad_rows[DATA], datasets[DATA].chunk_rows,
                   damaged, first_of)  # fmt: skip
        if spec.kind == "str" and not bad_rows[DATA].any() and not wrong.any():
            try:
                present(spec, reader.ragged(name, good))
            except CorruptionError as error:
                report.faults.append(Fault(reader.name, name, first + low, str(error)))
    for column, row, message in messages:
        sample = first_of.get(row // datasets[DATA].chunk_rows) if column == DATA else row
        where = None if sample is None else first + sample
        report.faults.append(Fault(reader.name, name, where, message))


def _mark_data(
    positions: npt.NDArray[np.int64],
    spans: npt.NDArray[np.int64],
    bad: npt.NDArray[np.bool_],
    chunk_rows: int,
    damaged: npt.NDArray[np.bool_],
    first_of: dict[int, int],
) -> None:
    """Mark the samples that touch a bad chunk of data, and note the first of each."""
    if not bad.any():
        return
    before = np.concatenate([[0], np.cumsum(bad)])
    full = spans[:, 1] > spans[:, 0]
    low, high = spans[:, 0] // chunk_rows, (np.maximum(spans[:, 1], 1) - 1) // chunk_rows
    touched = full & (before[np.minimum(high + 1, len(bad))] > before[np.minimum(low, len(bad))])
    damaged[positions[touched]] = True
    for i in np.flatnonzero(touched).tolist():
        for chunk in range(int(low[i]), int(high[i]) + 1):
            if bad[chunk]:
                first_of.setdefault(chunk, int(positions[i]))
