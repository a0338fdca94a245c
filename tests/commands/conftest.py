"""A small package that configs can name, read as source text and never imported."""

from __future__ import annotations

from pathlib import Path

import pytest

TOY = {
    "__init__.py": "from toy.parts import Net as Renamed\nfrom .more import *\nimport os\n",
    "parts.py": '''
from __future__ import annotations
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Optional, Union
from torch import Tensor, nn

if TYPE_CHECKING:
    from toy.more import Base

Size = Union[int, tuple[int, int]]

class Net(nn.Module):
    """A network."""

    def __init__(self, *, width: int, depth: int = 2, rate: float = 0.1, name: Optional[str] = None,
                 mode: Literal["a", "b"] = "a", sizes: list[int] = (), size: Size = 1, pair: tuple[int, int] = (1, 2),
                 act: Callable[[Tensor], Tensor] | None = None, table: dict[str, float] = {}, flag: bool = False):
        ...

class Wide(Net):
    pass

class Silent(nn.Module):
    pass

@dataclass(frozen=True, kw_only=True)
class Parent:
    left: int

@dataclass(frozen=True, kw_only=True)
class Child(Parent):
    right: float = 1.0
    made: int = field(init=False)
    listed: list[int] = field(default_factory=list)
    count: ClassVar[int] = 0

class Holder:
    def __init__(self, *, part: Net, parts: list[Net] | None = None):
        ...

def build(first: int, *, second: str = "x", **rest: Any) -> None:
    """Build it."""
''',
    "more.py": "class Base:\n    def __init__(self, x: int):\n        ...\n\nclass Starred(Base):\n    pass\n",
    "trap.py": "raise RuntimeError('imported')\n\nclass Trap:\n    def __init__(self, x: int): ...\n",
}


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    (root / "toy").mkdir()
    for name, text in TOY.items():
        (root / "toy" / name).write_text(text)
    return root


@pytest.fixture
def toy(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(toy_root)
