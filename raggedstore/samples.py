"""What everything that holds samples has in common: a store, a selection, several stores.

A subclass says how many samples it has and reads the fields of given positions; indexing,
batches, iteration, views and statistics are made of that here, so that they mean the same
everywhere.
"""

from __future__ import annotations

import functools
import itertools
import os
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from raggedstore import splits, statistics
from raggedstore.batch import RaggedBatch, offsets_of, scatter
from raggedstore.distribution import edges_of, ranks_of
from raggedstore.errors import CorruptionError, SchemaError, UsageError, VersionError
from raggedstore.indexing import (
    Positions,
    as_position,
    as_positions,
    is_single,
    runs_of,
    split_by_part,
)
from raggedstore.moments import Moments
from raggedstore.schema import Field, Schema
from raggedstore.statistics import Stats

__all__ = [
    "Concatenation",
    "FieldView",
    "Growing",
    "Part",
    "Samples",
    "Selection",
    "Stats",
    "concat",
]

Column = RaggedBatch | npt.NDArray[Any]

_BLOCK_BYTES = 2**24
_BLOCK_SAMPLES = 4096
_BLOCK_KEYS = 2**17


class Samples(ABC):
    """A sequence of samples: index it like a list, or by field name."""

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """The fields of every sample."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def _now(self) -> Samples:
        """These, or what they stand for until they are refreshed."""
        return self

    @abstractmethod
    def read(self, name: str, positions: Positions) -> Column:
        """The field `name` of the samples at the checked `positions`.

        Returns
        -------
        RaggedBatch of a ragged field (text as its bytes), (k, ...) ndarray of any other.
        """

    @abstractmethod
    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        """(k, d) shapes of the field `name` at the checked `positions`, without its data."""

    @abstractmethod
    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        """Rows ``[start, stop)``, cut to its length, of the ragged field `name` of each sample."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's metadata, where there is any; what stores side by side agree in."""
        return {}

    @property
    def moved(self) -> int:
        """How many repairs have cut samples out, so that those after them have other positions."""
        return 0

    @property
    def concurrent(self) -> bool:
        """Whether two threads that read at once are faster than one after the other."""
        return False

    @property
    def copies(self) -> int:
        """How many times what is read is in memory, at most, while it is read."""
        return 1

    def read_one(self, name: str, position: int) -> Any:
        """The field `name` of one sample: an array of its own shape, or a scalar."""
        column = self.read(name, np.array([position], np.int64))
        return column[0]

    def __getitem__(self, key: Any) -> Any:
        """A field by name, a sample by int, or a list of samples by slice, list or mask.

        A sample is a dict of arrays: ``str`` for text, a NumPy scalar for a scalar.
        """
        if isinstance(key, str):
            return FieldView(self, key)
        if is_single(key):
            position = as_position(key, len(self))
            return {n: present_one(f, self.read_one(n, position)) for n, f in self.schema.items()}
        return self._rows(as_positions(key, len(self)))

    def _rows(self, positions: Positions) -> list[dict[str, Any]]:
        columns = {n: present_list(f, self.read(n, positions)) for n, f in self.schema.items()}
        names = list(columns)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for block in self.blocks(range(len(self))):
            yield from self._rows(block)

    def batch(self, key: Any) -> dict[str, Any]:
        """The samples of a slice, list or mask as one array a field.

        Returns
        -------
        dict of RaggedBatch for a ragged field, ndarray for any other, list for text.
        """
        positions = as_positions(key, len(self))
        return {n: present(f, self.read(n, positions)) for n, f in self.schema.items()}

    def select(self, indices: Any = None, *, fields: Sequence[str] | None = None) -> Selection:
        """A view of some samples, or some fields, or both: nothing is read or copied."""
        if isinstance(fields, str) or not isinstance(fields, (Iterable, NoneType)):
            raise UsageError(f"fields is a list of names, such as ['audio'], not {fields!r}")
        positions = None if indices is None else as_positions(indices, len(self))
        return Selection(self, positions, None if fields is None else tuple(fields))

    def split(
        self,
        parts: Mapping[str, float | int | None],
        *,
        seed: int = 0,
        by: Any = None,
        group: Any = None,
        among: int | None = None,
    ) -> dict[str, Part]:
        """Each sample in one part at most, such as "train" and "valid", once and for good.

        What part a sample is in never changes when samples are appended, and is the same on every
        machine: it depends on the parts, the seed, and its position here (in a selection or
        concatenation: the position within it).

        Parameters
        ----------
        parts
            What to call each part, and how large it is. Either fractions, floats of 0.000001 to
            1.0 that come to 1.0 at most; or counts, ints. One may be None: all the rest. What the
            parts leave over is in none of them. Names matter, their order does not.
        seed
            Another seed, another split: an int of 64 bits.
        by
            Stratify: each class is split in proportion, as if it were a store of its own. The name
            of a field of integers, bools, str or bytes, or (n,) keys. Of a class too small to have
            a sample in every part, each sample is in one with the probability of its fraction.
        group
            Keep samples of one key, such as a speaker, in one part; keys as for `by`. A key is in
            the same part in every store. The fractions hold for keys, and on average: with a
            hundred keys or fewer look at what came out. Not with `by`, nor with counts.
        among
            Draw counts among this many of the first samples; those that come after are the
            rest. By default as many as the counts come to. Needed where one is None: nothing drawn
            among all the samples of today could stay when there are more tomorrow.

        Returns
        -------
        dict of Part, in the order of `parts`, each with its samples in the order they have here.
        A part of a store takes in what was appended since by its `refresh`.

        Examples
        --------
        >>> parts = store.split({"train": 0.9, "valid": 0.1}, by="label")
        >>> parts = store.split({"train": None, "valid": 1000}, among=50_000)
        """
        rule = _Split(parts, seed, by, group, among)
        return {name: Part(self, chosen, rule, name) for name, chosen in rule.of(self).items()}

    def to_npy(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Write all samples into a new folder of .npy files, which appears whole or not at all.

        A field of fixed shape becomes ``<field>.npy``, a sample a row; any other
        ``<field>.values.npy``, all samples flattened, with ``<field>.offsets.npy`` and, where a
        length does not say it all, ``<field>.shapes.npy``. `from_npy` opens the folder again.

        Raises
        ------
        ConflictError
            Something is there already.
        """
        from raggedstore.interop import npy

        npy.to_npy(self, path, progress=progress)

    def _keys(self, keys: Any, what: str) -> npt.NDArray[np.uint64]:
        """(n,) hashes of the keys given, or of the values of the field named."""
        if not isinstance(keys, str):
            hashes = splits.hash_keys(keys, what=what)
            if len(hashes) != len(self):
                raise UsageError(f"{what} has {len(hashes)} keys for {len(self)} samples")
            return hashes
        field = self.schema[keys]
        if field.kind == "array" and (field.shape or field.dtype.kind not in "biu"):
            raise UsageError(
                f"{what}={keys!r}: a field of integers, bools, str or bytes is meant, not {field!r}"
            )
        # The bytes of a text say as much as the text.
        shown = field if field.kind == "array" else Field("bytes")
        hashes, done = np.empty(len(self), np.uint64), 0
        only = self.select(fields=[keys])
        for block in only.blocks(range(len(self)), max_samples=_BLOCK_KEYS):
            values = present(shown, only.read(keys, block))
            hashes[done : done + len(block)] = splits.hash_keys(values, what=what)
            done += len(block)
        return hashes

    def sizes(self, positions: Positions) -> npt.NDArray[np.int64]:
        """(k,) bytes of the values of each of the samples at `positions`, no data read."""
        sizes = np.zeros(len(positions), np.int64)
        for name, field in self.schema.items():
            sizes += self.read_shapes(name, positions).prod(axis=1) * field.dtype.itemsize
        return sizes

    def moments(self, name: str, axes: statistics.Axes, *, skipna: bool) -> Moments:
        """The moments of the field `name` of all samples, over the dimensions `axes` of each.

        `FieldView.stats` says what they are for.
        """
        return statistics.moments_of(self, name, range(len(self)), axes, skipna=skipna)

    def blocks(
        self,
        positions: Positions | range,
        *,
        max_bytes: int = _BLOCK_BYTES,
        max_samples: int = _BLOCK_SAMPLES,
    ) -> Iterator[Positions]:
        """`positions` in runs that decode to at most `max_bytes` (or are one sample each)."""
        for run in runs_of(positions, max_samples):
            total = offsets_of(self.sizes(run))
            start = 0
            while start < len(run):
                stop = int(np.searchsorted(total, total[start] + max_bytes, "right")) - 1
                stop = max(stop, start + 1)
                yield run[start:stop]
                start = stop


class FieldView:
    """One field of a store or view: index it like a list of arrays."""

    def __init__(self, samples: Samples, name: str) -> None:
        self.field: Field = samples.schema[name]
        self.name = name
        self._samples = samples
        self._is_array = self.field.kind == "array"

    def __len__(self) -> int:
        return len(self._samples)

    def __repr__(self) -> str:
        return f"<field {self.name!r} of {len(self)} samples: {self.field!r}>"

    def __getitem__(self, key: Any) -> Any:
        """One sample's value by int; a list of values by slice, list or mask."""
        if type(key) is int or is_single(key):
            samples = self._samples._now
            value = samples.read_one(self.name, as_position(key, len(samples)))
            return value if self._is_array else present_one(self.field, value)
        positions = as_positions(key, len(self))
        return present_list(self.field, self._samples.read(self.name, positions))

    def __iter__(self) -> Iterator[Any]:
        for block in self._blocks():
            yield from present_list(self.field, self._samples.read(self.name, block))

    def _blocks(self) -> Iterator[Positions]:
        only = self._samples.select(fields=[self.name])
        return only.blocks(range(len(self)))

    def batch(self, key: Any) -> Any:
        """The values of a slice, list or mask as one RaggedBatch (ndarray, list for text)."""
        positions = as_positions(key, len(self))
        return present(self.field, self._samples.read(self.name, positions))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the stored values."""
        return self.field.dtype

    @property
    def shapes(self) -> npt.NDArray[np.int64]:
        """(n, d) int64 shape of each sample, read without its data (text: its bytes)."""
        shapes = np.empty((len(self), self.field.ndim), np.int64)
        for run, some in self._shapes():
            shapes[run] = some
        return shapes

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) int64 first dimension of each sample (1 for scalars, text: its bytes)."""
        lengths = np.ones(len(self), np.int64)
        for run, some in self._shapes() if self.field.ndim else ():
            lengths[run] = some[:, 0]
        return lengths

    def _shapes(self) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
        """The shapes of some samples, one after another, and which they are."""
        for run in runs_of(range(len(self)), _BLOCK_KEYS):
            yield slice(run[0], run[-1] + 1), self._samples.read_shapes(self.name, run)

    def crop(self, indices: Any, starts: npt.ArrayLike, stops: npt.ArrayLike) -> RaggedBatch:
        """Windows of samples along their first dimension.

        Parameters
        ----------
        indices
            (k,) which samples.
        starts, stops
            (k,) the rows of each, or an int for all of them, as in a slice without negative
            bounds: cut to the sample's length.

        Raises
        ------
        OutOfRangeError, KeyTypeError
            An index is none.
        UsageError
            A start or a stop is none, or the field has nothing to crop.
        """
        if not self.field.is_ragged or self.field.kind == "str":
            raise UsageError(f"field {self.name!r} has no ragged dimension to crop")
        positions = as_positions(indices, len(self))
        low, high = _ends(starts, positions, "starts"), _ends(stops, positions, "stops")
        return self._samples.read_windows(self.name, positions, low, high)

    def stats(self, axis: int | tuple[int, ...] | None = None, *, skipna: bool = False) -> Stats:
        """Count, sum, mean, standard deviation and extremes of all values, read once.

        Means and deviations are taken in float64. A store keeps what it has read for each of its
        segments, so that after an append only the new data is read; opened with ``mode="a"`` it
        keeps that on the disk too.

        Parameters
        ----------
        axis
            Which dimensions of a sample to go over; by default all. Those left are of fixed size
            and each place in them has statistics of its own: with ``axis=0`` the 80 features of
            samples (None, 80).
        skipna
            Leave NaN out; without, it makes what it is in NaN.

        Examples
        --------
        >>> store["mel"].stats(axis=0).mean.shape
        (80,)
        """
        axes = statistics.axes_of(self.field, self.name, axis)
        moments = self._samples.moments(self.name, axes, skipna=skipna)
        return statistics.Stats.of(moments, self.dtype)

    def histogram(
        self, edges: npt.ArrayLike, axis: int | tuple[int, ...] | None = None
    ) -> npt.NDArray[np.int64]:
        """How many values lie between given edges, as `numpy.histogram` counts them.

        Parameters
        ----------
        edges
            (n + 1,) ascending. An edge belongs to the bin above it, the last one to the last bin.
            Values outside, and NaN, are not counted.
        axis
            As `stats` has it.

        Returns
        -------
        (..., n) of the dimensions that are left and the bins.

        Examples
        --------
        >>> store["mel"].histogram(np.linspace(-4, 4, 81), axis=0).shape
        (80, 80)
        """
        axes = statistics.axes_of(self.field, self.name, axis)
        return statistics.histogram_of(self._samples, self.name, axes, edges_of(edges))

    def quantiles(
        self,
        q: npt.ArrayLike,
        axis: int | tuple[int, ...] | None = None,
        *,
        error: float = 0.002,
        skipna: bool = False,
    ) -> Any:
        """Values that occur, of rank `q` times their number, give or take `error` times it.

        The bound is certain and not only likely, as that of `lazy.quantiles` is; where there are at
        most ``1 / error`` values, it is NumPy's method "inverted_cdf".

        Parameters
        ----------
        q
            From 0 to 1; any shape.
        axis, skipna
            As `stats` has them.
        error
            A tenth of it takes some ten times the memory: with 0.002 up to 1.4 MB for each 10**9
            values, for each place that is left. Where NaN is skipped and several places are left,
            it is a fraction of their number with the absent ones.

        Returns
        -------
        float64 of the shape of `q` and then of the dimensions that are left; a float where there
        are none. NaN where there are no values.

        Examples
        --------
        >>> low, median, high = store["audio"].quantiles([0.05, 0.5, 0.95])
        """
        axes = statistics.axes_of(self.field, self.name, axis)
        wanted, error = ranks_of(q, error)
        found = statistics.quantiles_of(
            self._samples, self.name, axes, wanted, error, skipna=skipna
        )
        return found if found.shape else float(found)


def _ends(given: Any, positions: Positions, what: str) -> Positions:
    """(k,) where windows of the samples at (k,) `positions` begin or end."""
    try:
        ends = np.asarray(given)
    except ValueError:  # of lists of different lengths
        ends = np.empty(0, object)
    ints = ends.dtype.kind in "iu" or ends.shape == (0,) == positions.shape
    if not ints or ends.shape not in ((), positions.shape) or (ends < 0).any():
        raise UsageError(
            f"{what} is a non-negative int, or one for each of {len(positions)} indices, not "
            f"{reprlib.repr(given)}"
        )
    if ends.dtype == np.uint64:
        ends = np.minimum(ends, np.uint64(2**63 - 1))
    return np.broadcast_to(ends.astype(np.int64), positions.shape)


def check_unmoved(samples: Samples, moved: int) -> None:
    """VersionError where samples have other positions than when a view of them was made."""
    if samples.moved != moved:
        raise VersionError(
            f"{samples!r}: since a view of it was made, a repair has cut out samples that were "
            f"lost, and others have moved. Make the view anew"
        )


class Selection(Samples):
    """Some samples, or some fields, of another `Samples`; cheap, picklable, nothing copied."""

    def __init__(
        self, base: Samples, positions: Positions | None, fields: tuple[str, ...] | None
    ) -> None:
        self._base = base
        self._positions = positions
        self._moved = base.moved
        self._schema = base.schema if fields is None else base.schema.only(fields)

    @property
    def schema(self) -> Schema:
        return self._schema

    def __len__(self) -> int:
        return len(self._base) if self._positions is None else len(self._positions)

    def __repr__(self) -> str:
        return f"<Selection of {len(self)} samples, {', '.join(self._schema)}, from {self._base!r}>"

    @property
    def metadata(self) -> dict[str, Any]:
        return self._base.metadata

    @property
    def concurrent(self) -> bool:
        return self._base.concurrent

    @property
    def copies(self) -> int:
        return self._base.copies

    @property
    def moved(self) -> int:
        return self._base.moved

    def _of_base(self, positions: Positions) -> Positions:
        if self._positions is not None:
            check_unmoved(self._base, self._moved)
        return positions if self._positions is None else self._positions[positions]

    def read(self, name: str, positions: Positions) -> Column:
        return self._base.read(name, self._of_base(positions))

    def read_one(self, name: str, position: int) -> Any:
        if self._positions is not None:
            check_unmoved(self._base, self._moved)
            position = int(self._positions[position])
        return self._base.read_one(name, position)

    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        return self._base.read_shapes(name, self._of_base(positions))

    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        return self._base.read_windows(name, self._of_base(positions), starts, stops)

    def moments(self, name: str, axes: statistics.Axes, *, skipna: bool) -> Moments:
        if self._positions is None:  # all of them, and a store may know already
            return self._base.moments(name, axes, skipna=skipna)
        return super().moments(name, axes, skipna=skipna)


@dataclass(frozen=True, slots=True)
class _Split:
    """What `Samples.split` was asked for."""

    parts: Mapping[str, float | int | None]
    seed: int
    by: Any
    group: Any
    among: int | None

    def of(self, samples: Samples) -> dict[str, Positions]:
        """The positions of each part."""
        return splits.split(
            self.parts,
            len(samples),
            seed=self.seed,
            by=None if self.by is None else samples._keys(self.by, "by"),
            group=None if self.group is None else samples._keys(self.group, "group"),
            among=self.among,
        )


class Part(Selection):
    """One part of a split: see `Samples.split`."""

    def __init__(self, base: Samples, positions: Positions, rule: _Split, name: str) -> None:
        super().__init__(base, positions, None)
        self._rule, self._name = rule, name

    def __repr__(self) -> str:
        return f"<Part {self._name!r} of a split: {len(self)} samples of {self._base!r}>"

    def refresh(self) -> int:
        """Move to the store's newest version; its number. Samples that were here stay as they are.

        Raises
        ------
        UsageError
            It is no part of a store, or was split by keys given one by one, which are none for
            samples appended since.
        """
        version = self.check_grows().refresh()
        self._moved = self._base.moved
        self._positions = self._rule.of(self._base)[self._name]
        return version

    def check_grows(self) -> Growing:
        """What this is a part of; UsageError where `refresh` would raise it."""
        base = self._base
        if isinstance(base, Part):
            base.check_grows()
        elif not isinstance(base, Growing):
            raise UsageError(f"only a part of a store can take a newer version: this is {self!r}")
        for keys in (self._rule.by, self._rule.group):
            if keys is not None and not isinstance(keys, str):
                raise UsageError(
                    "a part that was split by keys given one by one can't take a newer version: "
                    "name a field that has them, or split the newer version anew"
                )
        return base


@runtime_checkable
class Growing(Protocol):
    """What can move to a newer version, in which its samples are the first."""

    def refresh(self) -> int:
        """Move to the newest version; its number."""


class Concatenation(Samples):
    """Several stores or views of one schema, one after another."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        if not isinstance(parts, (list, tuple)) or not all(isinstance(p, Samples) for p in parts):
            raise UsageError(f"stores or views are concatenated, in a list, not {parts!r}")
        if not parts:
            raise UsageError("nothing to concatenate")
        for part in parts[1:]:
            if part.schema != parts[0].schema:
                raise SchemaError(
                    f"stores of different schemas: {parts[0].schema!r} and {part.schema!r}"
                )
        self._parts: list[Samples] = list(parts)
        self._starts = offsets_of([len(part) for part in parts])
        self._moved = [part.moved for part in parts]

    @property
    def schema(self) -> Schema:
        return self._parts[0].schema

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def metadata(self) -> dict[str, Any]:
        first, *others = (part.metadata for part in self._parts)
        return {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}

    @property
    def concurrent(self) -> bool:
        return all(part.concurrent for part in self._parts)

    @property
    def copies(self) -> int:
        return max(part.copies for part in self._parts) + (len(self._parts) > 1)

    @property
    def sizes_of_parts(self) -> Positions:
        """(parts,) how many samples each had when they were put side by side, and has here."""
        return np.diff(self._starts)

    @property
    def makeup(self) -> str:
        """What tells it from others of as many samples."""
        return f"parts of {self.sizes_of_parts.tolist()} samples"

    def __repr__(self) -> str:
        return f"<Concatenation of {len(self._parts)} parts, {len(self)} samples>"

    def _part(self, number: int) -> Samples:
        check_unmoved(self._parts[number], self._moved[number])
        return self._parts[number]

    @property
    def moved(self) -> int:
        return sum(part.moved for part in self._parts)

    def read(self, name: str, positions: Positions) -> Column:
        return self._joined(name, positions, lambda part, local, _: part.read(name, local))

    def read_one(self, name: str, position: int) -> Any:
        number = int(np.searchsorted(self._starts, position, "right")) - 1
        return self._part(number).read_one(name, position - int(self._starts[number]))

    def read_windows(
        self, name: str, positions: Positions, starts: Positions, stops: Positions
    ) -> RaggedBatch:
        batch = self._joined(
            name,
            positions,
            lambda part, local, at: part.read_windows(name, local, starts[at], stops[at]),
        )
        assert isinstance(batch, RaggedBatch)
        return batch

    def read_shapes(self, name: str, positions: Positions) -> npt.NDArray[np.int64]:
        shapes = np.empty((len(positions), self.schema[name].ndim), np.int64)
        for number, local, places in split_by_part(self._starts, positions):
            shapes[places] = self._part(number).read_shapes(name, local)
        return shapes

    def _joined(
        self,
        name: str,
        positions: Positions,
        read: Callable[[Samples, Positions, Positions], Column],
    ) -> Column:
        """What `read` gives for each part, its positions and their places, as one column."""
        runs = split_by_part(self._starts, positions)
        pieces = [read(self._part(number), *where) for number, *where in runs]
        return joined(self.schema[name], pieces, [places for _, _, places in runs])

    def moments(self, name: str, axes: statistics.Axes, *, skipna: bool) -> Moments:
        sizes = self.sizes_of_parts.tolist()
        parts = (
            part if len(part) == size else part.select(slice(size))  # it has grown since
            for part, size in zip(map(self._part, range(len(sizes))), sizes, strict=True)
        )
        each = (part.moments(name, axes, skipna=skipna) for part in parts)
        return functools.reduce(Moments.merge, each)


def concat(parts: Sequence[Samples]) -> Concatenation:
    """One store-like view over several stores or views of the same schema, nothing copied."""
    return Concatenation(parts)


def joined(field: Field, pieces: list[Column], places: list[Positions]) -> Column:
    """The samples of all `pieces`, which are taken, in one column: those of each at its places."""
    if len(pieces) == 1:
        return pieces[0]
    count = sum(map(len, places))
    if not field.is_ragged:
        dense: npt.NDArray[Any] = np.empty((count, *(d or 0 for d in field.shape)), field.dtype)
        for piece, at in zip(pieces, places, strict=True):
            dense[at] = piece
        return dense
    sizes, shapes = np.empty(count, np.int64), np.empty((count, field.ndim), np.int64)
    for piece, at in zip(pieces, places, strict=True):
        assert isinstance(piece, RaggedBatch)
        sizes[at], shapes[at] = np.diff(piece.offsets), piece.shapes
    offsets = offsets_of(sizes)
    values = np.empty(int(offsets[-1]), field.dtype)
    while pieces:  # so that each is let go of once it is copied
        piece = pieces.pop()
        assert isinstance(piece, RaggedBatch)
        scatter(piece, offsets[places[len(pieces)]], values)
    return RaggedBatch.trusted(values, offsets, shapes)


def present(field: Field, column: Column) -> Any:
    """A column as `batch` gives it: text as a list of str or bytes, all else as it is."""
    if field.kind == "array":
        return column
    assert isinstance(column, RaggedBatch)
    raw, bounds = column.values.tobytes(), column.offsets.tolist()
    pieces = [raw[a:b] for a, b in itertools.pairwise(bounds)]
    return pieces if field.kind == "bytes" else _decoded(pieces)


def with_sizes(padded: npt.NDArray[Any], field: Field | None) -> npt.NDArray[Any]:
    """What was padded of no samples, in the fixed sizes that its field has.

    Samples say how large they are; where there are none, as where all of a batch were set aside, so
    does the field alone.
    """
    if field is None or field.kind != "array" or padded.ndim != 1 + field.ndim:
        return padded
    return np.zeros((*padded.shape[:2], *(size or 0 for size in field.shape[1:])), padded.dtype)


def present_one(field: Field, value: Any) -> Any:
    """One sample's value as it is shown: text as str or bytes, all else as it is."""
    if field.kind == "array":
        return value
    raw: bytes = value.tobytes()
    return raw if field.kind == "bytes" else _decoded([raw])[0]


def _decoded(pieces: list[bytes]) -> list[str]:
    try:
        return [piece.decode() for piece in pieces]
    except UnicodeDecodeError as error:
        raise CorruptionError(f"a text is not valid UTF-8: {error}") from None


def present_list(field: Field, column: Column) -> list[Any]:
    """A column as a list of single values, each of its own shape."""
    shown = present(field, column)
    if isinstance(shown, RaggedBatch):
        return shown.to_list()
    return list(shown)
