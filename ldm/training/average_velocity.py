"""MeanFlow (Geng et al. 2025, 2505.13447) with the target of iMF (2512.02012): a network of few steps, or of one.

From scratch, or from a flow-matching run: then that run's weights are the start and its guided velocity the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.mean_flow import (
    AdaptiveWeight,
    Derivative,
    Differences,
    correction,
    refuse_other_paths,
)
from ldm.diffusion.schedules import log_snr
from ldm.diffusion.time_samplers import Stratified
from ldm.interfaces import Conditioning, Network
from ldm.nn.attention import Flex, XFormers
from ldm.nn.blocks import Execution
from ldm.training.guidance_scales import GuidanceScales
from ldm.training.objectives import Losses, Objective, Samples
from ldm.training.teacher import Teacher
from ldm.transfer import sent


class AverageVelocity(Objective):
    """The MeanFlow identity, u + (t - r) du/dt = v, as a squared error.

    Guidance is built into v, so that sampling takes one call a step (2505.13447, section 4.2). With v_c and v_u the
    velocities with and without captions and w the scale, it is ``v_u + w (v_c - v_u)``. A teacher is asked for both.
    Without one the network's own answers at r = t stand in, beside the sample's velocity eps - x0:
    ``v = eps - x0 + (1 - 1/w) (v_c - v_u)``, which has its fixed point where v_c is guided by w already.

    What du/dt runs along: with a teacher its v, the true direction; without one the network's own v_c (``improved``,
    2512.02012, section 4.1), or v, as first published, which is right on average only.

    Args:
        scales: Guidance scales to be taught.
        share_still: Share of the samples with r = t, which are plain flow matching, in [0, 1].
        improved: See above; without a teacher only.
        derivative: How du/dt is found; ``Differences`` when None.
        weight: Of the squared error.

    Raises:
        ValueError: A share outside [0, 1].
    """

    trains = ("network", "text_encoder")
    may_be_sharded = False

    def __init__(
        self,
        *,
        scales: GuidanceScales | None = None,
        share_still: float = 0.5,
        improved: bool = True,
        derivative: Derivative | None = None,
        weight: AdaptiveWeight | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= share_still <= 1:
            raise ValueError(f"share_still={share_still} must lie in [0, 1]")
        self.scales = scales or GuidanceScales()
        self.share_still = share_still
        self.improved = improved
        self.derivative = derivative or Differences()
        self.weight = weight or AdaptiveWeight()

    def prepare(
        self,
        *,
        parts: Mapping[str, nn.Module],
        diffusion: Diffusion,
        teacher: Teacher | None,
        execution: Execution,
    ) -> None:
        network = parts["network"]
        refuse_other_paths(diffusion.schedule, diffusion.parameterization)
        self.scales.refuse_deaf(network)
        if not any("span_embedding." in name for name, _ in network.named_parameters()):
            raise ValueError(
                f"{type(network).__name__} is not told of spans of time: give network.average=true"
            )
        if self.derivative.needs_forward_mode:
            _refuse_backward_only(network, execution)

    def losses(self, samples: Samples) -> Losses:
        network, x0 = cast(Network, samples.network), samples.x0
        t, span = self.spans(samples)  # (B,) each
        x_t = samples.diffusion.add_noise(x0, samples.eps, t)  # (B, C, H, W)
        w = self.scales(samples.uniform("guidance"))  # (B,)
        cond = replace(samples.captions(), guidance=w.to(t))
        # Before anything is asked without gradients: under autocast the first call leaves its rounded weights to the
        # others, with or without their gradients.
        u = network(x_t, t, replace(cond, span=span)).to(x_t)
        if samples.teacher is not None:
            v = tangent = _taught(samples, samples.teacher, x_t, t, w)
        else:
            v, own = self._own(samples, network, x_t, t, cond, w)
            tangent = own if self.improved else v
        added = correction(network, u, x_t, t, cond, span=span, tangent=tangent, derivative=self.derivative)
        error = u + added - v
        squared = error.square().flatten(1).sum(1)  # (B,)
        return Losses(self.weight(squared), squared / x0[0].numel(), log_snr(samples.diffusion.schedule, t))

    def spans(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """t and t - r, (B,) each: two draws of the diffusion's law in order, or one where there is no span."""
        law, diffusion = samples.diffusion.time_sampler, samples.diffusion
        if isinstance(law, Stratified):  # two draws from one stratum would lie close together
            diffusion = replace(diffusion, time_sampler=law.law)
        first = samples.times(samples.u)
        second = replace(samples, diffusion=diffusion).times(samples.uniform("second time"))
        still = sent(samples.uniform("no span") < self.share_still, first.device)
        t = torch.where(still, first, torch.maximum(first, second))
        return t, torch.where(still, torch.zeros_like(t), (first - second).abs())

    @torch.no_grad()
    def _own(
        self, samples: Samples, network: Network, x_t: Tensor, t: Tensor, cond: Conditioning, w: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The guided velocity to learn, and what the network says of it now, (B, C, H, W) each."""
        still = torch.zeros_like(t)
        with_captions = network(x_t, t, replace(cond, span=still)).to(x_t)
        v = samples.eps - samples.x0
        if self.scales.highest > 1:
            none = replace(samples.no_captions(), guidance=cond.guidance, span=still)
            share = (1 - 1 / w).to(x_t)[:, None, None, None]
            v = v + share * (with_captions - network(x_t, t, none).to(x_t))
        return v, with_captions


@torch.no_grad()
def _taught(samples: Samples, teacher: Teacher, x_t: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """The teacher's guided velocity at x_t, (B, C, H, W)."""
    denoise = teacher.denoiser(
        samples.diffusion, w, captions=samples.captions, no_captions=samples.no_captions
    )
    answer = denoise(x_t, t)
    return answer.eps - answer.x0


def _refuse_backward_only(network: nn.Module, execution: Execution) -> None:
    """
    Raises:
        ValueError: The network would be run in a way that has no forward-mode derivative.
    """
    remedy = "or task.objective.derivative._target_=ldm.diffusion.mean_flow.Differences"
    if execution.compile:
        raise ValueError(
            f"the derivative of MeanFlow is taken forwards, which compiled blocks do not know: "
            f"task.execution.compile=false, {remedy}"
        )
    kernels = {type(module.kernel) for module in network.modules() if hasattr(module, "kernel")}
    if refused := kernels & {XFormers, Flex}:
        names = " and ".join(sorted(kernel.__name__ for kernel in refused))
        raise ValueError(
            f"the derivative of MeanFlow is taken forwards, which {names} does not know: network/attention=sdpa, "
            f"matmul or math (weights do not depend on it), {remedy}"
        )
