"""One network, walked by a scheduler of diffusers and by a sampler of ours: same times, same noise.

diffusers counts the steps of a table, i = 0 ... 999, where we have t = (i + 1) / 1000. Its ``final_sigmas_type`` "zero"
and ``set_alpha_to_one`` are our time 0 at the end, its "sigma_min" is our time 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.parameterizations import Epsilon, Flow, V
from ldm.diffusion.schedules import Schedule
from ldm.diffusion.tabulated import DDPMLinear, ScaledLinear
from ldm.interfaces import NoiseSchedule, Parameterization, Prediction, Sampler

diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 4, 5, 3)
PREDICTIONS: dict[str, Parameterization] = {
    "epsilon": Epsilon(),
    "v_prediction": V(),
    "flow_prediction": Flow(),
}
TABLES: dict[str, Schedule] = {"linear": DDPMLinear(), "scaled_linear": ScaledLinear()}
BETAS = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
}
IN_TABLE = (0.001, 1.0)
over_predictions = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
over_tables = pytest.mark.parametrize("table", TABLES)


def build(kind: str, table: str, prediction: str, **settings: Any) -> Any:
    return getattr(diffusers, kind)(
        beta_schedule=table, **BETAS[table], prediction_type=prediction, **settings
    )


def network(x: Tensor, index: float) -> Tensor:
    """A smooth function of x (B, 4, H, W) and of the number that diffusers calls the timestep."""
    weight = torch.linspace(-1, 1, 16).reshape(4, 4).sin()
    return 0.5 * torch.tanh(torch.einsum("ij,bjhw->bihw", weight, x) + index / 400) + 0.3 * x


def noises(num: int) -> list[Tensor]:
    """What a scheduler draws, one after the other, from a generator with seed 1."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator) for _ in range(num)]


START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def their_walk(
    scheduler: Any, *, rescaled: bool = False, arguments: Callable[[int], dict[str, Any]] = lambda step: {}
) -> list[Tensor]:
    """x at every time that the network is asked at, and at the end.

    Args:
        scheduler: After ``set_timesteps``.
        rescaled: It comes from k-diffusion and walks y = x / alpha, with noise levels sigma / alpha.
        arguments: More for each ``step``, given its number.
    """
    num = len(scheduler.timesteps)
    alpha = torch.rsqrt(1 + scheduler.sigmas.double() ** 2).tolist() if rescaled else [1.0] * (num + 1)
    y, walked = START / alpha[0], []
    for step, t in enumerate(scheduler.timesteps):
        walked.append(y * alpha[step])
        seen = scheduler.scale_model_input(y, t) if hasattr(scheduler, "scale_model_input") else y
        y = scheduler.step(network(seen, float(t)), t, y, **arguments(step)).prev_sample
    return [*walked, y * alpha[num]]


@dataclass(frozen=True)
class Rescaled(Schedule):
    """The schedule of y = x / alpha: the same walk in other coordinates."""

    schedule: NoiseSchedule

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t) / self.schedule.alpha(t)


def our_walk(
    sampler: Sampler,
    schedule: NoiseSchedule,
    prediction: str,
    times: Tensor,
    timesteps: Sequence[float],
    *,
    slack: float = 0.01,
    rescaled: bool = False,
) -> list[Tensor]:
    """The same of ours.

    Args:
        sampler: Ours.
        schedule: Of x.
        prediction: diffusers' word for what the network says.
        times: Of the walk.
        timesteps: What diffusers tells the network, call by call. Some of its schedulers round it or cut it off.
        slack: How far they may lie from ours, so that our times are the reference's in truth.
        rescaled: Walk y = x / alpha.
    """
    calls, walked = iter([float(timestep) for timestep in timesteps]), []
    is_flow = prediction == "flow_prediction"

    def denoise(y: Tensor, t: Tensor | float) -> Prediction:
        timestep, time = next(calls), torch.tensor(float(t), dtype=torch.float64)
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        assert abs((1000 * float(sigma) if is_flow else 1000 * float(t) - 1) - timestep) <= slack
        x = y * alpha if rescaled else y
        p, q = PREDICTIONS[prediction].target_coeffs(alpha, sigma)
        output, det = network(x.float(), timestep).double(), alpha * q - sigma * p
        return Prediction(x0=(q * x - sigma * output) / det, eps=(alpha * output - p * x) / det)

    def on_step(step: int, y: Tensor, prediction: Prediction) -> None:
        walked.append(y * schedule.alpha(times[step].double()) if rescaled else y)

    path: NoiseSchedule = Rescaled(schedule) if rescaled else schedule
    start = START.double() / (schedule.alpha(times[0].double()) if rescaled else 1)
    end = sampler(denoise, path, start, times, noise=noises(len(times)).__getitem__, on_step=on_step)
    return [*walked, end * schedule.alpha(times[-1].double()) if rescaled else end]


def assert_same_walk(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 3
    for step, (x, y) in enumerate(zip(found, expected, strict=True)):
        error = float((x - y).abs().max() / y.abs().max())
        assert error < 1e-4, f"before step {step}: relative error {error:.1e}"


def times_of(scheduler: Any, end: float = 0.0) -> Tensor:
    return torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.tensor([end]).double()])


def compare(sampler: Sampler, scheduler: Any, table: str, prediction: str, **arguments: Any) -> None:
    """A walk along the integer steps of a table."""
    found = our_walk(sampler, TABLES[table], prediction, times_of(scheduler), scheduler.timesteps)
    assert_same_walk(found, their_walk(scheduler, **arguments))
