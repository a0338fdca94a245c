"""What a person reads when a config cannot be used: one line that names the key and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

from omegaconf import DictConfig, ListConfig

from ldm.commands.annotations import Kinds, ListOf, Plain

Path = tuple[str | int, ...]


class ConfigError(Exception):
    """A config that cannot be used; the message is one line.

    Args:
        message: What is wrong and what to do.
        path: The key it is about.
        at: The key whose place in a file tells where to look, when it is not ``path``.
    """

    def __init__(self, message: str, path: Path = (), at: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.at = path if at is None else at


def dotted(path: Path) -> str:
    """("network", "depth", 0) -> "network.depth[0]"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the valid one that was probably meant, or the nearest few."""
    names = sorted(set(valid), key=lambda candidate: -SequenceMatcher(None, name, candidate).ratio())
    if not names:
        return "there are none"
    if SequenceMatcher(None, name, names[0]).ratio() >= 0.6:
        return f"did you mean '{names[0]}'?"
    more = len(names) - 6
    return f"the nearest is '{names[0]}', then {', '.join(names[1:6]) or 'none'}" + (
        f" and {more} more" if more > 0 else ""
    )


def shown(value: Any) -> str:
    """A value in an error message."""
    if value is None:
        return "null"
    if isinstance(value, DictConfig):
        return str(value["_target_"]) if "_target_" in value else "a mapping without _target_"
    if isinstance(value, ListConfig):
        return f"a list of {len(value)}"
    return f"{value!r} ({type(value).__name__})"


def remedy(key: str, value: Any, expected: Kinds) -> str:
    names = {kind.name for kind in expected if isinstance(kind, Plain)}
    if "str" in names and isinstance(value, bool | int | float):
        return f"; for text write '{key}=\"{value}\"', with both pairs of quotes"
    if any(isinstance(kind, ListOf) for kind in expected) and isinstance(value, str):
        return "; write a list as [first,second]"
    return ""


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
