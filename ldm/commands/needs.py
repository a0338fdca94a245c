"""What a composed config needs on this machine, asked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm.commands.messages import Path, dotted
from ldm.needs import HasNeeds, KnowsNeeds, MissingNeeds, Need


def needs(config: DictConfig) -> list[tuple[str, Need]]:
    """Every need of every part, with the key that asks for it; ``config`` has passed the schema.

    Of the config only the small objects that are ``HasNeeds`` are built.
    """
    found = []
    for path, node in _objects(config, ()):
        key = dotted(path)
        found += [(key, need.at(key)) for need in _needs_of(node)]
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


def _needs_of(node: DictConfig) -> Sequence[Need]:
    try:
        kind = get_class(str(node["_target_"]))
    except ValueError:  # a function
        return []
    if issubclass(kind, HasNeeds):
        return instantiate(node, _convert_="all").needs()
    if isinstance(kind, KnowsNeeds):
        arguments = {str(key): node[key] for key in node if key != "_target_"}
        return kind.needs_for(**arguments)
    return []


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
