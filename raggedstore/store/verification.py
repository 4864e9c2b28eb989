"""Verify: walk every chunk against its checksum and every side column against its data.

It goes on after a fault, so that one report names all that is wrong and how much still reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raggedstore.errors import CorruptionError, RaggedStoreError, StorageError
from raggedstore.layout import DATA, SHAPE, SPAN
from raggedstore.progress import track
from raggedstore.samples import present
from raggedstore.segment.context import ReadContext
from raggedstore.segment.reader import SegmentReader, bad_spans
from raggedstore.store import files
from raggedstore.store.commit import digest_of, segments_folder
from raggedstore.store.lists import SegmentEntry
from raggedstore.store.snapshot import LostList, Snapshot, open_segment

__all__ = ["Fault", "Report", "verify", "verify_field", "verify_file"]

_ROWS = 2**16
BUDGET = 2**24  #: bytes of decoded data that verifying holds
_LISTED = 1000  # faults of one segment that are listed; more add nothing


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    segment: str  #: or the segment list's file, where that is what is wrong
    field: str | None
    sample: int | None  #: position in the store of the first sample affected
    message: str

    def __str__(self) -> str:
        place = f"segment {'list ' * self.segment.endswith('.list')}{self.segment}"
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
    checksums: bool = True  #: whether values were held against any: not those of a foreign file

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
        if not self.checksums:
            what += ", of which none has a checksum"
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
    parts = snapshot.parts
    context = ReadContext(BUDGET)  # with checksums, however the store was opened
    total = sum(part.bytes for part in snapshot.manifest.parts)
    with track("verifying", total, enabled=progress) as advance:
        for first, part in zip(parts.starts.tolist(), parts.entries, strict=False):
            report.samples += part.samples
            if isinstance(part, LostList):
                report.segments += part.entry.segments
                report.faults.append(Fault(part.entry.file, None, first, str(part.error)))
                report.damaged += part.samples
                advance(part.entry.bytes)
                continue
            report.segments += 1
            report.nbytes += part.bytes + part.index_bytes
            _verify_segment(snapshot, context, part, first, report)
            advance(part.bytes)
    return report


def verify_file(reader: SegmentReader, *, progress: bool = False) -> Report:
    """Look at everything in a file by itself."""
    report = Report(
        samples=len(reader),
        segments=1,
        nbytes=len(reader.file),
        checksums=reader.table.checksums,
    )
    damaged = np.zeros(len(reader), bool)
    stored = {
        name: sum(int(dataset.entries["size"].sum()) for dataset in columns.values())
        for name, columns in reader.table.datasets.items()
    }
    with track("verifying", sum(stored.values()), enabled=progress) as advance:
        for name, nbytes in stored.items():
            verify_field(reader, name, 0, damaged, report)
            advance(nbytes)
    report.damaged = int(damaged.sum())
    del report.faults[_LISTED:]
    return report


def _verify_segment(
    snapshot: Snapshot, context: ReadContext, entry: SegmentEntry, first: int, report: Report
) -> None:
    name = entry.file[:-3]
    try:
        reader = open_segment(snapshot.root, snapshot.manifest, entry, context)
    except RaggedStoreError as error:
        if isinstance(error, StorageError) and not isinstance(error.__cause__, FileNotFoundError):
            raise  # a disk that refuses to be read is no damage
        report.faults.append(Fault(name, None, first, f"cannot be opened: {error}"))
        report.damaged += entry.samples
        return
    damaged = np.zeros(entry.samples, bool)
    faults = len(report.faults)
    for field_name in snapshot.manifest.schema:
        verify_field(reader, field_name, first, damaged, report)
    # Bytes between the chunks belong to HDF5: other tools need them, ours do not.
    if len(report.faults) == faults and digest_of(reader.file) != entry.digest:
        message = "the file's digest does not hold: HDF5's own structures are damaged, no sample is"
        report.faults.append(Fault(name, None, None, message))
    index = segments_folder(snapshot.root) / entry.index
    with files.storage_errors(index, "be looked at"):
        is_there = index.exists()
    if not is_there:
        report.faults.append(Fault(name, None, None, "its chunk table is missing; samples read"))
    report.damaged += int(damaged.sum())
    del report.faults[faults + _LISTED :]


def verify_field(
    reader: SegmentReader,
    name: str,
    first: int,
    damaged: npt.NDArray[np.bool_],
    report: Report,
) -> None:
    """Every chunk of a field, then its side columns; marks the samples that do not read."""
    spec = reader.table.schema[name]
    lost: dict[str, _Lost] = {}
    messages: list[tuple[str, int, str]] = []  # column, chunk, what
    for column, dataset in reader.table.datasets[name].items():
        data = reader.column(name, column)
        units = []
        for number in range(len(dataset.entries)):
            report.chunks += 1
            fault, bad = data.damage_of(number)
            units.append(bad)
            if fault is not None:
                messages.append((column, number, fault))
        none = np.zeros(0, bool)
        lost[column] = _Lost(data.unit_rows, dataset.chunk_rows, np.concatenate([none, *units]))
    if spec.is_ragged:
        _verify_ragged(reader, name, first, damaged, lost, messages, report)
        return
    unit = lost[DATA].unit_rows
    for number in np.flatnonzero(lost[DATA].bad).tolist():
        damaged[number * unit : (number + 1) * unit] = True
    for column, number, message in messages:
        sample = lost[column].first_row(number)
        report.faults.append(_fault_of_chunk(reader.name, name, first, sample, message))


@dataclass(frozen=True, slots=True)
class _Lost:
    """Which rows of a column don't read, in runs that are lost together."""

    unit_rows: int
    chunk_rows: int
    bad: npt.NDArray[np.bool_]  #: (n_units,)

    def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each row is lost."""
        lost: npt.NDArray[np.bool_] = self.bad[rows // self.unit_rows]
        return lost

    def units(self, number: int) -> list[int]:
        """The lost runs of a chunk."""
        count = self.chunk_rows // self.unit_rows
        return (
            np.flatnonzero(self.bad[number * count : (number + 1) * count]) + number * count
        ).tolist()

    def first_row(self, number: int) -> int | None:
        """The first lost row of a chunk."""
        units = self.units(number)
        return units[0] * self.unit_rows if units else None


def _fault_of_chunk(segment: str, name: str, first: int, sample: int | None, message: str) -> Fault:
    if sample is None:
        return Fault(segment, name, None, f"{message}; every sample in it reads")
    return Fault(segment, name, first + sample, message)


def _verify_ragged(
    reader: SegmentReader,
    name: str,
    first: int,
    damaged: npt.NDArray[np.bool_],
    columns: dict[str, _Lost],
    messages: list[tuple[str, int, str]],
    report: Report,
) -> None:
    spec, datasets = reader.table.schema[name], reader.table.datasets[name]
    first_of: dict[int, int] = {}  # lost run of data -> first sample that needs it
    expected = 0
    needed = (SPAN,) if spec.is_vector else (SPAN, SHAPE)  # a vector's shape is its length
    for low in range(0, reader.table.samples, _ROWS):
        positions = np.arange(low, min(low + _ROWS, reader.table.samples))
        lost = np.zeros(len(positions), bool)
        for column in needed:
            lost |= columns[column].rows(positions)
        damaged[positions[lost]] = True
        good = positions[~lost]
        if not len(good):
            continue
        spans = reader.rows(name, SPAN, good, good + 1)
        shapes = spans[:, 1:] - spans[:, :1]
        told = ~columns[SHAPE].rows(good)
        if not spec.is_vector:
            shapes = np.zeros((len(good), spec.ndim), np.int64)
        shapes[told] = reader.rows(name, SHAPE, good[told], good[told] + 1)
        wrong = bad_spans(spec, spans, shapes, datasets[DATA].rows)
        # Samples of ours lie one after another, without gap or overlap; others' as they please.
        if reader.table.checksums and not lost.any():
            before = np.concatenate([[expected], spans[:-1, 1]])
            wrong |= spans[:, 0] != before
            expected = int(spans[-1, 1])
        for i in np.flatnonzero(wrong)[:_LISTED].tolist():
            message = (
                f"start and stop {spans[i].tolist()} do not go with shape {shapes[i].tolist()}"
            )
            report.faults.append(Fault(reader.name, name, first + int(good[i]), message))
        damaged[good[wrong]] = True
        _mark_data(good[~wrong], spans[~wrong], columns[DATA], damaged, first_of)
        if spec.kind == "str" and not columns[DATA].bad.any() and not wrong.any():
            try:
                present(spec, reader.ragged(name, good))
            except CorruptionError as error:
                report.faults.append(Fault(reader.name, name, first + low, str(error)))
    for column, number, message in messages:
        if column == DATA:
            samples = [first_of[unit] for unit in columns[DATA].units(number) if unit in first_of]
            sample = min(samples, default=None)
        else:
            sample = columns[column].first_row(number) if column in needed else None
        report.faults.append(_fault_of_chunk(reader.name, name, first, sample, message))


def _mark_data(
    positions: npt.NDArray[np.int64],
    spans: npt.NDArray[np.int64],
    lost: _Lost,
    damaged: npt.NDArray[np.bool_],
    first_of: dict[int, int],
) -> None:
    """Mark the samples that touch a lost run of data, and note the first of each."""
    bad, unit = lost.bad, lost.unit_rows
    if not bad.any():
        return
    before = np.concatenate([[0], np.cumsum(bad)])
    full = spans[:, 1] > spans[:, 0]
    low, high = spans[:, 0] // unit, (np.maximum(spans[:, 1], 1) - 1) // unit
    touched = full & (before[np.minimum(high + 1, len(bad))] > before[np.minimum(low, len(bad))])
    damaged[positions[touched]] = True
    for i in np.flatnonzero(touched).tolist():
        for run in range(int(low[i]), int(high[i]) + 1):
            if bad[run]:
                first_of.setdefault(run, int(positions[i]))
