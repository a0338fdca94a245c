"""What must be on a machine before a run can start there: files of weights, tokenizers, packages.

A part that reads files is given a small object that names them (``HasNeeds``), so what a run needs can be asked of its
config alone, in seconds, before anything is built: ``ldm/commands/needs.py`` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Need:
    """A file, a folder or a package that a part cannot be built without.

    Attributes:
        what: In words: "the text model google/t5-v1_1-xxl".
        found: Where it is: a path, or a package's version; None where it is not there.
        looked_in: Every place that was looked in, in words.
        bring: What to do to have it there, on a machine without internet too. "{key}" in it stands for the beginning of
            the config's keys that name it, with its dot.
        fetched: It is not there, and will be downloaded when the part is built, as the user allowed.
    """

    what: str
    found: str | None
    looked_in: tuple[str, ...] = ()
    bring: str = ""
    fetched: bool = False

    @property
    def is_met(self) -> bool:
        return self.found is not None or self.fetched

    def __str__(self) -> str:
        if self.is_met:
            return f"{self.what}: {self.found or 'will be downloaded'}"
        looked = f" (looked in {', '.join(self.looked_in)})" if self.looked_in else ""
        return f"{self.what} is missing{looked}; {self.bring.replace('{key}', '')}"

    def at(self, key: str) -> Need:
        """The same, as asked for by this key of a config."""
        return replace(self, bring=self.bring.replace("{key}", f"{key}." if key else ""))


@runtime_checkable
class HasNeeds(Protocol):
    """A small object that says where weights or a tokenizer come from. Building one reads nothing."""

    def needs(self) -> Sequence[Need]:
        """Looks whether the files are there; reads none, downloads none."""
        ...


@runtime_checkable
class KnowsNeeds(Protocol):
    """A class whose objects read files when they are built, and which says beforehand which."""

    @staticmethod
    def needs_for(**arguments: Any) -> Sequence[Need]:
        """For an object of these arguments; looks whether the files are there and reads none."""
        ...


class MissingNeeds(FileNotFoundError):
    """Needs of a run that are not met, found before any work is done. Commands exit with 69.

    Args:
        needs: What is missing, each with the config's key that asks for it, or "" where none is known.
    """

    def __init__(self, needs: Sequence[tuple[str, Need]]) -> None:
        self.needs = tuple(needs)
        self.lines = [f"{key}: {need}" if key else str(need) for key, need in self.needs]
        super().__init__("; ".join(self.lines))


def refuse_unmet(needs: Sequence[Need]) -> None:
    """
    Raises:
        MissingNeeds: Some of them are not met; it names all of these.
    """
    if unmet := [("", need) for need in needs if not need.is_met]:
        raise MissingNeeds(unmet)


def package(name: str, *, extra: str) -> Need:
    """The need for a package that ``pip install 'ldm[<extra>]'`` brings."""
    try:
        found: str | None = version(name)
    except PackageNotFoundError:
        found = None
    return Need(
        what=f"the package {name}",
        found=found,
        looked_in=(sys.prefix,),
        bring=f"install it with pip install 'ldm[{extra}]'",
    )
