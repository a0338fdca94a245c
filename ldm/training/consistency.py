"""Latent consistency distillation (Luo et al. 2023, 2310.04378): a run's denoiser becomes one of few steps."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from ldm.diffusion.consistency import Boundary, SkippedSteps, consistency_loss
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.schedules import log_snr
from ldm.interfaces import Network
from ldm.nn.blocks import Execution
from ldm.training.guidance_scales import GuidanceScales
from ldm.training.objectives import Losses, Objective, Samples
from ldm.training.teacher import Teacher
from ldm.transfer import sent


class ConsistencyDistillation(Objective):
    """The student's jump to the data from x_t should land where its own average lands from a solver step further.

    Works for every schedule, parameterization and network that has the input ``guidance``. A text encoder that was
    trained with the teacher goes on learning with the student, and the target has its average, too.

    Args:
        scales: Guidance scales that the teacher is guided by and the student is told.
        steps: Which times the solver steps between.
        boundary: Turns x0 into the consistency function.
        huber: The c of ``pseudo_huber``.
        target_decay: Weight of the target's old weights per step, in [0, 1]: 0 is the student itself.

    Raises:
        ValueError: A decay outside [0, 1].
    """

    trains = ("network", "text_encoder")
    needs_teacher = True
    may_be_sharded = False

    def __init__(
        self,
        *,
        scales: GuidanceScales | None = None,
        steps: SkippedSteps | None = None,
        boundary: Boundary | None = None,
        huber: float = 0.00054,
        target_decay: float = 0.95,
    ) -> None:
        super().__init__()
        if not 0 <= target_decay <= 1:
            raise ValueError(f"target_decay={target_decay} must lie in [0, 1]")
        self.scales = scales or GuidanceScales()
        self.steps = steps or SkippedSteps()
        self.boundary = boundary or Boundary()
        self.huber = huber
        self.target_decay = target_decay
        self.target = nn.ModuleDict()  # by the names of the parts; filled when training begins

    def prepare(
        self,
        *,
        parts: Mapping[str, nn.Module],
        diffusion: Diffusion,
        teacher: Teacher | None,
        execution: Execution,
    ) -> None:
        if teacher is None:
            raise ValueError("task=lcm learns from a run: give task.teacher=<run>")
        self.scales.refuse_deaf(parts["network"])
        copies = {name: deepcopy(part).requires_grad_(False) for name, part in parts.items()}
        self.target = nn.ModuleDict(copies).eval()

    def train(self, mode: bool = True) -> ConsistencyDistillation:
        super().train(mode)
        self.target.eval()
        return self

    @torch.no_grad()
    def before_step(self, parts: Mapping[str, nn.Module]) -> None:
        for name, part in parts.items():
            copy = self.target[name]
            old: list[torch.Tensor] = [*copy.parameters()]
            torch._foreach_lerp_(old, [x.detach() for x in part.parameters()], 1 - self.target_decay)
            for mine, theirs in zip(copy.buffers(), part.buffers(), strict=True):
                mine.copy_(theirs)

    def losses(self, samples: Samples) -> Losses:
        teacher, diffusion = samples.teacher, samples.diffusion
        if teacher is None or not self.target:
            raise RuntimeError("the teacher and the target of this training were not read: prepare() does")
        t, s = (sent(x, samples.x0.device) for x in self.steps(samples.u, diffusion.t_range))
        w = self.scales(samples.uniform("guidance"))  # (B,)
        guide = teacher.denoiser(diffusion, w, captions=samples.captions, no_captions=samples.no_captions)
        cond = replace(samples.captions(), guidance=sent(w, samples.x0.device))
        student = diffusion.denoiser(cast(Network, samples.network), cond)
        if "text_encoder" in self.target:
            aims_captions = replace(samples.captions(self.target["text_encoder"]), guidance=cond.guidance)
        else:
            aims_captions = cond
        aim = diffusion.denoiser(cast(Network, self.target["network"]), aims_captions)
        loss = consistency_loss(
            diffusion.schedule,
            student=student,
            target=aim,
            teacher=guide,
            x_t=diffusion.add_noise(samples.x0, samples.eps, t),
            t=t,
            s=s,
            boundary=self.boundary,
            huber=self.huber,
        )
        return Losses(loss, loss, log_snr(diffusion.schedule, t))
