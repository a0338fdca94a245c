"""The samplers of first order, Heun's and LCM, and the grids, against the schedulers of diffusers, step by step.

Where a reference does something else than its paper or than we do, the test says what.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.shifts import FixedShift, Shifted, TokenShift
from ldm.diffusion.tabulated import ScaledLinear
from ldm.sampling.ancestral import EulerAncestral
from ldm.sampling.consistency import LCM
from ldm.sampling.grids import Explicit, Grid, Uniform
from ldm.sampling.published_grids import Leading, Linspace, Trailing
from ldm.sampling.samplers import DDIM, DDPM, Euler, Heun
from tests.sampling.diffusers_walks import (
    IN_TABLE,
    TABLES,
    assert_same_walk,
    build,
    compare,
    diffusers,
    noises,
    our_walk,
    over_predictions,
    over_tables,
    their_walk,
    times_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@over_predictions
@over_tables
def test_ddpm(table: str, prediction: str, variance: str, spacing: str) -> None:
    """diffusers clamps a variance of 0 to 1e-20, which is nothing, and leaves out the noise of i = 0.

    In spaced steps that stop before i = 0 it therefore adds noise to the finished picture with "fixed_large", whose
    variance is not 0 there. We never end with noise, so that last step is compared without.
    """
    settings = {"variance_type": variance, "timestep_spacing": spacing, "clip_sample": False}
    scheduler = build("DDPMScheduler", table, prediction, **settings)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(1)
    sampler = DDPM(large_variance=float(variance == "fixed_large"))
    found = our_walk(sampler, TABLES[table], prediction, times_of(scheduler), scheduler.timesteps)
    expected = their_walk(scheduler, arguments=lambda step: {"generator": generator})
    if variance == "fixed_large" and scheduler.timesteps[-1] > 0:
        last = 1 - scheduler.alphas_cumprod[scheduler.timesteps[-1]]
        expected[-1] = expected[-1] - last.sqrt() * noises(10)[-1]
    assert_same_walk(found, expected)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@over_predictions
@over_tables
def test_ddim(table: str, prediction: str, eta: float, spacing: str) -> None:
    """Not over "linspace": there diffusers' steps are 1000 // num_steps long and miss its own next time."""
    scheduler = build("DDIMScheduler", table, prediction, timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(10)
    drawn = noises(10)
    compare(
        DDIM(eta=eta),
        scheduler,
        table,
        prediction,
        arguments=lambda step: {"eta": eta, "variance_noise": drawn[step] if eta > 0 else None},
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_that_stops_at_the_first_step_of_the_table(eta: float) -> None:
    """Stable Diffusion's ``set_alpha_to_one=False``: the walk ends at i = 0, our time 0.001, and is not quite clean.

    A stochastic walk then ends with noise in it, as its variance at 0.001 asks.
    """
    scheduler = build(
        "DDIMScheduler", "scaled_linear", "epsilon", set_alpha_to_one=False, steps_offset=1, clip_sample=False
    )
    scheduler.set_timesteps(10)
    drawn = noises(10)
    times = times_of(scheduler, end=0.001)
    found = our_walk(DDIM(eta=eta), ScaledLinear(), "epsilon", times, scheduler.timesteps)
    arguments = {"eta": eta}
    expected = their_walk(
        scheduler, arguments=lambda step: arguments | ({"variance_noise": drawn[step]} if eta else {})
    )
    assert_same_walk(found, expected)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@over_predictions
@over_tables
def test_euler(table: str, prediction: str, spacing: str) -> None:
    """Ten steps of "linspace" meet the table: between its steps diffusers interpolates sigma / alpha, we log(alpha)."""
    scheduler = build("EulerDiscreteScheduler", table, prediction, timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    compare(Euler(), scheduler, table, prediction, rescaled=True)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@over_predictions
@over_tables
def test_euler_ancestral(table: str, prediction: str, spacing: str) -> None:
    scheduler = build("EulerAncestralDiscreteScheduler", table, prediction, timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(1)
    arguments = {"generator": generator}
    compare(EulerAncestral(), scheduler, table, prediction, rescaled=True, arguments=lambda step: arguments)


@over_predictions
@over_tables
def test_heun(table: str, prediction: str) -> None:
    """The trapezoidal rule depends on the coordinates. diffusers takes it in y = x / alpha, over sigma / alpha.

    Ours is taken in x, over alpha and sigma: the same where alpha is 1. So we walk y, along the schedule of y. In x the
    two differ by what both neglect, and only ours can begin at alpha = 0, where y is infinite.
    """
    scheduler = build("HeunDiscreteScheduler", table, prediction)
    scheduler.set_timesteps(10)
    asked_first = [
        0,
        *range(1, 19, 2),
    ]  # every other time stands twice: where a step ends and where one begins
    times = torch.cat([(scheduler.timesteps[asked_first].double() + 1) / 1000, torch.zeros(1).double()])
    found = our_walk(Heun(), TABLES[table], prediction, times, scheduler.timesteps, rescaled=True)
    expected = their_walk(scheduler, rescaled=True)
    assert_same_walk(found, [*expected[:-1:2], expected[-1]])


@pytest.mark.parametrize("num_steps", [4, 8])
@over_predictions
def test_lcm(prediction: str, num_steps: int) -> None:
    """c_skip is taken at i by diffusers and at i + 1 by us, where both are below 1e-5."""
    scheduler = build("LCMScheduler", "scaled_linear", prediction)
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(1)
    arguments = {"generator": generator}
    compare(LCM(), scheduler, "scaled_linear", prediction, arguments=lambda step: arguments)


def pipeline_sigmas(num_steps: int) -> np.ndarray:
    """What the pipelines of Stable Diffusion 3 and Flux hand to their scheduler, before the shift."""
    return np.linspace(1.0, 1 / num_steps, num_steps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler_with_a_fixed_shift(shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=pipeline_sigmas(10))
    expected = their_walk(scheduler)
    shifted = Shifted(schedule=RectifiedFlow(), shift=FixedShift(factor=shift))
    times = Uniform()(shifted, 10, t_range=(0.0, 1.0))
    assert_same_walk(our_walk(Euler(), shifted, "flow_prediction", times, scheduler.timesteps), expected)
    # the shifted noise levels as explicit times of the plain flow
    given = Explicit(times=scheduler.sigmas[:-1].tolist())(RectifiedFlow(), 10, t_range=(0.0, 1.0))
    found = our_walk(Euler(), RectifiedFlow(), "flow_prediction", given, scheduler.timesteps)
    assert_same_walk(found, expected)


@pytest.mark.parametrize("latents", [(16, 32, 32), (16, 64, 96), (16, 128, 128)])
def test_flow_match_euler_with_a_shift_by_resolution(latents: tuple[int, int, int]) -> None:
    """mu as Flux has it: on the line through (256 tokens, 0.5) and (4096 tokens, 1.15), a token being 2 x 2 latents."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    num_tokens = latents[1] // 2 * (latents[2] // 2)
    mu = 0.5 + (1.15 - 0.5) * (num_tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=pipeline_sigmas(10), mu=mu)
    schedule = Shifted(schedule=RectifiedFlow(), shift=TokenShift()).for_latents(latents)
    times = Uniform()(schedule, 10, t_range=(0.0, 1.0))
    found = our_walk(Euler(), schedule, "flow_prediction", times, scheduler.timesteps)
    assert_same_walk(found, their_walk(scheduler))


@pytest.mark.parametrize(
    ("spacing", "grid"),
    [("leading", Leading(steps_offset=0)), ("trailing", Trailing()), ("linspace", Linspace())],
)
def test_published_grids(spacing: str, grid: Grid) -> None:
    """As DDIM and DDPM have them. One step of "linspace" is i = 0 there, which would begin with the data."""
    scheduler = build("DDIMScheduler", "scaled_linear", "epsilon", timestep_spacing=spacing)
    for num_steps in [*range(2, 101), 333, 1000]:
        scheduler.set_timesteps(num_steps)
        found = grid(ScaledLinear(), num_steps, t_range=IN_TABLE)[:-1] * 1000 - 1
        # "trailing" adds up 1000 / num_steps: it rounds a half as its errors have it, and may make one step too many
        half = torch.arange(num_steps) * 2000 % (2 * num_steps) == num_steps
        allowed = 1e-3 + (half if spacing == "trailing" else 0.0)
        assert bool(((found - scheduler.timesteps[:num_steps]).abs() < allowed).all())
