"""MeanFlow: the velocity averaged over a span of time, with which one step goes where the ODE goes.

Geng et al. 2025, 2505.13447, on the straight line ``x_t = (1 - t) x0 + t eps`` whose velocity is eps - x0. With
u(x_t, r, t) the average over [r, t], the path goes from x_t to ``x_r = x_t - (t - r) u`` (their eq. 3 and 12), and

    u + (t - r) du/dt = v,    du/dt = v grad_x u + dt u    (eq. 6 and 8, the MeanFlow identity)

where v is the velocity at x_t itself. Its left side is what a network is trained to make equal to v: stated so, and
not as u = v - (t - r) du/dt, the target does not depend on the network (iMF, 2512.02012, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.diffusion.parameterizations import Flow
from ldm.interfaces import Conditioning, Network, NoiseSchedule, Parameterization


class Jump(float):
    """A time that knows where the step from it ends: what a sampler hands a denoiser that answers averages."""

    until: float

    def __new__(cls, t: float, *, until: float) -> Jump:
        jump = super().__new__(cls, t)
        jump.until = until
        return jump


@dataclass(frozen=True, kw_only=True)
class AdaptiveWeight:
    """1 / (squared error + c)^power, not differentiated (2505.13447, eq. 22).

    Args:
        power: 0 is the plain squared error, 1 makes every sample pull alike.
        c: Keeps the weight finite; on the sum over all latents.
    """

    power: float = 1.0
    c: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.power >= 0 and self.c > 0):
            raise ValueError(f"AdaptiveWeight needs power >= 0 and c > 0, got {self.power} and {self.c}")

    def __call__(self, squared_error: Tensor) -> Tensor:
        """Squared errors summed over C, H, W, (B,) -> weighted, (B,)."""
        return squared_error * (squared_error.detach() + self.c) ** -self.power


class Derivative(Protocol):
    """How du/dt along the path is found, r held: tangent grad_x u + dt u, without a gradient."""

    @property
    def needs_forward_mode(self) -> bool:
        """Whether every operator of the network must have a forward-mode derivative."""
        ...

    def __call__(
        self, network: Network, u: Tensor, x_t: Tensor, t: Tensor, cond: Conditioning, tangent: Tensor
    ) -> Tensor:
        """
        Args:
            network: Answers average velocities, and is told the span.
            u: What it answers at x_t, (B, C, H, W).
            x_t: (B, C, H, W).
            t: (B,).
            cond: B, with the span t - r > 0, which grows with t.
            tangent: dx/dt, (B, C, H, W).

        Returns:
            (B, C, H, W)
        """
        ...


@dataclass(frozen=True)
class ForwardMode:
    """Exact, by forward-mode differentiation, as published (2505.13447, section 4.1).

    torch's attention has a forward-mode derivative in its plain formula, which is chosen here. A network that is told
    of t by fast sinusoids (``TimeEmbedding``: of 1000 t) has a derivative that is exact and still far from its slope
    over any step that is made: docs/few_steps.md has a measurement. Then ``Differences`` is the one to take.
    """

    needs_forward_mode: ClassVar[bool] = True

    def __call__(
        self, network: Network, u: Tensor, x_t: Tensor, t: Tensor, cond: Conditioning, tangent: Tensor
    ) -> Tensor:
        def answer(x_t: Tensor, t: Tensor, span: Tensor) -> Tensor:
            return network(x_t, t, replace(cond, span=span))

        one = torch.ones_like(t)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            derivative = torch.func.jvp(answer, (x_t, t, cond.span), (tangent, one, one))[1]
        return derivative.detach()


@dataclass(frozen=True, kw_only=True)
class Differences:
    """(u(x_t, t) - u(x_t - h dx/dt, t - h)) / h: one more answer of the network, for every kernel and precision.

    Args:
        step: h, for spans that are as long; shorter ones are gone back over whole.
    """

    step: float = 0.05
    needs_forward_mode: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise ValueError(f"Differences needs 0 < step <= 1, got step={self.step}")

    @torch.no_grad()
    def __call__(
        self, network: Network, u: Tensor, x_t: Tensor, t: Tensor, cond: Conditioning, tangent: Tensor
    ) -> Tensor:
        assert cond.span is not None
        h = cond.span.clamp(max=self.step)  # (B,)
        back = h[:, None, None, None]
        before = network(x_t - back * tangent, t - h, replace(cond, span=cond.span - h))
        return (u - before.to(u)) / back


def correction(
    network: Network,
    u: Tensor,
    x_t: Tensor,
    t: Tensor,
    cond: Conditioning,
    *,
    span: Tensor,
    tangent: Tensor,
    derivative: Derivative,
) -> Tensor:
    """(t - r) du/dt, what is added to u in the identity: (B, C, H, W), without a gradient.

    See ``Derivative``; only the rows with a span, (B,), are asked.
    """
    product = torch.zeros_like(u, requires_grad=False)
    far = (span > 0).nonzero()[:, 0]  # (n,)
    if len(far):
        still = replace(cond[far].each(lambda x: x.detach()), span=span[far])
        slope = derivative(network, u[far].detach(), x_t[far], t[far], still, tangent[far])
        product[far] = span[far, None, None, None] * slope.to(product)
    return product


def refuse_other_paths(schedule: NoiseSchedule, parameterization: Parameterization) -> None:
    """
    Raises:
        ValueError: x_t does not run along (1 - t) x0 + t eps, or the network's output is not the velocity there.
    """
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    straight = torch.allclose(schedule.alpha(t), 1 - t) and torch.allclose(schedule.sigma(t), t)
    if not (straight and torch.allclose(schedule.network_time(t), t) and isinstance(parameterization, Flow)):
        raise ValueError(
            f"MeanFlow averages the velocity of the straight path, and this is {type(parameterization).__name__} with "
            f"{type(schedule).__name__}: use diffusion=rectified_flow (without a shift in its schedule), and a teacher "
            f"that was trained with it; task=lcm takes any"
        )
