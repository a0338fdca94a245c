"""Without torch's compiler, whose import takes as long as all the rest of a plan."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
MARK = "__dynamo_disable"  # where torch keeps what the compiler made of a function that it must leave alone


@contextmanager
def without_compiler() -> Iterator[None]:
    """Nothing inside is compiled, and torch need not import its compiler to be told so.

    torch has functions that its compiler must leave alone, an optimizer's constructor among them. At the first call of
    one it imports the compiler in order to mark it. A stand-in gives each function back as it is; for anything else
    that is asked of it the compiler itself is imported. Afterwards all is as it was.
    """
    if COMPILER in sys.modules:
        yield
        return
    marked: list[Callable[..., Any]] = []

    def disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        marked.append(function)
        return function

    def compiler(name: str) -> Any:
        _withdraw(stand_in)
        return getattr(importlib.import_module(COMPILER), name)

    stand_in = ModuleType(COMPILER)
    vars(stand_in).update(disable=disable, graph_break=lambda: None, __getattr__=compiler)
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        _withdraw(stand_in)
        for function in marked:
            vars(function).pop(MARK, None)


def _withdraw(stand_in: ModuleType) -> None:
    if sys.modules.get(COMPILER) is stand_in:
        del sys.modules[COMPILER]
