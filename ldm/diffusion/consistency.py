"""Consistency: one function that takes every point of a path of the ODE to the path's end, the data.

Song et al. 2023, 2303.01469, in the latent form of Luo et al. 2023, 2310.04378 (LCM), stated by alpha and sigma so that
it holds for every schedule, and by (x0, eps) so that it holds for every parameterization.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import Denoiser, NoiseSchedule, Prediction


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """What makes a network's x0 a consistency function, the identity at sigma = 0 (2303.01469, eq. 5).

    ``f = c_skip * x_t + c_out * x0`` with s = scale * sigma / alpha, d = sigma_data,
    c_skip = d^2 / (s^2 + d^2) and c_out = s / sqrt(s^2 + d^2) (2310.04378, appendix C). At alpha = 0 f is x0.

    Args:
        sigma_data: Of the skip.
        scale: How fast the skip fades. LCM states s as 10 times the number of the timestep of 1000, so that where its
            sampler stops (t > 0.02) c_skip is below 1e-5; with this default so it is here.
    """

    sigma_data: float = 0.5
    scale: float = 10_000.0

    def __post_init__(self) -> None:
        if not (self.sigma_data > 0 and self.scale > 0):
            raise ValueError(
                f"Boundary needs sigma_data > 0 and scale > 0, got {self.sigma_data} and {self.scale}"
            )

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out), of alpha's shape."""
        d, s = self.sigma_data * alpha, self.scale * sigma  # both times alpha, which may be 0
        square = d.square() + s.square()
        return d.square() / square, s / square.sqrt()

    def __call__(self, prediction: Prediction, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """f of x_t (B, C, H, W); alpha and sigma (B, 1, 1, 1)."""
        c_skip, c_out = self.coefficients(alpha, sigma)
        # Where sigma is 0 a parameterization may leave x0 open, 0 / 0: there f is x_t, whatever was answered.
        return torch.where(sigma > 0, c_skip * x_t + c_out * prediction.x0, x_t)


@dataclass(frozen=True, kw_only=True)
class SkippedSteps:
    """Pairs of times that the ODE solver steps between (2310.04378, section 4.3).

    Args:
        num_times: Of the grid over the diffusion's range of times, its first end left out: t_n = n / num_times.
        skip: How many of them a step goes; their k. More is faster and less exact.
    """

    num_times: int = 1000
    skip: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.skip <= self.num_times:
            raise ValueError(
                f"SkippedSteps needs 1 <= skip <= num_times, got skip={self.skip}, num_times={self.num_times}"
            )

    def __call__(self, u: Tensor, t_range: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Uniform draws u (B,) from [0, 1) -> t and the smaller s, (B,) each; both ends of the range are reached."""
        n = self.skip + (u.double() * (self.num_times - self.skip + 1)).floor()
        low, high = t_range
        t, s = (low + (high - low) * place / self.num_times for place in (n, n - self.skip))
        return t.to(u), s.to(u)


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(mean square + c^2) - c over all but the first dimension: (B, ...) -> (B,).

    Song & Dhariwal 2023, 2310.14189, section 3.3, divided by the root of the number of dimensions, so that their
    c = 0.00054 sqrt(d) is 0.00054 for pictures of all sizes.
    """
    return torch.sqrt(difference.square().flatten(1).mean(1) + c**2) - c


def consistency_loss(
    schedule: NoiseSchedule,
    *,
    student: Denoiser,
    target: Denoiser,
    teacher: Denoiser,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    boundary: Boundary,
    huber: float,
) -> Tensor:
    """How far the student's f(x_t, t) is from the target's f a solver step further (2310.04378, eq. 14).

    The step is DDIM's, Euler's method in sigma / alpha: x_s = alpha(s) x0 + sigma(s) eps with the teacher's x0 and eps.

    Args:
        schedule: Resolved for these latents.
        student: Is differentiated.
        target: The average of earlier students.
        teacher: Gives the direction of the path; guided, as a rule.
        x_t: (B, C, H, W).
        t: (B,).
        s: (B,), where the step ends.
        boundary: Turns x0 into f.
        huber: The c of ``pseudo_huber``.

    Returns:
        (B,)
    """
    alpha, sigma = alpha_sigma(schedule, t)
    with torch.no_grad():
        alpha_s, sigma_s = alpha_sigma(schedule, s)
        direction = teacher(x_t, t)
        x_s = alpha_s * direction.x0 + sigma_s * direction.eps
        goal = boundary(target(x_s, s), x_s, alpha_s, sigma_s)
    return pseudo_huber(boundary(student(x_t, t), x_t, alpha, sigma) - goal, huber)


def alpha_sigma(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """t (B,) -> both (B, 1, 1, 1)."""
    t = t[:, None, None, None]
    return schedule.alpha(t), schedule.sigma(t)
