"""From a run on disk to its module with weights, ready to sample or to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from ldm.commands.needs import refuse_missing
from ldm.commands.schema import check
from ldm.training.checkpoint import load_parts, load_weights, read_run
from ldm.training.hashing import file_hash
from ldm.training.run import RunFolder
from ldm.training.snapshots import find_average, read_average


@dataclass(frozen=True)
class LoadedRun:
    """A run's module with the weights of one of its checkpoints, in evaluation mode on the CPU."""

    folder: RunFolder
    config: DictConfig
    module: Any  # the task's LightningModule
    checkpoint_path: Path
    checkpoint_hash: str  # tells it from all others, 64 hex digits
    weights: str  # which were loaded: "ema", "online", or an average's name with its file's hash
    images_seen: int
    parts: Mapping[str, nn.Module] = field(default_factory=dict)  # what was trained, by name


def load_run(run: str | Path, *, weights: str = "ema", runs: str | Path = "runs") -> LoadedRun:
    """Find a run, check that its config builds allowed parts only, build its module and load its weights.

    Args:
        run: A run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``, or one checkpoint of a run.
        weights: "ema" for the averaged weights where the run kept them, "online" for the plain ones, or the name of
            an average that ``ldm ema`` made.

    Raises:
        FileNotFoundError: There is no such run, or it has no checkpoint yet.
        ValueError: There are no such weights.
        ConfigError: Its config names something that may not be built.
        MissingNeeds: Files of pretrained weights are not on this machine.
        ValueError: Its text encoder or autoencoder has become another one.
    """
    saved = read_run(run, runs=runs)
    check(saved.config, record="ldm.commands.settings.TrainConfig")
    refuse_missing(saved.config, file=saved.folder.config)
    average = None if weights in ("ema", "online") else find_average(saved.folder.path, weights)
    module = instantiate(saved.config.task, _convert_="all")
    loaded = load_weights(module, saved.checkpoint, weights="online" if average else weights)
    images_seen = int(saved.checkpoint["images_seen"])
    if average:
        state, images_seen = read_average(average)
        load_parts(module, state)
        loaded = f"{average.stem}#{file_hash(average)[:12]}"
    parts = module.parts()  # before they are frozen: afterwards nothing is trained
    module.eval().requires_grad_(False)
    return LoadedRun(
        folder=saved.folder,
        config=saved.config,
        module=module,
        checkpoint_path=saved.checkpoint_path,
        checkpoint_hash=saved.checkpoint_hash,
        weights=loaded,
        images_seen=images_seen,
        parts=parts,
    )


def device_for(name: str = "auto") -> torch.device:
    """ "auto" -> the GPU if there is one, else the CPU; any other name as torch knows it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
