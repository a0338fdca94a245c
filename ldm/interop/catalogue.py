"""Which map is for which class: found by listing this folder, so that adding a map is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from torch import nn

import ldm.interop
from ldm.interop.weights import AutoencoderMap, DiffusersMap, NetworkMap, SingleFileMap


def map_for(class_name: str) -> NetworkMap | AutoencoderMap:
    """The map of a class of diffusers.

    Raises:
        ValueError: There is none.
    """
    for found in _maps("class_name"):
        if found.class_name == class_name:
            return found
    known = ", ".join(sorted(found.class_name for found in _maps("class_name")))
    raise ValueError(f"diffusers' {class_name} has no counterpart here; known are {known}")


def described(network: nn.Module) -> tuple[Any, dict[str, Any]]:
    """The map of a network of ours and diffusers' config for it.

    Raises:
        ValueError: Diffusers has no class that could be this network; what does not fit is named.
    """
    reasons = []
    for found in _maps("class_name"):
        if isinstance(network, found.network):
            try:
                return found, found.config(network)
            except ValueError as error:
                reasons.append(str(error))
    raise ValueError("; ".join(reasons) or f"diffusers has no class for a {type(network).__name__}")


def single_file_maps(network: nn.Module) -> list[SingleFileMap]:
    """The original single-file layouts that know networks of this class."""
    return [found for found in _maps("layout") if isinstance(network, found.network)]


def diffusers_maps(network: nn.Module) -> list[DiffusersMap]:
    """The classes of diffusers that networks of this class may be."""
    return [found for found in _maps("class_name") if isinstance(network, found.network)]


@cache
def _maps(field: str) -> tuple[Any, ...]:
    return tuple(kind() for kind in _dataclasses() if field in {entry.name for entry in fields(kind)})


def _dataclasses() -> Iterator[Any]:
    """The maps: dataclasses of this folder with a ``network`` and its ``rules``."""
    for entry in pkgutil.iter_modules(ldm.interop.__path__):
        module = importlib.import_module(f"ldm.interop.{entry.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__ and is_dataclass(value)
            if own and hasattr(value, "rules") and "network" in {field.name for field in fields(value)}:
                yield value
