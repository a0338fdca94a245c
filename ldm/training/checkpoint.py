"""Checkpoints: plain data only, found by run, read with ``weights_only=True``.

What a checkpoint file holds besides Lightning's own entries (``state_dict``, ``optimizer_states``, ``loops``,
``callbacks``)::

    images_seen   how many pictures the training had seen, over all processes
    ema           {"network": state_dict, ...} averaged weights of the trained parts, when averaging was on
    other_averages  {name: the same, ...} where there were several
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ldm.training.run import RunFolder, find_run

PLAIN = (Tensor, int, float, str, bool, bytes, type(None), torch.Size, torch.dtype, torch.device)


@dataclass(frozen=True)
class SavedRun:
    """A run read from disk, before anything is built from it."""

    folder: RunFolder
    config: DictConfig
    checkpoint: dict[str, Any]
    checkpoint_path: Path
    checkpoint_hash: str  # sha256 of the file, 64 hex digits


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """``last.ckpt``, else the file written last; None where the run has saved nothing yet."""
    last = folder.checkpoints / "last.ckpt"
    if last.is_file():
        return last
    files = sorted(folder.checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    return files[-1] if files else None


def read_run(where: str | Path, *, runs: str | Path = "runs") -> SavedRun:
    """Find a run and read its config and its newest checkpoint.

    Args:
        where: a run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``, or one checkpoint file of a run.

    Raises:
        FileNotFoundError: there is no such run, or it has no checkpoint yet.
    """
    path = Path(where)
    if path.suffix == ".ckpt" and path.is_file():
        folder, checkpoint = RunFolder(path.resolve().parent.parent), path
    else:
        folder = find_run(where, runs=runs)
        found = newest_checkpoint(folder)
        if found is None:
            raise FileNotFoundError(
                f"the run {folder.path} has no checkpoint yet (looked in {folder.checkpoints})"
            )
        checkpoint = found
    config = folder.read_config()
    return SavedRun(folder, config, read_checkpoint(checkpoint), checkpoint, file_hash(checkpoint))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The file's content, tensors on the CPU and mapped from the file until they are used."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    module.on_load_checkpoint(checkpoint)  # type: ignore[operator]  # as Lightning would; may add the frozen codec
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
