"""Type annotations as source text -> which plain values a config may put there.

A config holds None, booleans, numbers, strings, lists and mappings; everything else is an object, built from a mapping
with ``_target_``. An annotation is therefore read as a union of a few kinds.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass

from ldm.commands.signatures import Found, Module, is_dataclass, lookup

PLAIN = {"int", "float", "bool", "str"}
TEXT = {"Path", "PathLike", "PurePath"}
LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "MutableSequence", "set", "Set"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping", "defaultdict", "OrderedDict"}
ANYTHING = {"Any", "object", "TypeVar", "type", "Type"}
WRAPPERS = {"Annotated", "Final", "Required", "NotRequired", "ReadOnly", "InitVar"}
OWN = ("ldm.", "lightning.")  # whose type aliases are worth following


@dataclass(frozen=True)
class Plain:
    """None, bool, int, float or str."""

    name: str

    def holds(self, value: object) -> bool:
        if self.name == "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        if self.name == "int":
            return isinstance(value, int) and not isinstance(value, bool)
        return type(value).__name__ == ("NoneType" if self.name == "None" else self.name)


@dataclass(frozen=True)
class OneOf:
    """Literal values."""

    values: tuple[object, ...]

    def holds(self, value: object) -> bool:
        return any(type(value) is type(v) and value == v for v in self.values)


@dataclass(frozen=True)
class ListOf:
    """A list of any length (``items`` has one entry, ``length`` None) or a tuple of given entries."""

    items: tuple[Kinds, ...]
    length: int | None = None

    def item(self, place: int) -> Kinds:
        return self.items[0] if self.length is None else self.items[place]


@dataclass(frozen=True)
class MappingOf:
    """A mapping with free keys."""

    value: Kinds


@dataclass(frozen=True)
class Record:
    """A plain mapping with the fields of a dataclass of this project."""

    dotted: str


@dataclass(frozen=True)
class Object:
    """Something built from ``_target_``."""

    name: str


class Anything:
    """No statement."""


Kind = Plain | OneOf | ListOf | MappingOf | Record | Object | Anything
Kinds = tuple[Kind, ...]

ANY: Kinds = (Anything(),)


def describe(kind: Kind) -> str:
    """A kind in an error message, where there is no annotation to quote."""
    match kind:
        case Plain(name) | Object(name):
            return name
        case OneOf(values):
            return " | ".join(map(repr, values))
        case ListOf():
            return "a list"
        case MappingOf():
            return "a mapping"
        case Record(dotted):
            return dotted.rpartition(".")[2]
        case _:
            return "anything"


def kinds(annotation: ast.expr | None, module: Module) -> Kinds:
    """The union that an annotation stands for; unknown things count as Anything."""
    match annotation:
        case None:
            return ANY
        case ast.Constant(value=None):
            return (Plain("None"),)
        case ast.Constant(value=str(text)):
            return kinds(_parsed(text), module)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return kinds(left, module) + kinds(right, module)
        case ast.Subscript(value=value, slice=inside):
            arguments = list(inside.elts) if isinstance(inside, ast.Tuple) else [inside]
            return _generic(ast.unparse(value).split(".")[-1], arguments, value, module)
        case ast.Name() | ast.Attribute():
            return _named(annotation, module)
        case _:
            return ANY


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def _generic(name: str, arguments: list[ast.expr], value: ast.expr, module: Module) -> Kinds:
    def of(expression: ast.expr) -> Kinds:
        return kinds(expression, module)

    makers: dict[str, Callable[[], Kinds]] = {
        "Optional": lambda: (*of(arguments[0]), Plain("None")),
        "Union": lambda: tuple(kind for argument in arguments for kind in of(argument)),
        "Literal": lambda: (OneOf(tuple(a.value for a in arguments if isinstance(a, ast.Constant))),),
        "Callable": lambda: (Object("Callable"),),
    }
    makers |= dict.fromkeys(LISTS, lambda: (ListOf((of(arguments[0]),)),))
    makers |= dict.fromkeys(MAPPINGS, lambda: (MappingOf(of(arguments[-1])),))
    makers |= dict.fromkeys(WRAPPERS, lambda: of(arguments[0]))
    makers |= dict.fromkeys(("tuple", "Tuple"), lambda: (_tuple(arguments, of),))
    return makers[name]() if name in makers else _named(value, module)


def _tuple(arguments: list[ast.expr], of: Callable[[ast.expr], Kinds]) -> ListOf:
    if len(arguments) == 2 and ast.unparse(arguments[1]) == "...":
        return ListOf((of(arguments[0]),))
    return ListOf(tuple(of(argument) for argument in arguments), length=len(arguments))


def _named(annotation: ast.expr, module: Module) -> Kinds:
    name = ast.unparse(annotation).split(".")[-1]
    if name in PLAIN:
        return (Plain(name),)
    if name in TEXT:
        return (Plain("str"),)
    if name in LISTS or name in ("tuple", "Tuple"):
        return (ListOf((ANY,)),)
    if name in MAPPINGS:
        return (MappingOf(ANY),)
    if name in ANYTHING:
        return ANY
    if name == "Callable":
        return (Object(name),)
    imported = module.names.get(ast.unparse(annotation).split(".")[0])
    if isinstance(imported, str) and not imported.startswith(OWN):
        return (Object(name),)
    found = lookup(module, annotation)
    return _defined(found, name) if found else ANY


def _defined(found: Found, name: str) -> Kinds:
    match found.node:
        case ast.ClassDef() if is_dataclass(found.node) and found.module.name.startswith("ldm.commands."):
            return (Record(found.dotted),)
        case ast.ClassDef():
            return (Object(name),)
        case ast.Assign(value=ast.Call()):  # TypeVar, NewType
            return ANY
        case ast.Assign(value=value):
            return kinds(value, found.module)
        case ast.AnnAssign(value=ast.expr() as value):
            return kinds(value, found.module)
        case _:
            return ANY
