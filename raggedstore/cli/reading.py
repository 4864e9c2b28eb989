"""`info`, `ls`, `head` and `show`: what a store is and what it holds."""

from __future__ import annotations

import os
from typing import Any

import click
import numpy as np

import raggedstore as rs
from raggedstore.cli.opening import CORPUS, opened
from raggedstore.cli.output import plain, print_json, print_table, summary, value_text, when
from raggedstore.cli.saving import MAX_RATE, save
from raggedstore.errors import UnknownFieldError
from raggedstore.schema import Field
from raggedstore.units import format_bytes

__all__ = ["head", "info", "ls", "show"]

_BLOCK = 1024


@click.command()
@CORPUS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(corpus: str, as_json: bool) -> None:
    """Say what a store is: version, size, fields.

    \b
    Examples:
      raggedstore info corpus
      raggedstore info corpus --json
    """
    with opened(corpus) as store:
        last = store.manifest if isinstance(store, rs.Store) else None
        kept = len(store.versions()) if isinstance(store, rs.Store) else 0
        if isinstance(store, rs.Store):
            nbytes = store.nbytes
        else:
            nbytes = int(store.sizes(np.arange(len(store))).sum())
        stored = store.nbytes_stored if isinstance(store, rs.Store) else os.path.getsize(corpus)
        metadata = store.metadata if isinstance(store, rs.Store) else {}
        facts = {
            "path": corpus,
            "version": last.version if last is not None else None,
            "versions": kept,
            "time": last.time if last is not None else None,
            "samples": len(store),
            "segments": last.segment_count if last is not None else None,
            "nbytes": nbytes,
            "nbytes_stored": stored,
            "fields": {
                name: _describe(field) | _stored_as(store, name)
                for name, field in store.schema.items()
            },
            "metadata": metadata,
        }
        if as_json:
            print_json(facts)
            return
        ratio = f" ({stored / nbytes:.0%})" if nbytes else ""
        rows: list[tuple[str, object]] = [("path", corpus)]
        if last is not None:
            rows.append(("version", f"{last.version} of {when(last.time)}, {kept} kept"))
        rows.append(("samples", len(store)))
        if last is not None:
            rows.append(("segments", last.segment_count))
        rows.append(("size", f"{format_bytes(nbytes)} in {format_bytes(stored)} on disk{ratio}"))
        for name, field in store.schema.items():
            how = _stored_as(store, name).get("compression", "")
            rows.append((f"field {name}", f"{_text(field)}{how and f', {how}'}"))
        rows += [(f"metadata {key}", value) for key, value in metadata.items()]
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            click.echo(f"{plain(name):<{width}}  {plain(value)}")


def _stored_as(store: Any, name: str) -> dict[str, str]:
    """How a field is compressed; of a single file nothing may be known."""
    choice = store.compression[name]
    if not choice:
        return {}
    if isinstance(store, rs.Store) and isinstance(choice, str):
        return {"compression": f"{choice}, to be chosen when there is more data"}
    return {"compression": str(choice)}


def _describe(field: Field) -> dict[str, Any]:
    if field.kind != "array":
        return {"dtype": field.kind}
    return {"dtype": field.dtype.name, "shape": list(field.shape)}


def _text(field: Field) -> str:
    """A field's dtype and shape: ``int16 (ragged, 2)``."""
    if field.kind != "array":
        return field.kind
    sizes = ", ".join("ragged" if size is None else str(size) for size in field.shape)
    return f"{field.dtype.name} ({sizes})" if field.shape else field.dtype.name


@click.command()
@CORPUS
def ls(corpus: str) -> None:
    """List the samples, one a line.

    The index, then each field, separated by tabs. Of arrays the shape alone is shown and
    read.

    \b
    Examples:
      raggedstore ls corpus | grep speaker_07
      raggedstore ls corpus | head
    """
    with opened(corpus) as store:
        shown = [n for n, f in store.schema.items() if f.kind != "array" or f.shape == ()]
        click.echo("\t".join(["index", *store.schema]))
        for start in range(0, len(store), _BLOCK):
            stop = min(start + _BLOCK, len(store))
            positions = np.arange(start, stop)
            columns = {}
            for name, field in store.schema.items():
                if name in shown:
                    values = store[name][start:stop]
                    columns[name] = [summary(value, field) for value in values]
                else:
                    shapes = store.read_shapes(name, positions).tolist()
                    columns[name] = ["×".join(map(str, shape)) for shape in shapes]
            rows = zip(map(str, range(start, stop)), *columns.values(), strict=True)
            click.echo("\n".join("\t".join(row) for row in rows))


@click.command()
@CORPUS
@click.option("-n", "count", type=click.IntRange(min=0), default=5, show_default=True)
def head(corpus: str, count: int) -> None:
    """Show the first samples in short.

    Of arrays the shape and the range of values, of text the beginning.

    \b
    Example:
      raggedstore head corpus -n 3
    """
    with opened(corpus) as store:
        rows = (
            [i, *(summary(value, store.schema[name]) for name, value in store[i].items())]
            for i in range(min(count, len(store)))
        )
        print_table(["index", *store.schema], rows, right="r")


@click.command(context_settings={"ignore_unknown_options": True})
@CORPUS
@click.argument("index", type=int)
@click.option(
    "--save", "target", type=click.Path(dir_okay=False), help="Write one field to a file."
)
@click.option("--field", "name", help="Which field; by default one that suits the file.")
@click.option(
    "--rate", type=click.IntRange(1, MAX_RATE), help="Sample rate, where no field holds it."
)
def show(corpus: str, index: int, target: str | None, name: str | None, rate: int | None) -> None:
    """Show one sample in full, or save it.

    A negative INDEX counts from the end. --save goes by the suffix: .png and other pictures,
    .wav or .flac, .txt, .npy.

    \b
    Examples:
      raggedstore show corpus -1
      raggedstore show corpus 17 --save 17.wav
      raggedstore show corpus 17 --field mel --save mel.npy
    """
    with opened(corpus) as store:
        sample = store[index]
        if target is not None:
            chosen = save(sample, store.schema, target, name=name, rate=rate)
            click.echo(f"{plain(chosen)} of sample {index} saved to {plain(target)}")
            return
        if name is not None and name not in store.schema:
            raise UnknownFieldError(f"no field {name!r}; the fields are {', '.join(store.schema)}")
        for each, field in store.schema.items():
            if name not in (None, each):
                continue
            value = sample[each]
            shape = f" {value.shape}" if field.kind == "array" and field.shape else ""
            click.echo(f"{each}: {field.kind if field.kind != 'array' else field.dtype}{shape}")
            click.echo("  " + value_text(value, field).replace("\n", "\n  "))
