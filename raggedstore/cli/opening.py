"""Opening what a command names, and letting go of it when the command is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

import raggedstore as rs
from raggedstore.errors import UsageError

if TYPE_CHECKING:
    from raggedstore.interop.single import SingleFile

__all__ = ["CORPUS", "opened", "opened_store"]

CORPUS = click.argument("corpus", type=click.Path())


@contextmanager
def opened(corpus: str) -> Iterator[rs.Store | SingleFile]:
    """The store in a folder, or a single file, to read."""
    samples = rs.open(corpus)
    try:
        yield samples
    finally:
        if isinstance(samples, rs.Store):
            samples.close()


@contextmanager
def opened_store(corpus: str, mode: str = "r") -> Iterator[rs.Store]:
    """The store in a folder; UsageError for a single file, which has no versions."""
    if os.path.isfile(corpus):
        raise UsageError(f"{corpus} is a single file: only a store's folder has versions")
    store = rs.open(corpus, mode=mode)
    assert isinstance(store, rs.Store)
    with store:
        yield store
