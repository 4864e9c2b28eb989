"""The `raggedstore` command.

Exit status: 0; 1 where the store has faults; 2 for a mistake in the call or in what it was
given; 128 + n where signal n stopped it. Every error is one line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from raggedstore import __version__, kernel
from raggedstore.cli.bench import bench
from raggedstore.cli.importing import import_command
from raggedstore.cli.keeping import compact, export, log, repair, vacuum, verify
from raggedstore.cli.output import one_line
from raggedstore.cli.reading import head, info, ls, show
from raggedstore.cli.stats import stats
from raggedstore.errors import CorruptionError, FormatError, RaggedStoreError

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    f"{__version__}, {'with' if kernel.is_there() else 'without'} its compiled kernel",
    message="%(prog)s %(version)s",
)
def cli() -> None:
    """Variable-length samples on disk: import, look at, check and keep stores.

    \b
    Examples:
      raggedstore import recordings/ corpus
      raggedstore info corpus
      raggedstore show corpus 17 --save 17.wav
      raggedstore verify corpus
    """


for _command in (
    import_command,
    info,
    ls,
    head,
    show,
    stats,
    log,
    verify,
    repair,
    compact,
    vacuum,
    export,
    bench,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status.

    Parameters
    ----------
    arguments
        Of the command line; by default those of the process.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # to the end of the process
        with suppress(AttributeError):  # what a terminal cannot show is no reason to end
            getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        # Not cli.main: it would end the process by itself when a pipe breaks.
        args = list(sys.argv[1:] if arguments is None else arguments)
        with cli.make_context("raggedstore", args) as context:
            status = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _usage(error)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has enough of it; nor may the flush at exit complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (CorruptionError, FormatError) as error:
        return _fail(str(error), 1)
    except RaggedStoreError as error:
        return _fail(str(error), 2)
    except MemoryError as error:
        return _fail(f"not enough memory: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(where + (error.strerror or str(error)), 2)
    return status if isinstance(status, int) else 0


def _usage(error: click.ClickException) -> int:
    no_arguments = getattr(click.exceptions, "NoArgsIsHelpError", None)
    if no_arguments is not None and isinstance(error, no_arguments):
        error.show()
        return 2
    context = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    return _fail(error.format_message() + hint, 2)


def _fail(message: str, status: int) -> int:
    print(f"raggedstore: error: {one_line(message)}", file=sys.stderr)
    return status
