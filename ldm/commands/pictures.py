"""What making a picture and making it again have in common."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import ldm
from ldm.commands.load import LoadedRun
from ldm.sampling.generate import Generation
from ldm.sampling.recipe import Recipe, part_to_plain


def generation_of(loaded: LoadedRun, device: torch.device) -> Generation:
    """The run's own way to pictures, on a device.

    Raises:
        ValueError: The run is not one that makes pictures of prompts.
    """
    if not hasattr(loaded.module, "generation"):
        raise ValueError(
            f"{loaded.folder.path} makes no pictures of prompts (it is a {type(loaded.module).__name__}): "
            f"name a diffusion run"
        )
    return loaded.module.to(device).generation()


def make(
    generation: Generation,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    latent_size: tuple[int, int],
    batch_size: int,
    console: Console,
) -> Tensor:
    """One picture per prompt and seed, with a progress bar: (N, 3, fH, fW) uint8."""
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("sampling", total=len(prompts))
        return generation.images(
            prompts,
            seeds,
            latent_size=latent_size,
            batch_size=batch_size,
            on_batch=lambda done: progress.update(task, completed=done),
        )


def recipe_of(
    loaded: LoadedRun,
    generation: Generation,
    *,
    prompt: str,
    seed: int,
    latent_size: tuple[int, int],
    batch_size: int,
    row: int,
    device: torch.device,
) -> Recipe:
    """The recipe of one picture that ``generation``, made from ``loaded``, gave."""
    return Recipe(
        prompt=prompt,
        seed=seed,
        num_steps=generation.num_steps,
        sampler=part_to_plain(generation.sampler),
        grid=part_to_plain(generation.grid),
        guidance=part_to_plain(generation.guidance),
        latent_size=latent_size,
        batch_size=batch_size,
        row=row,
        run=str(loaded.folder.path),
        checkpoint=str(loaded.checkpoint_path),
        checkpoint_hash=loaded.checkpoint_hash,
        codec_hash=loaded.module.codec.content_hash,
        weights=loaded.weights,
        device=device.type,
        versions={"ldm": ldm.__version__, "torch": torch.__version__, "python": platform.python_version()},
    )
