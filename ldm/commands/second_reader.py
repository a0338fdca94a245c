"""Diffusers itself, where it is installed, as the second reader of what was written for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.interop.formats import SecondReader


@dataclass(frozen=True)
class DiffusersReader:
    """Its ``from_pretrained``, from local files only."""

    def pipeline(self, folder: Path, class_name: str, absent: Sequence[str]) -> Any:
        import diffusers

        pipeline = getattr(diffusers, class_name)
        return pipeline.from_pretrained(str(folder), local_files_only=True, **dict.fromkeys(absent))

    def component(self, folder: Path, class_name: str) -> Any:
        import diffusers

        return getattr(diffusers, class_name).from_pretrained(str(folder), local_files_only=True)


def diffusers_if_installed() -> SecondReader | None:
    return DiffusersReader() if importlib.util.find_spec("diffusers") else None
