"""Lists of overrides, ``vary=[network.depth=8,optimizer=adamw]``: Hydra's grammar wants each of them in quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator

OPENING, CLOSING = "[{(", "]})"


def with_quotes(override: str) -> str | None:
    """The override with quotes around the elements of its list that have a "=" in them; None where there are none."""
    found = re.fullmatch(r"([^=\[]+=)\[(.*)\]", override, re.DOTALL)
    if found is None:
        return None
    elements = [element.strip() for element in _elements(found[2])]
    quoted = [_quoted(element) if _is_bare(element) else element for element in elements]
    return None if quoted == elements else f"{found[1]}[{','.join(quoted)}]"


def _is_bare(element: str) -> bool:
    return "=" in element and element[0] not in f"'\"{OPENING}"


def _quoted(element: str) -> str:
    escaped = element.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _elements(text: str) -> Iterator[str]:
    """Split at commas that stand in no bracket and no quotes."""
    depth, quote, start = 0, "", 0
    for i, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote and text[i - 1] != "\\" else quote
        elif sign in "'\"":
            quote = sign
        elif sign in OPENING:
            depth += 1
        elif sign in CLOSING:
            depth -= 1
        elif sign == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    if text[start:].strip():
        yield text[start:]
