"""What a check of ``ldm doctor`` says."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: "ok", "warn" or "fail".
        what: Was looked at.
        found: In words.
        remedy: What to do, where something is to be done.
        missing: A file or a package is not there, which has an exit status of its own.
    """

    level: str
    what: str
    found: str
    remedy: str = ""
    missing: bool = False
