"""Keys and passwords never enter what a run writes down: configs, commands, differences of the code, metrics' pages."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "<hidden>"
# Names of environment variables that hold a secret, and of config keys that may.
_VARIABLE = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_ENTRY = re.compile(
    r"""(?im)(["']?\b(?:\w*_)?(?:api_?key|access_?key|auth_?token|access_?token|secret(?:_key)?|password)["']?\s*[:=]\s*)"""
    r"""(?!\s*(?:null|None|\$\{|['"]{2}|$))(["']?)[^\s"',\]}]+\2"""
)
# From a word's beginning only: a line of 100,000 letters, as a picture in a notebook is, would take minutes otherwise.
_LOGIN = re.compile(r"(\b\w+://)[^\s/@:]+:[^\s/@]+@")
_LONG_ENOUGH = 8  # characters: shorter values stand by chance in any text


def without_secrets(text: str) -> str:
    """``text`` with what must be a secret replaced: values of environment variables called so, entries called
    api_key, password and the like, and logins in addresses. References such as ``${oc.env:WANDB_API_KEY}`` remain."""
    for value in sorted(_secret_values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _LOGIN.sub(rf"\1{HIDDEN}@", _ENTRY.sub(rf"\1{HIDDEN}", text))


def hide_secrets(value: Any, key: str = "") -> Any:
    """The same for nested dictionaries and lists of values."""
    if isinstance(value, dict):
        return {name: hide_secrets(x, str(name)) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [hide_secrets(x) for x in value]
    if not isinstance(value, str):
        return value
    return (
        HIDDEN if key and without_secrets(f"{key}: {value}") == f"{key}: {HIDDEN}" else without_secrets(value)
    )


def _secret_values() -> set[str]:
    return {
        value for name, value in os.environ.items() if len(value) >= _LONG_ENOUGH and _VARIABLE.search(name)
    }
