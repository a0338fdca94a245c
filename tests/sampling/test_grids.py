from __future__ import annotations

import itertools

import pytest
import torch

from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear, log_snr
from ldm.interfaces import NoiseSchedule
from ldm.sampling.grids import Grid, LogSNR, Uniform

SCHEDULES = [RectifiedFlow(), Cosine(), VPLinear()]
GRIDS = [Uniform(), LogSNR()]
PAIRS = [
    pytest.param(*pair, id=f"{type(pair[0]).__name__}-{type(pair[1]).__name__}")
    for pair in itertools.product(GRIDS, SCHEDULES)
]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
@pytest.mark.parametrize("t_range", [(0.0, 1.0), (0.001, 0.999)])
@pytest.mark.parametrize(("grid", "schedule"), PAIRS)
def test_falls_from_the_largest_time_to_zero(
    grid: Grid, schedule: NoiseSchedule, t_range: tuple[float, float], num_steps: int
) -> None:
    times = grid(schedule, num_steps, t_range=t_range)
    assert times.shape == (num_steps + 1,)
    assert times.dtype == torch.float32
    torch.testing.assert_close(times[0], torch.tensor(t_range[1]), rtol=0, atol=0)
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert (times[:-1] >= t_range[0]).all()  # the network is asked only where it was trained


def test_uniform_steps_are_equal() -> None:
    times = Uniform()(RectifiedFlow(), 4, t_range=(0.0, 1.0))
    assert times.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_log_snr_steps_are_equal_in_log_snr(schedule: NoiseSchedule) -> None:
    times = LogSNR()(schedule, 20, t_range=(0.0, 1.0)).double()
    steps = log_snr(schedule, times[1:-1]).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-2, atol=0)
    torch.testing.assert_close(log_snr(schedule, times[-2]), torch.tensor(9.2).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_steps_are_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        grid(RectifiedFlow(), 0, t_range=(0.0, 1.0))


def test_steps_too_fine_for_float32_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        LogSNR(log_snr_min=-40.0)(RectifiedFlow(), 50, t_range=(0.0, 1.0))  # 1 - t below 1e-7


def test_log_snr_refuses_bounds_that_leave_nothing() -> None:
    with pytest.raises(ValueError, match="log_snr_max"):
        LogSNR(log_snr_min=1.0, log_snr_max=0.0)
    with pytest.raises(ValueError, match="leaves nothing between"):
        LogSNR(log_snr_min=0.0)(RectifiedFlow(), 4, t_range=(0.9, 1.0))
