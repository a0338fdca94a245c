"""Signatures read from source text: what a config target takes, without importing it.

Importing torch takes longer than a person should wait for "did you mean 'depth'?", and importing a target to look at
it would already run code that a config names. So the source files are parsed instead: classes, dataclasses and
functions, through re-exports (``from x import y``) and base classes.
"""

from __future__ import annotations

import ast
import importlib.util
import keyword
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Parameter:
    """One thing a target can be given."""

    name: str
    annotation: ast.expr | None
    required: bool
    module: Module  # where the annotation's names are to be looked up


@dataclass(frozen=True)
class Signature:
    """What a target can be given by keyword."""

    name: str  # the last part of the dotted path, for messages
    parameters: dict[str, Parameter]
    open: bool  # takes **kwargs: nothing can be said about unknown names
    doc: str


class Module:
    """A parsed source file; never imported."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @cached_property
    def names(self) -> dict[str, ast.stmt | str]:
        """Top-level names: a definition or assignment, or the dotted path of what was imported."""
        return dict(self._bindings(self.tree.body))

    @cached_property
    def stars(self) -> list[str]:
        """Modules whose names are all taken over by ``from x import *``."""
        return [
            self.absolute(node)
            for node in _flat(self.tree.body)
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        ]

    def absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".")
        up = node.level - (self.path.name == "__init__.py")
        return ".".join([*package[: len(package) - up], *([node.module] if node.module else [])])

    def _bindings(self, body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt | str]]:
        for node in _flat(body):
            if isinstance(node, Definition):
                yield node.name, node
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]  # what ``import torch.nn`` binds
                    yield (alias.asname, alias.name) if alias.asname else (first, first)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield alias.asname or alias.name, f"{self.absolute(node)}.{alias.name}"
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                yield node.targets[0].id, node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, node


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, looking into ``if TYPE_CHECKING`` and ``try`` blocks."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _flat(node.body)
            yield from _flat(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _flat(node.body)
        else:
            yield node


@cache
def load(name: str) -> Module | None:
    """The module of this dotted name, or None where there is no source file of it."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top) if top else None  # a top-level name is found without importing it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py") if rest else path):
            if file.is_file():
                return Module(name, file)
    return None


@dataclass(frozen=True)
class Found:
    """Where a dotted path leads."""

    module: Module
    node: ast.stmt

    @property
    def dotted(self) -> str:
        return f"{self.module.name}.{getattr(self.node, 'name', '')}"


def find(dotted: str, _seen: frozenset[str] = frozenset()) -> Found | None:
    """Follow a dotted path, through re-exports, to the statement that defines it; None where it leads nowhere."""
    if dotted in _seen:
        return None
    seen = _seen | {dotted}
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = load(".".join(parts[:cut]))
        if module is None:
            continue
        name, *rest = parts[cut:]
        bound = module.names.get(name)
        if isinstance(bound, str):
            return find(".".join([bound, *rest]), seen)
        if bound is not None:
            return None if rest else Found(module, bound)
        candidates = (find(".".join([star, name, *rest]), seen) for star in module.stars)
        return next((found for found in candidates if found), None)
    return None


def lookup(module: Module, expression: ast.expr) -> Found | None:
    """What a name used in ``module`` (``DiT``, ``nn.Module``) stands for."""
    try:
        first, *rest = ast.unparse(expression).split(".")
    except ValueError:
        return None
    bound = module.names.get(first)
    if isinstance(bound, str):
        return find(".".join([bound, *rest]))
    return Found(module, bound) if bound is not None and not rest else None


def neighbours(dotted: str) -> list[str]:
    """Public names beside a dotted path that leads nowhere, to find the one that was meant."""
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:cut])
        module = load(prefix)
        if module is None:
            continue
        names = [name for name in module.names if not name.startswith("_")]
        if module.path.name == "__init__.py":
            names += [p.stem for p in module.path.parent.iterdir() if p.suffix == ".py" or p.is_dir()]
        return [f"{prefix}.{name}" for name in names if not name.startswith("_")]
    return []


@cache
def signature(dotted: str) -> Signature | None:
    """The keyword parameters of a class or function; None where the path leads to neither."""
    found = find(dotted)
    if found is None or not isinstance(found.node, Definition):
        return None
    name = public(found.node.name)
    doc = ast.get_docstring(found.node) or ""
    if isinstance(found.node, ast.ClassDef):
        parameters, is_open = _class_parameters(found)
    else:
        parameters, is_open = _function_parameters(found.node, found.module, skip_self=False)
    return Signature(name=name, parameters=parameters, open=is_open, doc=doc)


def _function_parameters(
    node: ast.FunctionDef | ast.AsyncFunctionDef, module: Module, *, skip_self: bool
) -> tuple[dict[str, Parameter], bool]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*defaults, *arguments.defaults], strict=True))[1 if skip_self else 0 :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {
        (name := public(argument.arg)): Parameter(name, argument.annotation, default is None, module)
        for argument, default in pairs
    }
    return parameters, arguments.kwarg is not None


def public(name: str) -> str:
    """What a person calls a parameter or a verb: ``from_``, which cannot be named like the keyword, is ``from``."""
    bare = name.removesuffix("_")
    return bare if keyword.iskeyword(bare) else name


def ancestors(found: Found) -> Iterator[Found | None]:
    """A class and its bases, nearest first; None stands for a base whose source cannot be read."""
    yield found
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        if ast.unparse(expression).split(".")[-1] in ("Protocol", "Generic", "ABC", "object"):
            continue
        parent = lookup(found.module, expression)
        if parent is None or not isinstance(parent.node, ast.ClassDef):
            yield None
        elif parent.dotted != "torch.nn.modules.module.Module":  # its **kwargs are for other purposes
            yield from ancestors(parent)


def is_dataclass(node: ast.stmt) -> bool:
    if not isinstance(node, ast.ClassDef):
        return False
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(ast.unparse(d).split(".")[-1] == "dataclass" for d in decorators)


def _class_parameters(found: Found) -> tuple[dict[str, Parameter], bool]:
    line = list(ancestors(found))
    for place, one in enumerate(line):
        if one is None:
            return {}, True
        assert isinstance(one.node, ast.ClassDef)
        for node in one.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return _function_parameters(node, one.module, skip_self=True)
        if is_dataclass(one.node):
            parameters: dict[str, Parameter] = {}
            for ancestor in reversed(line[place:]):
                if ancestor is not None and is_dataclass(ancestor.node):
                    parameters |= _fields(ancestor)
            return parameters, False
    return {}, False


def _fields(found: Found) -> dict[str, Parameter]:
    """A dataclass's own fields."""
    assert isinstance(found.node, ast.ClassDef)
    fields = {}
    for node in found.node.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if ast.unparse(node.annotation).split("[")[0].split(".")[-1] == "ClassVar":
            continue
        keywords = {}
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).split(".")[-1] == "field":
            keywords = {keyword.arg: keyword.value for keyword in node.value.keywords}
            if "init" in keywords and ast.unparse(keywords["init"]) == "False":
                continue
            required = "default" not in keywords and "default_factory" not in keywords
        else:
            required = node.value is None
        name = node.target.id
        fields[name] = Parameter(name, node.annotation, required, found.module)
    return fields
