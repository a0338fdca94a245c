"""What a composed config needs on this machine, asked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm.commands.messages import Path, dotted
from ldm.needs import HasNeeds, MissingNeeds, Need


def needs(config: DictConfig) -> list[tuple[str, Need]]:
    """Every need of every part, with the key that asks for it; ``config`` has passed the schema.

    Of the config only the small objects that are ``HasNeeds`` are built.
    """
    found = []
    for path, node in _objects(config, ()):
        if _has_needs(str(node["_target_"])):
            key = dotted(path)
            found += [(key, need.at(key)) for need in instantiate(node, _convert_="all").needs()]
    return found


def refuse_missing(config: DictConfig, *, file: FilePath | None = None) -> None:
    """
    Args:
        config: Has passed the schema.
        file: Where it stands, if not on the command line: that is where a person can change it.

    Raises:
        MissingNeeds: Some needs of the config are not met; it names all of these.
    """
    where = "" if file is None else f"{file}: "
    if unmet := [(f"{where}{key}", need) for key, need in needs(config) if not need.is_met]:
        raise MissingNeeds(unmet)


def _has_needs(target: str) -> bool:
    try:
        return issubclass(get_class(target), HasNeeds)
    except ValueError:  # a function
        return False


def _objects(node: Any, path: Path) -> Iterator[tuple[Path, DictConfig]]:
    """Every mapping with ``_target_``, at its own place and not where references repeat it."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        keys: list[Any] = list(node)
    elif isinstance(node, ListConfig):
        keys = list(range(len(node)))
    else:
        return
    for key in keys:
        if not (OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key)):
            yield from _objects(node[key], (*path, key))
