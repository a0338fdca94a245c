"""What making a picture and making it again have in common."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import ldm
from ldm.commands.inputs import Input, tensors
from ldm.commands.load import LoadedRun
from ldm.interfaces import StepCallback
from ldm.sampling.generate import Generation
from ldm.sampling.modes import Mode
from ldm.sampling.recipe import Recipe, part_to_plain
from ldm.sampling.request import Request
from ldm.training.ranks import Ranks, make_together


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


def decoder_hash(codec: object) -> str:
    """What tells the decoder of a picture from all others; several may share one latent space."""
    return str(getattr(codec, "decoder_hash", getattr(codec, "content_hash", "")))


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that pictures are made with, but for what each is asked for with.

    Args:
        loaded: The run.
        generation: Made from it, with the parts that were asked for.
        mode: What is done.
        inputs: The pictures that the mode starts from.
        guide: The record of the weaker model, where the guidance has one.
        latent_size: (H, W).
        batch_size: Pictures made at once.
        device: Where.
    """

    loaded: LoadedRun
    generation: Generation
    mode: Mode
    inputs: Mapping[str, Input]
    guide: Mapping[str, dict[str, str]]
    latent_size: tuple[int, int]
    batch_size: int
    device: torch.device

    def make(
        self,
        requests: Sequence[Request],
        *,
        console: Console,
        on_step: StepCallback | None = None,
        ranks: Ranks | None = None,
    ) -> Tensor:
        """One picture per request, made by all processes, with a progress bar: (N, 3, fH, fW) uint8."""
        codec = self.generation.codec
        height, width = (side * codec.downsample for side in self.latent_size)
        with torch.no_grad():
            route = self.mode.route(codec, tensors(self.inputs, (height, width), self.device))
        columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("sampling", total=len(requests))

            def make(rows: Sequence[int]) -> Tensor:
                return self.generation.pictures(
                    [requests[row] for row in rows],
                    latent_size=self.latent_size,
                    batch_size=self.batch_size,
                    route=route,
                    on_step=on_step,
                )

            return make_together(
                make,
                len(requests),
                batch_size=self.batch_size,
                ranks=ranks or Ranks(),
                device=self.device,
                on_batch=lambda done: progress.update(task, completed=done),
            )

    def recipe(self, request: Request, *, row: int) -> Recipe:
        """The recipe of one picture, made in this row of its batch."""
        loaded, generation = self.loaded, self.generation
        return Recipe(
            prompt=request.prompt,
            seed=request.seed,
            negative=request.negative,
            scale=request.scale,
            blend=None if request.blend is None else dataclasses.asdict(request.blend),
            original_size=request.original_size,
            crop=request.crop,
            num_steps=generation.num_steps,
            sampler=part_to_plain(generation.sampler),
            grid=part_to_plain(generation.grid),
            guidance=part_to_plain(generation.guidance),
            mode=part_to_plain(self.mode),
            inputs={**{what: one.record() for what, one in self.inputs.items()}, **self.guide},
            latent_size=self.latent_size,
            batch_size=self.batch_size,
            row=row,
            run=str(loaded.folder.path),
            checkpoint=str(loaded.checkpoint_path),
            checkpoint_hash=loaded.checkpoint_hash,
            codec_hash=decoder_hash(loaded.module.codec),
            weights=loaded.weights,
            device=self.device.type,
            versions={
                "ldm": ldm.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )
