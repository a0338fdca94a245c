"""Checkpoints of a run: which there are, which is the newest that is whole, and what is in it.

On disk a checkpoint is a folder, see ``folders.py``; single ``.ckpt`` files of earlier versions are read as well. What
it holds besides Lightning's own entries (``state_dict``, ``optimizer_states``, ``loops``,
``callbacks``)::

    text_contract what the text encoder was: see ``ldm/text/contract.py``
    codec_hash    of the autoencoder whose latents it was trained on
    images_seen   how many pictures the training had seen, over all processes
    ema           {"network": state_dict, ...} averaged weights of the trained parts, when averaging was on
    other_averages  {name: the same, ...} where there were several
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ldm.training.folders import (
    MANIFEST,
    DamagedCheckpoint,
    images_of,
    read_folder,
    verify,
    whole_folders,
)
from ldm.training.hashing import file_hash
from ldm.training.run import RunFolder, find_run
from ldm.training.sharded import Share

log = logging.getLogger(__name__)

PLAIN = (Tensor, Share, int, float, str, bool, bytes, type(None), torch.Size, torch.dtype, torch.device)


@dataclass(frozen=True)
class SavedRun:
    """A run read from disk, before anything is built from it."""

    folder: RunFolder
    config: DictConfig
    checkpoint: dict[str, Any]
    checkpoint_path: Path
    checkpoint_hash: str  # see checkpoint_hash(), 64 hex digits


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path names one checkpoint: a folder, a link to one, or a ``.ckpt`` file. It may be damaged."""
    path = Path(path).resolve()
    if path.is_dir():
        return images_of(path) is not None or (path / MANIFEST).is_file()
    return path.suffix == ".ckpt" and path.is_file()


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """All of a run, newest first: folders by the pictures seen, then files of earlier versions, ``last.ckpt`` first."""
    files = [path for path in checkpoints.glob("*.ckpt") if path.is_file() and not path.name.startswith(".")]
    files.sort(key=lambda file: (file.name == "last.ckpt", file.stat().st_mtime), reverse=True)
    return [*whole_folders(checkpoints), *files]


def newest_checkpoint(checkpoints: Path, *, set_aside: bool = False) -> Path | None:
    """The newest checkpoint that is whole, every bit compared; None where there is none at all.

    Args:
        set_aside: Rename what is damaged, so that nobody stumbles over it again; only who owns the run may.

    Raises:
        DamagedCheckpoint: There are checkpoints, and all of them are damaged.
    """
    damaged: list[Path] = []
    for path in list_checkpoints(checkpoints):
        try:
            if path.is_dir():
                verify(path)
        except DamagedCheckpoint as error:
            log.warning("%s; taking the one before", error)
            damaged.append(path)
            continue
        for one in damaged if set_aside else ():
            aside = one.with_name(f"damaged-{one.name}-{time.strftime('%Y%m%d-%H%M%S')}")
            os.rename(one, aside)
            log.warning("set aside: %s", aside)
        return path
    if damaged:  # none is set aside: a next start would begin anew
        names = ", ".join(path.name for path in damaged)
        raise DamagedCheckpoint(f"no checkpoint in {checkpoints} is whole; looked at {names}")
    return None


def read_run(where: str | Path, *, runs: str | Path = "runs") -> SavedRun:
    """Find a run and read its config and its newest checkpoint, without the optimizer's part.

    Args:
        where: a run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``, or one checkpoint of a run.

    Raises:
        FileNotFoundError: there is no such run, or it has no checkpoint yet.
        DamagedCheckpoint: the checkpoint that was named is damaged, or all of the run are.
    """
    path = Path(where)
    verified = False
    if is_checkpoint(path):  # named, so no other will do
        path = path.resolve()
        folder, checkpoint = RunFolder(path.parent.parent), path
    else:
        folder = find_run(where, runs=runs)
        found = newest_checkpoint(folder.checkpoints)
        if found is None:
            raise FileNotFoundError(
                f"the run {folder.path} has no checkpoint yet (looked in {folder.checkpoints})"
            )
        checkpoint, verified = found, True
    config = folder.read_config()
    content = read_checkpoint(checkpoint, optimizer=False, verified=verified)
    return SavedRun(folder, config, content, checkpoint, checkpoint_hash(checkpoint))


def read_checkpoint(
    path: str | Path, *, optimizer: bool = True, verified: bool = False, shares: bool = False
) -> dict[str, Any]:
    """The content of a folder or a file, tensors on the CPU and mapped from the disk until they are used.

    Args:
        optimizer, verified, shares: See ``read_folder``.
    """
    if Path(path).is_dir():
        return read_folder(Path(path), optimizer=optimizer, verified=verified, shares=shares)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def checkpoint_hash(path: str | Path) -> str:
    """What tells a checkpoint from all others: the sha256 of its manifest, which has those of all its files."""
    return file_hash(Path(path) / MANIFEST if Path(path).is_dir() else path)


def checkpoint_with_hash(candidates: Iterable[Path], wanted: str) -> Path | None:
    """The checkpoint of this hash among ``candidates``, if any has it."""
    for path in candidates:
        there = path.is_file() or (path / MANIFEST).is_file()
        if there and checkpoint_hash(path) == wanted:
            return path
    return None


def load_weights(module: nn.Module, checkpoint: dict[str, Any], *, weights: str = "ema") -> str:
    """Load a checkpoint's weights into a LightningModule that has ``parts()``.

    Args:
        weights: "ema" for the averaged weights, or the plain ones where the run kept no average; "online" for the
            plain ones always.

    Returns:
        Which were loaded: "ema" or "online".

    Raises:
        ValueError: ``weights`` is neither, or the averaged parts are not those of the module.
    """
    if weights not in ("ema", "online"):
        raise ValueError(f"weights={weights!r} is not known: say 'ema' or 'online'")
    checkpoint = dict(checkpoint)
    module.on_load_checkpoint(checkpoint)  # type: ignore[operator]  # as Lightning would; may add frozen parts
    module.load_state_dict(checkpoint["state_dict"])
    averaged = checkpoint.get("ema")
    if weights == "online" or averaged is None:
        return "online"
    load_parts(module, averaged)
    return "ema"


def load_parts(module: nn.Module, averaged: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load averaged weights, a state dict for each part, into a LightningModule that has ``parts()``.

    Raises:
        ValueError: They are not those of the module.
    """
    parts: dict[str, nn.Module] = module.parts()  # type: ignore[operator]
    if parts.keys() != averaged.keys():
        raise ValueError(
            f"the averaged weights are of {sorted(averaged)}, the module trains {sorted(parts)}: "
            f"was it built from the run's own config?"
        )
    for name, part in parts.items():
        part.load_state_dict(averaged[name])


def foreign_entries(entry: Any, where: str = "checkpoint") -> Iterator[str]:
    """Names of the entries that are not plain data and so would not load with ``weights_only=True``."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            yield from foreign_entries(key, f"{where} key {key!r}")
            yield from foreign_entries(value, f"{where}[{key!r}]")
    elif type(entry) in (list, tuple, set):
        for index, value in enumerate(entry):
            yield from foreign_entries(value, f"{where}[{index}]")
    elif not (isinstance(entry, Tensor) or type(entry) in PLAIN):
        yield f"{where} is a {type(entry).__module__}.{type(entry).__qualname__}"
