"""`raggedstore import`: a folder to a store, with progress, and safe to interrupt.

The first SIGINT or SIGTERM asks the import to commit what is whole and stop; a second one
kills at once, which is safe too: the last commit stands.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from raggedstore.cli.output import plain
from raggedstore.interop.folders import ImportReport, Watcher, import_folder
from raggedstore.interop.image import MODES
from raggedstore.interop.scan import Skipped
from raggedstore.units import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

__all__ = ["import_command"]


@click.command("import")
@click.argument("folder", type=click.Path(exists=True))
@click.argument("corpus", type=click.Path())
@click.option(
    "--kind",
    type=click.Choice(["auto", "audio", "image", "text"]),
    default="auto",
    show_default=True,
    help="What to import; auto: of which there are most files.",
)
@click.option("--append", is_flag=True, help="Add to CORPUS if it exists; resumes an import.")
@click.option(
    "--per",
    type=click.Choice(["line", "file"]),
    default="line",
    show_default=True,
    help="Text: what becomes a sample.",
)
@click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    default="RGB",
    show_default=True,
    help="Images: what each is converted to.",
)
@click.option(
    "--suffix",
    "suffixes",
    multiple=True,
    metavar=".EXT",
    help="Take files with this suffix, in place of the kind's usual ones (may be repeated).",
)
@click.option(
    "--profile",
    type=click.Choice(["fast", "balanced", "small"]),
    default="balanced",
    show_default=True,
    help="Compression of a new corpus.",
)
@click.option(
    "--commit-every",
    default="64MB",
    show_default=True,
    metavar="SIZE",
    help="Commit after so many decoded bytes (and every 30 seconds).",
)
def import_command(folder: str, corpus: str, append: bool, **options: Any) -> int:
    """Make a store of a folder of files.

    Imports the recordings, pictures or text files below FOLDER to CORPUS: one sample a file
    (text: a line), in the order of the paths. Fields: `audio` and `sample_rate`, `image`, or
    `text` and `line` (counted from 1); with each the `path` relative to FOLDER, and its
    folder as `label` where FOLDER has subfolders. Values are those that soundfile and pillow
    read. Files that cannot be read are named, counted and skipped. FOLDER may be a single
    file.

    It may be interrupted at any time: run it again with --append, and it goes on with the
    files whose path is not in CORPUS yet, and with the lines of a text that are not.

    \b
    Examples:
      raggedstore import recordings/ corpus
      raggedstore import recordings/ corpus --append
      raggedstore import photos/ pictures --mode L --profile small
      raggedstore import book.txt book --per line
    """
    started = time.monotonic()
    with ExitStack() as stack:
        stop = stack.enter_context(_Signals())
        # Pillow warns of odd files on stderr, between the lines of the progress bar.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"PIL\.")
        watcher = stack.enter_context(_watcher(stop))
        report = import_folder(folder, corpus, append=append, watcher=watcher, **options)
    _print_report(report, corpus, time.monotonic() - started)
    if not report.stopped:
        return 0
    command = ["raggedstore", "import", folder, corpus, "--kind", report.kind, "--append"]
    click.echo(
        f"raggedstore: stopped by {signal.Signals(stop.received).name}; what was imported is "
        f"committed; to go on: {plain(shlex.join(command + _changed(options)))}",
        err=True,
    )
    return 128 + stop.received


def _changed(options: dict[str, Any]) -> list[str]:
    """Those options that the import has to be resumed with."""
    names = ("per", "mode", "profile", "commit_every")
    again = [f"--{name.replace('_', '-')}={options[name]}" for name in names if _given(name)]
    return again + [f"--suffix={suffix}" for suffix in options["suffixes"]]


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _print_report(report: ImportReport, corpus: str, seconds: float) -> None:
    rate = report.nbytes / max(seconds, 1e-9)
    parts = [
        f"{report.files} files ({format_bytes(report.nbytes)}) imported as "
        f"{report.samples} samples in {seconds:.1f} s, {format_bytes(rate)}/s"
    ]
    if report.already:
        parts.append(f"{report.already} there already")
    if report.skipped:
        parts.append(f"{len(report.skipped)} not readable and skipped")
    if report.version is not None:
        parts.append(f"{plain(corpus)} is at version {report.version}")
    click.echo("; ".join(parts))


class _Signals:
    """While entered, the first SIGINT or SIGTERM is noted and the second kills."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the caller's handlers stay
                break
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)


class _Lines(Watcher):
    """Names skipped files on stderr; shows no progress."""

    def __init__(self, stop: _Signals) -> None:
        self._stop = stop

    def skip(self, skipped: Skipped) -> None:
        self.note(f"skipped {skipped.name}: {skipped.reason}")

    def note(self, message: str) -> None:
        click.echo(f"raggedstore: {plain(message)}", err=True)

    def stopping(self) -> bool:
        return self._stop.received != 0


class _Bar(_Lines):
    """A progress bar on stderr besides."""

    def __init__(self, stop: _Signals, progress: Progress) -> None:
        super().__init__(stop)
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, phase: str, files: int, nbytes: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            "reading headers" if phase == "headers" else "importing",
            total=nbytes or files,
            by_bytes=bool(nbytes),
            done=0,
            files=files,
        )

    def advance(self, files: int, nbytes: int) -> None:
        assert self._task is not None
        task = self._progress.tasks[0]
        step = nbytes if task.fields["by_bytes"] else files
        self._progress.update(self._task, advance=step, done=task.fields["done"] + files)

    def note(self, message: str) -> None:
        self._progress.console.print(
            f"raggedstore: {plain(message)}", markup=False, highlight=False, soft_wrap=True
        )


@contextmanager
def _watcher(stop: _Signals) -> Iterator[Watcher]:
    if not sys.stderr.isatty():
        yield _Lines(stop)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            seconds = task.elapsed or 0.0
            if not seconds:
                return Text("")
            rate = f"{task.fields['done'] / seconds:.0f} files/s"
            if task.fields["by_bytes"]:
                rate += f"  {format_bytes(task.completed / seconds)}/s"
            return Text(rate)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[done]}/{task.fields[files]}", table_column=Column(no_wrap=True)),
        Rate(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(stop, progress)
