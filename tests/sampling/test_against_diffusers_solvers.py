"""The solvers of higher order against the schedulers of diffusers, step by step.

Where a reference does something else than its paper or than we do, the test says what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.tabulated import ScaledLinear
from ldm.interfaces import Sampler
from ldm.sampling.dpm_solver import DPMpp2M, DPMpp2MSDE, DPMpp2S, DPMpp3M
from ldm.sampling.exponential import order_of
from ldm.sampling.grids import Grid
from ldm.sampling.noise_grids import Karras, Polyexponential
from ldm.sampling.unipc import UniPC
from ldm.sampling.walk import LinearSampler, Row, Step
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
from tests.sampling.oracles import Gaussian, no_noise

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


@pytest.mark.parametrize("num_steps", [10, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@over_predictions
@over_tables
def test_dpmpp_2m(table: str, prediction: str, spacing: str, num_steps: int) -> None:
    """``lower_order_final`` of diffusers makes the last step one of first order; to sigma = 0 it is one in any case."""
    scheduler = build("DPMSolverMultistepScheduler", table, prediction, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    compare(DPMpp2M(), scheduler, table, prediction)


@pytest.mark.parametrize(
    ("setting", "grid"),
    [("use_karras_sigmas", Karras()), ("use_exponential_sigmas", Polyexponential())],
    ids=["karras", "exponential"],
)
@pytest.mark.parametrize("stochastic", [False, True], ids=["2m", "2m_sde"])
@over_predictions
@over_tables
def test_dpmpp_2m_on_our_own_grid(
    table: str, prediction: str, stochastic: bool, setting: str, grid: Grid
) -> None:
    """What is known as DPM++ 2M Karras, and its kin, with the grid ours as well."""
    algorithm = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    scheduler = build(
        "DPMSolverMultistepScheduler", table, prediction, algorithm_type=algorithm, **{setting: True}
    )
    scheduler.set_timesteps(12)
    times = grid(TABLES[table], 12, t_range=IN_TABLE)
    sampler = DPMpp2MSDE() if stochastic else DPMpp2M()
    found = our_walk(sampler, TABLES[table], prediction, times, scheduler.timesteps, slack=1.01)
    drawn = noises(12)
    arguments = (lambda step: {"variance_noise": drawn[step]}) if stochastic else (lambda step: {})
    assert_same_walk(found, their_walk(scheduler, arguments=arguments))


@over_predictions
@over_tables
def test_dpmpp_2m_sde(table: str, prediction: str) -> None:
    scheduler = build("DPMSolverMultistepScheduler", table, prediction, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(10)
    drawn = noises(10)
    compare(
        DPMpp2MSDE(), scheduler, table, prediction, arguments=lambda step: {"variance_noise": drawn[step]}
    )


@over_predictions
@over_tables
def test_dpmpp_2s(table: str, prediction: str) -> None:
    """What diffusers counts as two steps is one of ours, if its time in between is the middle in log(alpha / sigma).

    With exponential sigmas it is. It takes the last two of its steps with first order; they are left out.
    """
    scheduler = build("DPMSolverSinglestepScheduler", table, prediction, use_exponential_sigmas=True)
    scheduler.set_timesteps(12)
    times = Polyexponential()(TABLES[table], 12, t_range=IN_TABLE)[: 12 - 1 : 2]
    timesteps = scheduler.timesteps[:10]
    found = our_walk(DPMpp2S(), TABLES[table], prediction, times, timesteps, slack=1.01)
    assert_same_walk(found, their_walk(scheduler)[:11:2])


@dataclass(frozen=True)
class PublishedThirdOrder(LinearSampler):
    """DPM-Solver++(3M) as its authors' code and diffusers have it, with half of our term of second degree.

    With tau from 0 to 1 over the step, the parabola through the last three x0 is m0 + D1 tau + D2 tau^2, where
    D2 = (D1_0 - D1_1) / (r0 + r1), in the names of the code. Its integral is exact with

        h * integral of exp(-h (1 - tau)) tau^2 = -2 * ((exp(-h) - 1 + h) / h^2 - 1/2)

    and the code has it without the 2. That is right for the Taylor coefficient D2 = h^2 x0'' but this D2 is half of
    it: a divided difference of second order is x0'' / 2.
    """

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        return [self._row(steps, i, row) for i, row in enumerate(DPMpp3M().rows(steps))]

    def _row(self, steps: Sequence[Step], i: int, row: Row) -> Row:
        if order_of(steps, i, 3) < 3:
            return row
        h = steps[i].h
        r0, r1 = steps[i - 1].h / h, steps[i - 2].h / h
        half = steps[i].alpha1 * ((math.exp(-h) - 1 + h) / h**2 - 0.5) / (r0 + r1)
        curvature = (1 / r0, -1 / r0 - 1 / r1, 1 / r1)
        return row._replace(x0=tuple(w + half * c for w, c in zip(row.x0, curvature, strict=True)))


@over_predictions
@over_tables
def test_dpmpp_3m(table: str, prediction: str) -> None:
    """It is UniP-3, that is UniPC of order 3 without its corrector, which has the term of second degree in full."""
    correct = build(
        "UniPCMultistepScheduler", table, prediction, solver_order=3, disable_corrector=list(range(12))
    )
    correct.set_timesteps(12)
    compare(DPMpp3M(), correct, table, prediction)
    published = build("DPMSolverMultistepScheduler", table, prediction, solver_order=3)
    published.set_timesteps(12)
    compare(PublishedThirdOrder(), published, table, prediction)


def test_the_published_third_order_is_of_second() -> None:
    oracle = Gaussian(RectifiedFlow())
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)

    def order(sampler: Sampler) -> float:
        errors = []
        for num in (512, 1024):  # after a first step that is short enough, see test_samplers_order.py
            rest = torch.linspace(0.95 - 0.9 * num**-1.5, 0.05, num, dtype=torch.float64)
            times = torch.cat([torch.tensor([0.95], dtype=torch.float64), rest])
            exact = oracle.path(x, 0.95, 0.05)
            end = sampler(oracle, oracle.schedule, x, times, noise=no_noise)
            errors.append(float((end - exact).abs().max()))
        return math.log2(errors[0] / errors[1])

    assert order(DPMpp3M()) == pytest.approx(3, abs=0.2)
    assert order(PublishedThirdOrder()) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@over_predictions
@over_tables
def test_unipc(table: str, prediction: str, solver_type: str, order: int) -> None:
    """With "bh1" diffusers makes no picture at all: B(h) is infinite in the step to sigma = 0, and times 0 no number.

    That step is of first order, where B(h) has no part in it. All the others agree.
    """
    scheduler = build(
        "UniPCMultistepScheduler", table, prediction, solver_order=order, solver_type=solver_type
    )
    scheduler.set_timesteps(10)
    sampler = UniPC(order=order, bh1=solver_type == "bh1")
    found = our_walk(sampler, TABLES[table], prediction, times_of(scheduler), scheduler.timesteps)
    expected = their_walk(scheduler)
    if solver_type == "bh1":
        assert not bool(torch.isfinite(expected.pop()).any())
        assert bool(torch.isfinite(found.pop()).all())
    assert_same_walk(found, expected)


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_that_does_not_end_at_the_data(order: int) -> None:
    """Then no step needs a lower order, and ours takes none; of diffusers it must be asked."""
    settings = {"final_sigmas_type": "sigma_min", "lower_order_final": False, "solver_order": order}
    scheduler = build("UniPCMultistepScheduler", "scaled_linear", "epsilon", **settings)
    scheduler.set_timesteps(10)
    times = times_of(scheduler, end=0.001)
    found = our_walk(UniPC(order=order), ScaledLinear(), "epsilon", times, scheduler.timesteps)
    assert_same_walk(found, their_walk(scheduler))


@pytest.mark.parametrize(
    ("kind", "sampler", "settings"),
    [
        ("DPMSolverMultistepScheduler", DPMpp2M(), {}),
        ("DPMSolverMultistepScheduler", DPMpp2MSDE(), {"algorithm_type": "sde-dpmsolver++"}),
        ("UniPCMultistepScheduler", UniPC(), {}),
        ("UniPCMultistepScheduler", UniPC(order=3), {"solver_order": 3}),
    ],
    ids=["2m", "2m_sde", "unipc", "unipc_3"],
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_by_the_solvers_of_higher_order(
    kind: str, sampler: Sampler, settings: dict[str, Any], shift: float
) -> None:
    """diffusers begins next to alpha = 0, to avoid log(0), so here we do, too."""
    scheduler = getattr(diffusers, kind)(
        use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction", **settings
    )
    scheduler.set_timesteps(10)
    drawn = noises(10)
    times = scheduler.sigmas.double()
    found = our_walk(sampler, RectifiedFlow(), "flow_prediction", times, scheduler.timesteps, slack=1.01)
    stochastic = isinstance(sampler, DPMpp2MSDE)
    arguments = (lambda step: {"variance_noise": drawn[step]}) if stochastic else (lambda step: {})
    assert_same_walk(found, their_walk(scheduler, arguments=arguments))
