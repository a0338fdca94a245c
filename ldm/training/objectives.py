"""What a denoiser's training minimises, as an object: here the diffusion's own loss, elsewhere few-step distillation.

``DiffusionModule`` draws noise and reads captions; an objective makes losses of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ldm import randomness
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.schedules import log_snr
from ldm.interfaces import Batch, Conditioning, Network
from ldm.nn.blocks import Execution
from ldm.training.teacher import Teacher
from ldm.transfer import sent


class Losses(NamedTuple):
    """Of each sample, (B,) each."""

    loss: Tensor  # what is minimised
    shown: Tensor  # what is logged and compared, e.g. without a weight that makes all losses alike
    log_snr: Tensor


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A step's samples, as an objective sees them.

    Attributes:
        batch: As the data side handed it over.
        diffusion: Resolved for these latents.
        network: The one that is trained.
        text_encoder: The one that is trained with it, or frozen.
        teacher: An earlier run's denoiser, where there is one.
        x0: (B, C, H, W).
        eps: (B, C, H, W).
        kept: (B,) bool: whether the caption is told.
        u: (B,) uniform draws for the time.
        seed: Of further draws.
        purpose: What they are for, training or validation: "noise", "validation noise".
    """

    batch: Batch
    diffusion: Diffusion
    network: nn.Module
    text_encoder: nn.Module
    teacher: Teacher | None
    x0: Tensor
    eps: Tensor
    kept: Tensor
    u: Tensor
    seed: int
    purpose: str

    def times(self, u: Tensor) -> Tensor:
        """By the diffusion's law: u (B,) -> t (B,), where the latents are."""
        # On the CPU, where the draws are: the same times for every device, and laws by bisection need not wait for one.
        t = self.diffusion.times(u, slots=self.batch.slots, num_slots=self.batch.num_slots)
        return sent(t, self.x0.device)

    def uniform(self, name: str) -> Tensor:
        """Further draws from [0, 1), (B,), on the CPU; row i is tied to sample i and to ``name``."""
        return randomness.uniform(self.seed, f"{self.purpose}: {name}", self.batch.keys, self.batch.visits)

    def captions(self, text_encoder: nn.Module | None = None) -> Conditioning:
        """What the network is told, by its own text encoder or another."""
        return conditioning(text_encoder or self.text_encoder, self.batch, self.kept)

    def no_captions(self, text_encoder: nn.Module | None = None) -> Conditioning:
        """B times the null condition."""
        return conditioning(text_encoder or self.text_encoder, self.batch, torch.zeros_like(self.kept))


class Objective(nn.Module, ABC):
    """Base of the objectives. What it remembers between steps is a buffer or a module of it, and is saved."""

    trains: tuple[str, ...] = (
        "network",
        "text_encoder",
        "uncertainty",
    )  # which parts, where they have any weights
    needs_teacher = False
    may_be_sharded = True  # whether its networks may lie spread over devices (FSDP)

    def prepare(
        self,
        *,
        parts: Mapping[str, nn.Module],
        diffusion: Diffusion,
        teacher: Teacher | None,
        execution: Execution,
    ) -> None:
        """Once, before the first step, and again before a run goes on.

        Args:
            parts: What is trained, with the weights that training begins with.
            diffusion: The run's.
            teacher: Where one is named.
            execution: How the trained parts will be run.

        Raises:
            ValueError: This objective cannot train them.
        """
        if teacher is not None:
            raise ValueError(
                f"{type(self).__name__} has no use for task.teacher: init_from=<run> begins with its weights"
            )

    def before_step(self, parts: Mapping[str, nn.Module]) -> None:
        """Before each training step, with the weights that the last one left."""

    @abstractmethod
    def losses(self, samples: Samples) -> Losses: ...


class Denoising(Objective):
    """The diffusion's own loss: see ``ldm/diffusion/diffusion.py``."""

    def losses(self, samples: Samples) -> Losses:
        t = samples.times(samples.u)  # (B,)
        loss = samples.diffusion.loss(
            cast(Network, samples.network), samples.x0, samples.captions(), eps=samples.eps, t=t
        )
        return Losses(loss, loss, log_snr(samples.diffusion.schedule, t))


def conditioning(text_encoder: nn.Module, batch: Batch, kept: Tensor) -> Conditioning:
    """What a network is told: the captions, or none where ``kept`` (B,) is False, and how pictures were cut."""
    if batch.text is not None:
        cond = batch.text.conditioning(kept)
    else:
        cond = text_encoder(
            [caption if keep else "" for caption, keep in zip(batch.captions, kept.tolist(), strict=True)]
        )
    return replace(cond, sizes=batch.sizes)
