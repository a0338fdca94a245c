"""Which checkpoints of a run are scored, and what of a run its scores depend on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from ldm.commands.guide import check_guidance, with_guide
from ldm.commands.load import LoadedRun
from ldm.evaluation.together import Together
from ldm.interfaces import Guidance, Sampler
from ldm.sampling.from_run import FromRun, GuidanceFromRun, with_parts
from ldm.sampling.generate import Generation
from ldm.sampling.grids import Grid
from ldm.sampling.request import Request
from ldm.training.checkpoint import is_checkpoint, list_checkpoints
from ldm.training.ranks import Ranks
from ldm.training.run import RunFolder, find_run
from ldm.training.subject import Origin, ema_width


def checkpoints_of(
    run: str,
    checkpoint: str | None,
    *,
    follow: bool,
    runs: str,
    ranks: Ranks,
    place: torch.device,
    poll: float,
) -> Iterator[str | Path]:
    """What is to be loaded, one after the other; ``follow`` waits for what comes.

    Raises:
        FileNotFoundError: There is no such run or checkpoint.
        ValueError: One checkpoint is named twice.
    """
    together = Together(ranks.rank, ranks.size, place)
    if is_checkpoint(run):
        if checkpoint is not None or follow:
            raise ValueError(f"run={run} is one checkpoint already: leave checkpoint and follow out")
        yield run
        return
    if not follow and checkpoint is None:
        yield run
        return
    folder = find_run(run, runs=runs)
    if not follow and checkpoint != "all":
        yield together.told(named_checkpoint(folder, str(checkpoint)))
        return
    done: set[Path] = set()
    while True:
        # Looked at first: what was written until then is listed below.
        ended = together.told(folder.finished.is_file())
        there = together.told(list(reversed(list_checkpoints(folder.checkpoints))))
        new = [path for path in there if path not in done]
        if checkpoint is None:  # following without "all": only the newest, where it runs behind
            new = new[-1:]
        yield from new
        done |= set(there)
        if not follow or ended:
            break
        time.sleep(poll)
    if not done:
        raise FileNotFoundError(
            f"the run {folder.path} has no checkpoint yet (looked in {folder.checkpoints})"
        )


def named_checkpoint(folder: RunFolder, name: str) -> Path:
    """
    Raises:
        FileNotFoundError: There is none of this name; it says which there are.
    """
    path = folder.checkpoints / name
    if is_checkpoint(path):
        return path.resolve()
    there = ", ".join(one.name for one in list_checkpoints(folder.checkpoints)) or "none"
    raise FileNotFoundError(
        f"{folder.path} has no checkpoint {name!r}; there are {there}: give one of them, last, best or all"
    )


def origin_of(loaded: LoadedRun) -> Origin:
    """Which weights were loaded."""
    return Origin(
        run=f"{loaded.folder.name}/{loaded.folder.id}",
        checkpoint=loaded.checkpoint_path.name,
        checkpoint_hash=loaded.checkpoint_hash,
        images_seen=loaded.images_seen,
        weights=loaded.weights,
        ema_width=ema_width(loaded.config) if loaded.weights == "ema" else None,
    )


def generation_of(
    loaded: LoadedRun,
    device: torch.device,
    *,
    sampler: Sampler | FromRun,
    grid: Grid | FromRun,
    guidance: Guidance | FromRun | GuidanceFromRun,
    num_steps: int | None,
    runs: str,
) -> Generation | None:
    """The run's own way to pictures with the parts that were asked for; None for a run that makes none.

    Raises:
        ValueError: The run cannot be guided like that.
    """
    if not hasattr(loaded.module, "generation"):
        return None
    own = loaded.module.generation()
    made = with_parts(own, sampler=sampler, grid=grid, guidance=guidance, num_steps=num_steps)
    made, _ = with_guide(made, device=device, runs=runs)
    check_guidance(made, loaded.module, [Request(prompt="any", seed=0)])
    return made


def data_of(config: DictConfig, train_shards: str | None, val_shards: str | None) -> Any:
    """The run's data module, with its shards where they are now."""
    config = config.copy()
    for key, value in (("train_shards", train_shards), ("val_shards", val_shards)):
        if value is not None:
            config.data[key] = value
    return instantiate(config.data, _convert_="all")
