"""Which samples take part: masks, positions, rules such as ``"audio.length <= 160000"``, functions.

A rule reads like Python and means what it means in Python, for each sample; but it is walked here,
node by node of its syntax tree, and what the walker has no case for is refused: nothing is
compiled or evaluated by Python. Each node is an array of one value for each sample of a block.
``and``, ``or`` and chained comparisons look at their later operands only for the samples that the
earlier ones leave open, so that ``n != 0 and m / n > 2`` divides by no zero.

Rules and functions see the samples through `Candidates`, a block at a time: lengths and shapes,
which are side columns, and small fields of fixed shape. No data of a ragged array is read. Of a
text compared with ``"de"`` only those are read that are two bytes long.
"""

from __future__ import annotations

import ast
import io
import keyword
import operator
import tokenize
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from raggedstore.batch import RaggedBatch
from raggedstore.errors import UnknownFieldError, UsageError
from raggedstore.indexing import Positions, as_positions
from raggedstore.samples import Samples, present
from raggedstore.schema import Field, Schema

__all__ = ["Candidates", "describe", "is_rule", "resolve"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

#: Samples looked at in one go.
_BLOCK = 2**16
#: The largest value of fixed shape, in bytes, that counts as small.
_SMALL = 1024
_MAX_CHARACTERS = 10_000
_MAX_NODES = 5_000
_MAX_DEPTH = 50
_MAX_TEXT = 255


def resolve(
    where: Any, samples: Samples, start: int = 0, stop: int | None = None
) -> Positions | None:
    """The positions of the samples that `where` lets take part.

    Parameters
    ----------
    where
        None for all samples; a rule; a function that takes `Candidates` and gives a (k,) array
        of bools; or a boolean mask, slice, index array or list, as for `Samples.select`.
    samples
        A store, a selection or a concatenation.
    start, stop
        Look only at the samples in this range, by default at all: those that were appended, say,
        since a rule was last asked. A mask, or an index, is one of the first `stop` samples.

    Returns
    -------
    (k,) int64 positions in ``[start, stop)``, ascending but for an index array or list, of which
    the order and repeats stay; None for all.

    Raises
    ------
    UsageError
        What is wrong with a rule, and where in it; a function that gives no bools.
    UnknownFieldError
        A rule names a field that is not there.

    Notes
    -----
    In a rule stand: a field of single numbers, bools or texts, by its name; ``audio.length``,
    ``image.shape[0]`` and ``image.size`` of any field (of a text, in bytes); numbers, strings,
    ``True`` and ``False``; comparisons, chained too; ``in`` and ``not in`` a tuple; ``and``,
    ``or``, ``not``; ``+ - * / // %``. Texts compare by ``==``, ``!=`` and ``in``.

    Examples
    --------
    >>> resolve("audio.length <= 160000 and lang in ('de', 'fr')", store)
    """
    stop = len(samples) if stop is None else stop
    if not 0 <= start <= stop <= len(samples):
        raise UsageError(f"no range of {len(samples)} samples: {start} to {stop}")
    if where is None:
        return None
    if not is_rule(where):
        positions = as_positions(where, stop)
        return positions[positions >= start] if start else positions
    if isinstance(where, str):
        rule = _parse(where, samples.schema)
        # Asked of no samples first: what is wrong with it is so whatever the samples are.
        _Walker(rule, Candidates(samples, np.empty(0, np.int64))).answer()
    found = [np.empty(0, np.int64)]
    for first in range(start, stop, _BLOCK):
        candidates = Candidates(samples, np.arange(first, min(first + _BLOCK, stop)))
        if isinstance(where, str):
            chosen = _Walker(rule, candidates).answer()
        else:
            chosen = _answer(where, candidates)
        found.append(candidates.positions[chosen])
    return np.concatenate(found)


def is_rule(where: Any) -> bool:
    """Whether `where` is asked about each sample, so that it has an answer for new ones too."""
    return isinstance(where, str) or callable(where)


def describe(where: Any) -> str:
    """`where`, shortly, as a repr of something that has it may show it."""
    if where is None or isinstance(where, slice):
        return repr(where)
    if isinstance(where, str):
        return repr(where if len(where) <= 60 else where[:57] + "...")
    if callable(where):
        return f"<{getattr(where, '__qualname__', type(where).__qualname__)}>"
    array = np.asarray(where)
    if array.dtype == np.bool_:
        return f"<mask of {array.sum()} in {array.size}>"
    return f"<{array.size} positions>"


class Candidates:
    """Samples that a rule or function is asked about, without their ragged data.

    Parameters
    ----------
    positions
        (k,) int64: which samples.
    """

    def __init__(self, samples: Samples, positions: Positions) -> None:
        self.positions = positions
        self._samples = samples
        self._values: dict[str, Any] = {}
        self._shapes: dict[str, Int64s] = {}
        self._texts: dict[tuple[str, int], tuple[Int64s, npt.NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"<Candidates: {len(self)} samples, {', '.join(self.schema)}>"

    @property
    def schema(self) -> Schema:
        """The fields of every sample."""
        return self._samples.schema

    def __getitem__(self, name: str) -> Any:
        """(k, ...) values of a small field of fixed shape; of a text field, all texts as a list."""
        if name not in self._values:
            field = self.schema[name]
            if field.kind == "array":
                _check_small(name, field)
            self._values[name] = present(field, self._samples.read(name, self.positions))
        return self._values[name]

    def shape(self, name: str) -> Int64s:
        """(k, d) int64 shapes of the samples of a field; of a text, (k, 1) its bytes."""
        if name not in self._shapes:
            self._shapes[name] = self._samples.read_shapes(name, self.positions)
        return self._shapes[name]

    def length(self, name: str) -> Int64s:
        """(k,) int64 first dimension of the samples of a field (1 for scalars)."""
        shape = self.shape(name)
        return shape[:, 0] if shape.shape[1] else np.ones(len(self), np.int64)

    def size(self, name: str) -> Int64s:
        """(k,) int64 how many values the samples of a field have."""
        size: Int64s = self.shape(name).prod(axis=1)
        return size

    def equals(self, name: str, text: str | bytes) -> Bools:
        """(k,) whether a field of texts holds just `text`; what is not as long is not read."""
        field = self.schema[name]
        if field.kind != ("str" if isinstance(text, str) else "bytes"):
            raise UsageError(f"field {name!r} holds {field!r}: {text!r} is no value of it")
        raw = text.encode() if isinstance(text, str) else text
        equal = np.zeros(len(self), np.bool_)
        rows, texts = self._of_length(name, len(raw))
        equal[rows] = (texts == np.frombuffer(raw, np.uint8)).all(axis=1)
        return equal

    def _of_length(self, name: str, length: int) -> tuple[Int64s, npt.NDArray[np.uint8]]:
        """Which texts are of `length` bytes, and (rows, length) these."""
        if (name, length) not in self._texts:
            rows = np.flatnonzero(self.shape(name)[:, 0] == length)
            batch = self._samples.read(name, self.positions[rows])
            assert isinstance(batch, RaggedBatch)
            self._texts[name, length] = rows, batch.values.reshape(len(rows), length)
        return self._texts[name, length]


def _check_small(name: str, field: Field) -> None:
    if field.is_ragged:
        raise UsageError(
            f"field {name!r} is ragged, and its data is not looked at: ask for its length or shape"
        )
    nbytes = int(np.prod([float(d or 0) for d in field.shape])) * field.dtype.itemsize
    if nbytes > _SMALL:
        raise UsageError(
            f"field {name!r} has {nbytes} bytes a sample: only fields of {_SMALL} at most are "
            f"looked at"
        )


def _answer(function: Callable[[Candidates], Any], candidates: Candidates) -> Bools:
    given = np.asarray(function(candidates))
    if given.dtype != np.bool_ or given.shape != (len(candidates),):
        raise UsageError(
            f"where={describe(function)} gives one bool for each of {len(candidates)} samples, "
            f"not {given.dtype} of shape {given.shape}"
        )
    return given


# Rules


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule, parsed: its text, and its syntax tree, of bounded size and depth."""

    text: str
    tree: ast.expr

    def at(self, node: ast.AST) -> str:
        """Where a node stands, as errors begin."""
        first = getattr(node, "col_offset", 0)
        last = getattr(node, "end_col_offset", first)
        raw = self.text.encode("utf-8", "surrogatepass")  # which the parser counts in
        piece = raw[first:last].decode("utf-8", "replace")
        column = len(raw[:first].decode("utf-8", "replace")) + 1
        shown = piece if len(piece) <= 40 else piece[:37] + "..."
        return f"where, column {column}, {shown!r}"

    def fail(self, node: ast.AST, message: str) -> NoReturn:
        """UsageError that says where."""
        raise UsageError(f"{self.at(node)}: {message}")


def _parse(text: str, schema: Schema) -> _Rule:
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"where: a rule has at most {_MAX_CHARACTERS} characters, got {len(text)}")
    _check_lines(text)
    line = text.replace("\r", " ").replace("\n", " ").strip()
    try:
        tree = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        words = [name for name in schema if keyword.iskeyword(name) and name in line]
        hint = f" ({words[0]!r} is a word of Python's: write a function)" if words else ""
        if not line:
            raise UsageError("where: an empty rule; None is for all samples") from None
        column = error.offset or len(line) + 1  # 0 where something is missing at the end
        raise UsageError(
            f"where, column {column}: {error.msg}, in {describe(line)}{hint}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"where: not a rule, or too deep a one: {describe(line)}") from error
    rule = _Rule(line, tree)
    for count, (node, depth) in enumerate(_nodes(tree)):
        if depth > _MAX_DEPTH or count > _MAX_NODES:
            rule.fail(node, f"more than {_MAX_NODES} terms, or {_MAX_DEPTH} within one another")
    return rule


def _check_lines(text: str) -> None:
    """UsageError where it makes a difference that the lines of a rule are put into one."""
    if "\r" in text.replace("\r\n", ""):
        raise UsageError("where: a carriage return ends no line of a rule; write \\r in a text")
    if "\n" not in text.strip():
        return
    lines = io.StringIO(f"({text}\n)").readline  # within which Python puts them together too
    with suppress(tokenize.TokenError, SyntaxError):  # what is wrong is said by who parses it
        for token in tokenize.generate_tokens(lines):
            if token.type == tokenize.COMMENT:
                raise UsageError("where: a rule of several lines has no comments")
            if token.start[0] != token.end[0] and token.string.strip():
                raise UsageError("where: a text in a rule lies in one line; write \\n for its end")


def _nodes(tree: ast.expr) -> Iterator[tuple[ast.AST, int]]:
    """Each expression of a tree, with how deep it lies."""
    left: list[tuple[ast.AST, int]] = [(tree, 1)]
    while left:
        node, depth = left.pop()
        yield node, depth
        left += [(c, depth + 1) for c in ast.iter_child_nodes(node) if isinstance(c, ast.expr)]


@dataclass(frozen=True, slots=True)
class _Text:
    """A field of text as it stands in a rule: known by name until it is compared."""

    name: str
    field: Field


_Value = Array | _Text | str | bytes

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_DIVISIONS = (ast.Div, ast.FloorDiv, ast.Mod)


class _Walker:
    """What a rule says of each of the candidates.

    A node is asked about some of them, `rows`, or about all where that is None.
    """

    def __init__(self, rule: _Rule, candidates: Candidates) -> None:
        self._rule = rule
        self._candidates = candidates

    def answer(self) -> Bools:
        """(k,) whether each sample takes part."""
        with np.errstate(all="ignore"):
            return self._condition(self._rule.tree, None)

    def _count(self, rows: Int64s | None) -> int:
        return len(self._candidates) if rows is None else len(rows)

    def _fail(self, node: ast.AST, message: str) -> NoReturn:
        self._rule.fail(node, message)

    # Nodes

    def _value(self, node: ast.expr, rows: Int64s | None) -> _Value:
        match node:
            case ast.Constant():
                return self._constant(node, rows)
            case ast.Name():
                return self._field(node, rows)
            case ast.Attribute(attr="length" | "size" | "shape") | ast.Subscript():
                return self._measure(node, rows)
            case ast.BoolOp():
                return self._both_or_either(node, rows)
            case ast.UnaryOp(op=ast.Not()):
                return ~self._condition(node.operand, rows)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                number = self._number(node.operand, rows)
                self._check_range(node, operator.add, number, number[:0])
                return -number if isinstance(node.op, ast.USub) else number
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return self._arithmetic(node, rows)
            case ast.Compare():
                return self._comparison(node, rows)
            case ast.BinOp(op=ast.Pow()):
                self._fail(node, "rules have no powers")
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()) | ast.UnaryOp(op=ast.Invert()):
                self._fail(node, "rules have and, or, not in the place of &, |, ~")
            case ast.Tuple() | ast.List() | ast.Set():
                self._fail(node, "a tuple stands to the right of in alone")
            case ast.Attribute():
                self._fail(node, f"a field has .length, .shape[i] and .size, not .{node.attr}")
        self._fail(node, "rules know fields, numbers, texts, comparisons and arithmetic, not this")

    def _condition(self, node: ast.expr, rows: Int64s | None) -> Bools:
        value = self._value(node, rows)
        if isinstance(value, np.ndarray) and value.dtype == np.bool_:
            return value
        kind = "a number" if isinstance(value, np.ndarray) else "a text"
        self._fail(node, f"{kind}, where something true or false is meant")

    def _number(self, node: ast.expr, rows: Int64s | None) -> Array:
        value = self._value(node, rows)
        if not isinstance(value, np.ndarray):
            self._fail(node, "a text, where a number is meant")
        return value.astype(np.int64) if value.dtype == np.bool_ else value

    def _constant(self, node: ast.Constant, rows: Int64s | None) -> _Value:
        value = node.value
        if isinstance(value, (str, bytes)):
            try:
                size = len(value.encode() if isinstance(value, str) else value)
            except UnicodeEncodeError:
                self._fail(node, "a text that is not Unicode")
            if size > _MAX_TEXT:
                self._fail(node, f"a text of more than {_MAX_TEXT} bytes")
            return value
        if not isinstance(value, (int, float)):  # bools are ints
            self._fail(node, "neither a number nor a text")
        if not -(2.0**63) <= value < 2.0**64 and isinstance(value, int):
            self._fail(node, "an integer of more than 64 bits")
        if not np.isfinite(value):
            self._fail(node, "a number too large for a float")
        one = np.array(value)
        return np.broadcast_to(one, self._count(rows))

    def _field(self, node: ast.Name, rows: Int64s | None) -> _Value:
        name, field = node.id, self._known(node)
        if field.kind != "array":
            return _Text(name, field)
        if field.is_ragged:
            self._fail(node, f"the field is ragged: use {name}.length, {name}.shape[0]")
        if field.shape or field.dtype.kind == "c":
            self._fail(node, f"only fields of single real numbers have a value here, not {field!r}")
        values: Array = self._candidates[name]
        return _wide(values if rows is None else values[rows])

    def _known(self, node: ast.Name) -> Field:
        schema = self._candidates.schema
        if node.id not in schema:
            raise UnknownFieldError(
                f"{self._rule.at(node)}: no field {node.id!r}; the fields are {', '.join(schema)}"
            )
        return schema[node.id]

    def _measure(self, node: ast.expr, rows: Int64s | None) -> Array:
        index: int | None = None
        match node:
            case ast.Attribute(value=ast.Name() as name, attr="length" | "size" as what):
                pass
            case ast.Attribute(attr="shape"):
                self._fail(node, "say which dimension: .shape[0]")
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name() as name, attr="shape" as what),
                slice=ast.Constant(value=int(index)),
            ):
                pass
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name() as name, attr="shape" as what),
                slice=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(minus))),
            ):
                index = -minus
            case ast.Subscript():
                self._fail(node, "only .shape is indexed, by an integer: image.shape[0]")
            case _:
                self._fail(node, "a field is meant before the dot")
        field = self._known(name)
        if what == "length":
            measured = self._candidates.length(name.id)
        elif index is None:
            measured = self._candidates.size(name.id)
        else:
            if not -field.ndim <= index < field.ndim or isinstance(index, bool):
                self._fail(node, f"{name.id} has {field.ndim} dimensions")
            measured = self._candidates.shape(name.id)[:, index]
        return measured if rows is None else measured[rows]

    # Conditions

    def _both_or_either(self, node: ast.BoolOp, rows: Int64s | None) -> Bools:
        result = self._condition(node.values[0], rows).copy()
        for value in node.values[1:]:
            left = np.flatnonzero(result if isinstance(node.op, ast.And) else ~result)
            result[left] = self._condition(value, _of(rows, left))
        return result

    def _comparison(self, node: ast.Compare, rows: Int64s | None) -> Bools:
        result = np.ones(self._count(rows), np.bool_)
        left = np.arange(len(result))
        value = self._value(node.left, rows)
        for op, after in zip(node.ops, node.comparators, strict=True):
            among = rows if len(left) == len(result) else _of(rows, left)
            if isinstance(op, (ast.In, ast.NotIn)):
                if after is not node.comparators[-1]:
                    self._fail(after, "nothing compares with a tuple")
                result[left] = self._among(value, op, after, among)
                return result
            other = self._value(after, among)
            holds = self._compare(node, op, value, other, among)
            result[left] = holds
            left = left[holds]
            value = other[holds] if isinstance(other, np.ndarray) else other
        return result

    def _among(self, value: _Value, op: ast.cmpop, after: ast.expr, rows: Int64s | None) -> Bools:
        if not isinstance(after, (ast.Tuple, ast.List, ast.Set)):
            self._fail(after, "in is followed by a tuple of numbers or texts, such as (1, 2, 3)")
        result = np.zeros(self._count(rows), np.bool_)
        for item in after.elts:
            literal = item.operand if isinstance(item, ast.UnaryOp) else item
            if not isinstance(literal, ast.Constant):
                self._fail(item, "a number or a text is meant")
            result |= self._compare(item, ast.Eq(), value, self._value(item, rows), rows)
        return result if isinstance(op, ast.In) else ~result

    def _compare(
        self, node: ast.expr, op: ast.cmpop, one: _Value, other: _Value, rows: Int64s | None
    ) -> Bools:
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            if type(op) not in _COMPARISONS:
                self._fail(node, "rules compare with ==, !=, <, <=, >, >= and in")
            holds: Bools = _COMPARISONS[type(op)](*_comparable(one, other))
            return holds
        if isinstance(other, _Text):
            one, other = other, one
        if not isinstance(one, _Text):
            self._fail(node, "a text compares with a field of text")
        if not isinstance(op, (ast.Eq, ast.NotEq)):
            self._fail(node, "texts compare with ==, != and in")
        if not isinstance(other, (str, bytes)):
            self._fail(node, f"field {one.name!r} holds text: it compares with a text in quotes")
        if isinstance(other, str) != (one.field.kind == "str"):
            kind = "str: without b" if one.field.kind == "str" else 'bytes: write b"..."'
            self._fail(node, f"field {one.name!r} holds {kind}")
        equal = self._candidates.equals(one.name, other)
        equal = equal if rows is None else equal[rows]
        return equal if isinstance(op, ast.Eq) else ~equal

    # Numbers

    def _arithmetic(self, node: ast.BinOp, rows: Int64s | None) -> Array:
        left, right = self._number(node.left, rows), self._number(node.right, rows)
        if isinstance(node.op, _DIVISIONS) and not right.all():
            row = int(np.argmin(right != 0))
            position = self._candidates.positions[row if rows is None else rows[row]]
            self._fail(node, f"division by zero, at sample {position}")
        function = _ARITHMETIC[type(node.op)]
        self._check_range(node, function, left, right)
        result: Array = function(left, right)
        return result

    def _check_range(
        self, node: ast.expr, function: Callable[[Any, Any], Any], left: Array, right: Array
    ) -> None:
        """Integers are to be Python's: refuse what 64 bits might not hold."""
        if function is operator.truediv or left.dtype.kind == "f" or right.dtype.kind == "f":
            return
        one, other = _largest(left), _largest(right)
        bound = one * other if function is operator.mul else one + other
        if bound >= 2**63:
            self._fail(node, "integers that may come to more than 64 bits hold")


def _of(rows: Int64s | None, chosen: Int64s) -> Int64s:
    return chosen if rows is None else rows[chosen]


def _largest(numbers: Array) -> int:
    """The largest magnitude among integers."""
    return max(abs(int(numbers.min())), abs(int(numbers.max()))) if numbers.size else 0


def _comparable(one: Array, other: Array) -> tuple[Array, Array]:
    """Numbers that compare by value as NumPy compares them, which would round integers to floats.

    Rounding keeps an order. Only where an integer comes to just the float is there more to know:
    these are taken for how the integer differs from it, and 0.
    """
    if one.dtype.kind == "f" and other.dtype.kind in "iu":
        return _comparable(other, one)[::-1]
    if one.dtype.kind not in "iu" or other.dtype.kind != "f":
        return one, other
    rounded, floats = one.astype(other.dtype), other
    ties = np.flatnonzero((rounded == floats) & (np.abs(floats) >= 2.0**53))
    if len(ties):
        rounded, floats = rounded.copy(), floats.copy()
        integers, near = one[ties], floats[ties]
        above = near >= 2.0 ** (64 if one.dtype.kind == "u" else 63)  # all integers of this dtype
        whole = np.where(above, 0, near).astype(one.dtype)
        rounded[ties] = np.where(above | (integers < whole), -1, integers > whole)
        floats[ties] = 0
    return rounded, floats


def _wide(values: Array) -> Array:
    """Numbers as Python has them: int64 (unsigned where they need it) and at least float64."""
    if values.dtype.kind == "b":
        return values.astype(np.bool_)
    if values.dtype.kind == "f":
        return values.astype(np.result_type(values.dtype, np.float64))
    if values.dtype.kind == "u" and values.size and int(values.max()) >= 2**63:
        return values.astype(np.uint64)
    return values.astype(np.int64)
