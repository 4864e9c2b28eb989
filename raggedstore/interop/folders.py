"""`import_folder`: a folder of recordings, pictures or text becomes the samples of a store.

Strategy: find the files (scan.py), let the reader of their kind (audio.py, image.py, text.py)
say what schema holds them, then decode in a small pool of threads, append in the order of the
names, and commit every so often. What one commit names is whole, so an import that is cut off
anywhere resumes from the paths that the store already holds: no file is lost, none comes twice.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from raggedstore.errors import ConflictError, SampleError, SchemaError, UsageError
from raggedstore.interop import audio, image, text
from raggedstore.interop.scan import Skipped, SourceFile, Unreadable, find_files
from raggedstore.interop.text import HeldLines
from raggedstore.schema import Field
from raggedstore.store.files import as_path, is_there, storage_errors
from raggedstore.units import parse_bytes

__all__ = ["KINDS", "ImportReport", "Watcher", "import_folder"]

#: Kinds of samples, and the suffixes of their files; of two as common, the first is taken.
KINDS: dict[str, frozenset[str]] = {
    "audio": audio.SUFFIXES,
    "image": image.SUFFIXES,
    "text": text.SUFFIXES,
}
COMMIT_SECONDS = 30.0
_PATHS_AT_ONCE = 65_536

T = TypeVar("T")


class Reader(Protocol):
    """What turns the files of one kind into samples."""

    kind: str
    #: Whether a file is one sample, so that a path in the store means that the file is done.
    samples_per_file: bool

    def probe(self, file: SourceFile) -> Any:
        """What `file` asks of the schema; called from several threads."""

    def take(self, probed: Any) -> None:
        """Count what `probe` gave into `fields`."""

    def fields(self) -> dict[str, Field]:
        """The schema, but for ``label``."""

    def fit(self, schema: Mapping[str, Field]) -> None:
        """Read for a store of this schema; SchemaError if that would lose something."""

    def read(
        self, file: SourceFile, common: Mapping[str, Any], held: HeldLines | None
    ) -> Iterable[tuple[list[dict[str, Any]], int]]:
        """Blocks of samples but those `held`, and the bytes of the file they took."""


class Watcher:
    """What an import tells whoever started it; this one listens to nothing."""

    def begin(self, phase: str, files: int, nbytes: int) -> None:
        """A phase starts ("headers", "import") that will go over so many files and bytes."""

    def advance(self, files: int, nbytes: int) -> None:
        """So many more of them are done."""

    def skip(self, skipped: Skipped) -> None:
        """A file was passed over."""

    def note(self, message: str) -> None:
        """Something worth knowing that is no error."""

    def stopping(self) -> bool:
        """Whether to commit what is whole and stop; asked often."""
        return False


@dataclass(slots=True)
class ImportReport:
    """What an import did.

    Attributes
    ----------
    kind
        "audio", "image" or "text".
    files, samples, nbytes
        Files imported, the samples they became, and the size of the files.
    already
        Files passed over because the store held them.
    skipped
        Files that could not be read.
    stopped
        Whether the watcher stopped it before the end.
    version
        Of the store afterwards; None where it stopped before there was a store.
    """

    kind: str
    files: int = 0
    samples: int = 0
    nbytes: int = 0
    already: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    stopped: bool = False
    version: int | None = None


def import_folder(
    folder: str | os.PathLike[str],
    corpus: str | os.PathLike[str],
    *,
    kind: str = "auto",
    append: bool = False,
    per: str = "line",
    mode: str = "RGB",
    suffixes: Collection[str] = (),
    profile: str = "balanced",
    commit_every: int | str = "64MB",
    watcher: Watcher | None = None,
) -> ImportReport:
    """Import the files below `folder` to the store `corpus`.

    Each sample has a ``path`` relative to `folder`, and where `folder` has subfolders a
    ``label``, the folder that the file lies in.

    Parameters
    ----------
    folder
        The folder, or a single file.
    corpus
        The store to make.
    kind
        "audio", "image", "text", or "auto": the one with the most files.
    append
        Add to the store where there is one, passing over paths that it holds, and of text by line
        over the lines that it holds: this resumes an import that was cut off. A file with other
        text than the store holds by its path is skipped.
    per
        For text: a sample a "line" or a "file".
    mode
        For images: "RGB", "RGBA" or "L".
    suffixes
        Take the files with these suffixes in place of the kind's own.
    profile
        Compression of a new store: "fast", "balanced" or "small".
    commit_every
        Decoded bytes after which to commit; every 30 seconds at the latest.
    watcher
        Is told what goes on, and may stop it.

    Raises
    ------
    ConflictError
        `corpus` exists and `append` is false.
    SchemaError
        The samples do not fit the store to append to.
    UsageError
        There is nothing to import, or an argument makes no sense.
    """
    source, target = as_path(folder), as_path(corpus)
    watch = watcher if watcher is not None else Watcher()
    limit = parse_bytes(commit_every, what="commit_every")
    if limit < 1:
        raise UsageError("commit_every must be at least 1 byte")
    if isinstance(suffixes, str):
        raise UsageError(f"suffixes is a list, such as [{suffixes!r}]")
    taken = frozenset(s.lower() if s.startswith(".") else f".{s.lower()}" for s in suffixes)
    with ExitStack() as stack:
        store = _existing(target, append=append)
        if store is not None:
            stack.enter_context(store)
        kind, files, skipped = _find(source, target, kind, taken, watch)
        report = ImportReport(kind)
        reader = _reader(kind, per=per, mode=mode)
        held = _held(store, reader)
        todo = [file for file in files if not (reader.samples_per_file and file.name in held)]
        report.already = len(files) - len(todo)
        for skip in skipped:
            _skip(report, watch, skip)
        todo = _probe(reader, todo, report, watch)
        if todo and not report.stopped:
            if store is None:
                store = stack.enter_context(_create(target, reader, todo, profile))
            labelled = _fit(store, reader, target)
            _write(store, reader, todo, report, watch, held, labelled, limit)
        if store is not None:
            report.version = store.refresh()
    if not (report.stopped or report.files or report.already):
        first = report.skipped[0]
        raise UsageError(
            f"{source}: none of its {len(report.skipped)} {kind} files could be read; "
            f"{first.name}: {first.reason}"
        )
    return report


def _existing(target: Path, *, append: bool) -> Any:
    """The store to append to; None where one is to be made."""
    import raggedstore as rs

    with storage_errors(target, "be looked at"):
        if not is_there(target) or _is_unborn(target):
            return None
    if not append:
        raise ConflictError(f"{target} exists already; to add to it, append (--append)")
    return rs.open(target, mode="a")


def _is_unborn(target: Path) -> bool:
    """Whether `target` is an empty folder, or a store cut off before its first version."""
    if not target.is_dir() or target.is_symlink():
        return False
    if not {entry.name for entry in target.iterdir()} <= {"versions", "segments"}:
        return False
    return not any(target.glob("segments/*")) and not any(target.glob("versions/[0-9]*.json"))


def _find(
    source: Path, target: Path, kind: str, suffixes: frozenset[str], watch: Watcher
) -> tuple[str, list[SourceFile], list[Skipped]]:
    wanted = "audio, image or text" if kind == "auto" else kind
    if kind != "auto":
        if kind not in KINDS:
            raise UsageError(f"kind must be one of {', '.join(KINDS)} or auto, got {kind!r}")
        files, skipped = find_files(source, suffixes or KINDS[kind], leave_out=target)
    else:
        every = frozenset().union(*KINDS.values())
        files, skipped = find_files(source, suffixes or every, leave_out=target)
        counts = {name: sum(_is(f.name, own) for f in files) for name, own in KINDS.items()}
        kind = max(counts, key=lambda name: counts[name])
        if files and not counts[kind]:
            raise UsageError(f"{source}: its kind is not known: say --kind audio, image or text")
        for name, count in counts.items():
            if count and name != kind:
                watch.note(f"{kind} files are imported; {count} {name} files are left out")
        others = every - KINDS[kind]  # what is of no kind was asked for
        files = [file for file in files if not _is(file.name, others)]
        skipped = [skip for skip in skipped if not _is(skip.name, others)]
    if not files and not skipped:
        raise UsageError(f"{source}: no {wanted} files in it")
    return kind, files, skipped


def _is(name: str, suffixes: Collection[str]) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes


def _reader(kind: str, *, per: str, mode: str) -> Reader:
    if kind == "audio":
        return audio.AudioReader()
    if kind == "image":
        return image.ImageReader(mode)
    return text.TextReader(per)


def _held(store: Any, reader: Reader) -> dict[str, HeldLines | None]:
    """The paths that the store holds; of a text by line with the lines that it holds."""
    held: dict[str, HeldLines | None] = {}
    if store is None or "path" not in store.schema:
        return held
    by_line = not reader.samples_per_file and "line" in store.schema
    for start in range(0, len(store), _PATHS_AT_ONCE):
        block = slice(start, start + _PATHS_AT_ONCE)
        paths = store["path"][block]
        if not by_line:
            held.update(dict.fromkeys(paths))
            continue
        numbers, at = store["line"].batch(block), 0
        for path, run in itertools.groupby(paths):
            count = sum(1 for _ in run)
            lines = held.setdefault(path, HeldLines(store["text"]))
            assert lines is not None
            lines.add(numbers[at : at + count], start + at)
            at += count
    return held


def _skip(report: ImportReport, watch: Watcher, skipped: Skipped) -> None:
    report.skipped.append(skipped)
    watch.skip(skipped)


def _probe(
    reader: Reader, files: list[SourceFile], report: ImportReport, watch: Watcher
) -> list[SourceFile]:
    """Show every file to the reader; those that it can read."""
    good: list[SourceFile] = []
    watch.begin("headers", len(files), 0)
    for file, probed in _in_order(reader.probe, files):
        if watch.stopping():
            report.stopped = True
            break
        if isinstance(probed, Unreadable):
            _skip(report, watch, Skipped(file.name, str(probed)))
        else:
            reader.take(probed)
            good.append(file)
        watch.advance(1, 0)
    return good


def _create(target: Path, reader: Reader, files: Sequence[SourceFile], profile: str) -> Any:
    import raggedstore as rs

    fields = reader.fields()
    if any(file.label for file in files):
        fields["label"] = Field("str")
    return rs.create(target, fields, profile=profile)


def _fit(store: Any, reader: Reader, target: Path) -> bool:
    """Check that samples of `reader` fit `store`; whether it has labels."""
    wanted = reader.fields()
    present = set(store.schema) - {"label"}
    if present != set(wanted):
        raise SchemaError(
            f"{target} has the fields {', '.join(store.schema)}, and {reader.kind} files give "
            f"{', '.join(wanted)}: import them to a corpus of their own"
        )
    reader.fit(store.schema)
    labelled = "label" in store.schema
    for name in [*wanted, "label"][1:]:
        if name in store.schema and store.schema[name] != wanted.get(name, Field("str")):
            raise SchemaError(
                f"{target} holds {name} as {store.schema[name]}, not {wanted.get(name, 'str')}"
            )
    return labelled


def _write(
    store: Any,
    reader: Reader,
    files: list[SourceFile],
    report: ImportReport,
    watch: Watcher,
    held: Mapping[str, HeldLines | None],
    labelled: bool,
    limit: int,
) -> None:
    """Append the files' samples in order, and commit every `limit` bytes or 30 seconds."""

    def read(file: SourceFile) -> Iterable[tuple[list[dict[str, Any]], int]]:
        common = {"path": file.name, "label": file.label} if labelled else {"path": file.name}
        return reader.read(file, common, held.get(file.name))

    watch.begin("import", len(files), sum(file.nbytes for file in files))
    with store.writer() as writer:
        pending, due = 0, time.monotonic() + COMMIT_SECONDS
        for file, blocks in _in_order(read, files):
            before = report.samples
            try:
                if isinstance(blocks, Unreadable):
                    raise blocks
                for samples, nbytes in blocks:
                    writer.extend(samples)
                    report.samples += len(samples)
                    report.nbytes += nbytes if samples else 0
                    watch.advance(0, nbytes)
                    pending += sum(map(_nbytes, samples))
                    if pending >= limit or (pending and time.monotonic() >= due):
                        writer.commit()
                        pending, due = 0, time.monotonic() + COMMIT_SECONDS
                    if watch.stopping():
                        break
            except (Unreadable, SampleError) as error:
                _skip(report, watch, Skipped(file.name, str(error)))
                watch.advance(1, file.nbytes)
            else:
                if report.samples == before and file.name in held:
                    report.already += 1
                else:
                    report.files += 1
                watch.advance(1, 0)
            if watch.stopping():
                report.stopped = True
                break


def _nbytes(sample: Mapping[str, Any]) -> int:
    values = sample.values()
    return sum(v.nbytes if isinstance(v, (np.ndarray, np.generic)) else len(v) for v in values)


def _in_order(
    work: Callable[[SourceFile], T], files: Iterable[SourceFile]
) -> Iterator[tuple[SourceFile, T | Unreadable]]:
    """`work` on each file, in a few threads and a little ahead, given back in order."""
    workers = min(4, len(os.sched_getaffinity(0)))
    queue: deque[tuple[SourceFile, Future[T]]] = deque()

    def first() -> tuple[SourceFile, T | Unreadable]:
        file, future = queue.popleft()
        try:
            return file, future.result()
        except Unreadable as error:
            return file, error

    pool = ThreadPoolExecutor(workers, thread_name_prefix="raggedstore-import")
    try:
        for file in files:
            queue.append((file, pool.submit(work, file)))
            if len(queue) > 2 * workers:
                yield first()
        while queue:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
