"""Conditions on what an index knows, ``"min_side >= 256 and aesthetic > 5"``: which samples are taken at all.

The text is parsed by Python's own parser and then walked node by node over columns; nothing in it is run, and what is
not on the list below is refused.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.data.headers import FORMATS

if TYPE_CHECKING:
    from ldm.data.shard_index import ShardHeader, ShardIndex

_OWN: dict[str, Callable[[ShardIndex], np.ndarray]] = {
    "width": lambda index: _pixels(index, "width"),
    "height": lambda index: _pixels(index, "height"),
    "min_side": lambda index: np.minimum(_pixels(index, "width"), _pixels(index, "height")),
    "max_side": lambda index: np.maximum(_pixels(index, "width"), _pixels(index, "height")),
    "pixels": lambda index: _pixels(index, "width") * _pixels(index, "height"),
    "aspect": lambda index: _pixels(index, "width") / _pixels(index, "height"),
    "caption_length": lambda index: _known(
        index.column("caption_length"), index.column("caption_length") >= 0
    ),
    "picture_bytes": lambda index: index.sizes[:, 0].astype(np.float64),
    "format": lambda index: np.array(FORMATS)[index.column("format")],
}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_CALCULATE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


class Filter:
    """One condition.

    Names are ``width``, ``height`` (as displayed), ``min_side``, ``max_side``, ``pixels``, ``aspect`` (width / height),
    ``caption_length``, ``picture_bytes``, ``format`` ("jpeg"), and the fields of the json that hold numbers, booleans
    or labels; ``json.width`` or ``json["clip-score"]`` where the short name is taken or is no name. With them:
    comparisons, ``and or not``, ``in [...]``, ``+ - * /``. A comparison with what a sample lacks is false.

    Args:
        text: the condition.

    Raises:
        ValueError: it is none; the message points at what is wrong.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(
                f"filter '{text}' is no condition; write one like 'min_side >= 256 and aesthetic > 5'"
            ) from None
        self.names = sorted(set(self._names(self._tree)))

    def __call__(self, index: ShardIndex) -> np.ndarray:
        """(N,) bool over all samples of one shard."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self._truth(self._tree, index)
        return np.broadcast_to(found, (index.header.count,))

    def check(self, headers: Sequence[ShardHeader]) -> None:
        """Whether some shard has every field that is named.

        Raises:
            ValueError: a name that no shard knows, or texts of too many kinds to have been indexed.
        """
        fields = {name for header in headers for name in header.columns if name.startswith("json.")}
        dropped = {f"json.{name}" for header in headers for name in header.dropped}
        for name in self.names:
            if name in dropped:
                raise ValueError(
                    f"filter '{self.text}': {name} holds texts of too many kinds to filter on; labels of up to 255 "
                    f"kinds, and numbers, can be"
                )
            if name not in _OWN and name not in fields:
                known = [*_OWN, *sorted(field.removeprefix("json.") for field in fields)]
                near = difflib.get_close_matches(name.removeprefix("json."), known, n=1)
                meant = f"did you mean '{near[0]}'? " if near else ""
                raise ValueError(
                    f"filter '{self.text}': no sample has a '{name.removeprefix('json.')}'; {meant}there are "
                    f"{', '.join(known)}"
                )

    def _names(self, node: ast.AST) -> list[str]:
        """The columns that are named, in passing checking that every node is allowed."""
        match node:
            case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
                return [name for part in parts for name in self._names(part)]
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
                return self._names(part)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _CALCULATE:
                return [*self._names(left), *self._names(right)]
            case ast.Compare(left=left, ops=operators, comparators=others) if all(
                type(one) in _COMPARE or isinstance(one, ast.In | ast.NotIn) for one in operators
            ):
                return [name for part in (left, *others) for name in self._names(part)]
            case ast.Constant(value=bool() | int() | float() | str()):
                return []
            case _ if (name := _column(node)) is not None:
                return [name]
        raise ValueError(
            f"filter '{self.text}': '{ast.unparse(node)}' is not allowed; a condition is made of names, numbers, "
            f"texts, comparisons, and or not, in [...], + - * /"
        )

    def _truth(self, node: ast.AST, index: ShardIndex) -> np.ndarray:
        match node:
            case ast.BoolOp(op=ast.And(), values=parts):
                return reduce(np.logical_and, [self._truth(part, index) for part in parts])
            case ast.BoolOp(values=parts):
                return reduce(np.logical_or, [self._truth(part, index) for part in parts])
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return np.logical_not(self._truth(part, index))
            case ast.Compare(left=first, ops=operators, comparators=others):
                sides = [first, *others]
                return reduce(
                    np.logical_and,
                    [
                        self._compared(operator, left, right, index)
                        for left, operator, right in zip(sides, operators, others, strict=False)
                    ],
                )
        found = self._value(node, index)
        return _is_there(found) & (found != 0 if found.dtype.kind == "f" else found != "")

    def _compared(self, operator: ast.cmpop, left: ast.AST, right: ast.AST, index: ShardIndex) -> np.ndarray:
        value = self._value(left, index)
        if isinstance(operator, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple):
                raise ValueError(f"filter '{self.text}': 'in' needs a list, like ['en', 'de']")
            alike = [self._equal(value, self._value(one, index)) for one in right.elts]
            found = reduce(np.logical_or, alike, np.zeros(1, bool))
            return _is_there(value) & (np.logical_not(found) if isinstance(operator, ast.NotIn) else found)
        other = self._value(right, index)
        if value.dtype.kind != other.dtype.kind:
            if not (_is_there(value).any() and _is_there(other).any()):
                return np.zeros(1, bool)  # a field that this shard lacks
            raise ValueError(
                f"filter '{self.text}': '{ast.unparse(left)}' and '{ast.unparse(right)}' are a number and a text"
            )
        return _is_there(value) & _is_there(other) & _COMPARE[type(operator)](value, other)

    def _equal(self, value: np.ndarray, other: np.ndarray) -> np.ndarray:
        return value == other if value.dtype.kind == other.dtype.kind else np.zeros(1, bool)

    def _value(self, node: ast.AST, index: ShardIndex) -> np.ndarray:
        """Numbers as float64, NaN where missing; texts as U, "" where missing."""
        match node:
            case ast.Constant(value=str(text)):
                return np.array([text])
            case ast.Constant(value=bool() | int() | float() as number):
                return np.array([float(number)])
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return -self._value(part, index)
            case ast.BinOp(left=left, op=operator, right=right):
                sides = [self._value(left, index), self._value(right, index)]
                if any(side.dtype.kind != "f" for side in sides):
                    raise ValueError(
                        f"filter '{self.text}': '{ast.unparse(node)}' calculates with what is no number"
                    )
                return _CALCULATE[type(operator)](*sides)
        name = _column(node)
        if name is None:  # a condition where a value is expected: true is 1
            return self._truth(node, index).astype(np.float64)
        if name in _OWN:
            return _OWN[name](index)
        header = index.header
        if name in header.values:
            return np.array(["", *header.values[name]])[index.column(name)]
        if name in header.columns:
            return index.column(name)
        return np.full(header.count, np.nan)


def _column(node: ast.AST) -> str | None:
    """The column that a name stands for."""
    match node:
        case ast.Name(id=name):
            return name if name in _OWN else f"json.{name}"
        case ast.Attribute(value=ast.Name(id="json"), attr=name):
            return f"json.{name}"
        case ast.Subscript(value=ast.Name(id="json"), slice=ast.Constant(value=str(name))):
            return f"json.{name}"
    return None


def _is_there(values: np.ndarray) -> np.ndarray:
    return ~np.isnan(values) if values.dtype.kind == "f" else values != ""


def _known(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where, values.astype(np.float64), np.nan)


def _pixels(index: ShardIndex, name: str) -> np.ndarray:
    return _known(index.column(name), index.column("format") > 0)
