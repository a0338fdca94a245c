"""Other projects' configs: what of them has a counterpart here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def refuse_unsupported(
    config: Mapping[str, Any], *, fixed: Mapping[str, Any], known: Collection[str], where: str
) -> None:
    """Keys that ours has one answer to must say just that, and there may be no keys that nobody knows here.

    Args:
        config: Theirs, as read; keys that begin with an underscore are remarks, and unknown ones may be None.
        fixed: Keys and the value that ours stands for; a set of values where several mean the same.
        known: Further keys, which the caller reads or may leave aside.
        where: What to call it in messages.

    Raises:
        ValueError: A key says something else, or is unknown; it is named.
    """
    for key, value in config.items():
        if key.startswith("_") or key in known:
            continue
        if key not in fixed:
            if value is not None:
                raise ValueError(f"{where}: {key}={value!r} has no counterpart here")
            continue
        answers = fixed[key] if isinstance(fixed[key], set | frozenset) else (fixed[key],)
        value = tuple(value) if isinstance(value, list) else value
        if not any(value == answer for answer in answers):
            wanted = " or ".join(repr(answer) for answer in answers)
            raise ValueError(f"{where}: {key}={value!r} has no counterpart here, only {key}={wanted}")
