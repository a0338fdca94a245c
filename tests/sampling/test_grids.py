from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear, log_snr
from ldm.diffusion.shifts import FixedShift, Shifted
from ldm.diffusion.tabulated import ScaledLinear
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.interfaces import NoiseSchedule
from ldm.sampling.grids import Beta, Explicit, Grid, LogSNR, Quadratic, Uniform
from ldm.sampling.noise_grids import Karras, Polyexponential
from ldm.sampling.published_grids import Leading, Linspace, Trailing

SCHEDULES: list[NoiseSchedule] = [
    RectifiedFlow(),
    Cosine(),
    VPLinear(),
    ScaledLinear(),
    Shifted(schedule=RectifiedFlow(), shift=FixedShift(factor=3.0)),
    VarianceExploding(),
]
FREE: list[Grid] = [Uniform(), LogSNR(), Quadratic(), Beta(), Karras(), Polyexponential()]
PUBLISHED: list[Grid] = [Trailing(), Linspace()]
GRIDS = [*FREE, *PUBLISHED]
WHOLE = (0.0, 1.0)


def name(part: object) -> str:
    return type(part).__name__


over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
over_grids = pytest.mark.parametrize("grid", GRIDS, ids=name)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
@pytest.mark.parametrize("t_range", [(0.0, 1.0), (0.001, 0.999), (0.05, 0.9)])
@over_grids
@over_schedules
def test_falls_from_the_largest_time_to_zero(
    grid: Grid, schedule: NoiseSchedule, t_range: tuple[float, float], num_steps: int
) -> None:
    times = grid(schedule, num_steps, t_range=t_range)
    assert times.shape == (num_steps + 1,)
    assert times.dtype == torch.float32
    torch.testing.assert_close(times[0], torch.tensor(t_range[1]), rtol=0, atol=0)
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert (times[:-1] >= torch.tensor(t_range[0])).all()  # the network is asked only where it was trained


def test_uniform_steps_are_equal() -> None:
    times = Uniform()(RectifiedFlow(), 4, t_range=WHOLE)
    assert times.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_uniform_steps_stay_where_the_network_was_trained_however_many() -> None:
    for num_steps in (
        9,
        10,
        11,
        400,
    ):  # equal steps down to 0 would end with one from below 0.1 after the tenth
        times = Uniform()(RectifiedFlow(), num_steps, t_range=(0.1, 1.0))
        assert float(times[-2]) == pytest.approx(max(0.1, 1 / num_steps))
        inner = times[:-1].diff()
        torch.testing.assert_close(inner, inner.mean().expand_as(inner), rtol=0, atol=1e-6)


@over_schedules
def test_log_snr_steps_are_equal_in_log_snr(schedule: NoiseSchedule) -> None:
    times = LogSNR()(schedule, 20, t_range=WHOLE).double()
    steps = log_snr(schedule, times[1:-1]).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-2, atol=0)
    torch.testing.assert_close(log_snr(schedule, times[-2]), torch.tensor(9.2).double(), rtol=1e-3, atol=0)


def noise_levels(schedule: NoiseSchedule, times: Tensor) -> Tensor:
    """sigma / alpha at the times that the network is asked at, but the first, which is moved to t_range[1]."""
    return torch.exp(-0.5 * log_snr(schedule, times[1:-1].double()))


@over_schedules
def test_karras_steps_are_equal_in_a_root_of_the_noise_level(schedule: NoiseSchedule) -> None:
    times = Karras(rho=7.0, sigma_min=0.01, sigma_max=10.0)(schedule, 20, t_range=WHOLE)
    # Karras et al. 2022, eq. 5, with i from 0 to N - 1; the first is moved
    ramp = torch.arange(20) / 19
    karras = (10 ** (1 / 7) + ramp * (0.01 ** (1 / 7) - 10 ** (1 / 7))) ** 7
    torch.testing.assert_close(noise_levels(schedule, times), karras[1:].double(), rtol=1e-4, atol=0)


@over_schedules
def test_exponential_steps_have_a_constant_ratio_of_noise_levels(schedule: NoiseSchedule) -> None:
    times = Polyexponential(rho=1.0, sigma_min=0.01, sigma_max=10.0)(schedule, 20, t_range=WHOLE)
    logs = torch.log(noise_levels(schedule, times))
    torch.testing.assert_close(
        logs.diff(), logs.new_full((18,), -torch.log(torch.tensor(1e3)) / 19), rtol=1e-3, atol=0
    )
    bent = Polyexponential(rho=2.0, sigma_min=0.01, sigma_max=10.0)(schedule, 21, t_range=WHOLE)
    assert float(torch.log(noise_levels(schedule, bent))[9]) == pytest.approx(
        float(torch.log(torch.tensor(0.01)) + 0.25 * torch.log(torch.tensor(1e3))), rel=1e-3
    )  # half way through, a quarter of the way is left


def test_noise_levels_are_by_default_those_of_t_range() -> None:
    table, t_range = ScaledLinear(), (0.001, 1.0)
    ends = torch.exp(-0.5 * log_snr(table, torch.tensor(t_range).double()))
    times = Karras()(table, 10, t_range=t_range)
    assert times[0] == 1
    assert float(times[-2]) == pytest.approx(0.001)
    second = (ends[1] ** (1 / 7) + (ends[0] ** (1 / 7) - ends[1] ** (1 / 7)) / 9) ** 7
    torch.testing.assert_close(noise_levels(table, times)[0], second, rtol=1e-4, atol=0)
    # and EDM's, where t_range ends without noise or without picture
    times = Karras()(RectifiedFlow(), 10, t_range=WHOLE)
    levels = noise_levels(RectifiedFlow(), times)
    assert float(levels[-1]) == pytest.approx(0.002, rel=1e-3)
    assert float(levels[0]) == pytest.approx(
        (80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 9) ** 7, rel=1e-3
    )


def test_quadratic_steps_are_equal_in_the_root_of_t() -> None:
    assert Quadratic()(RectifiedFlow(), 4, t_range=WHOLE).tolist() == [1.0, 0.5625, 0.25, 0.0625, 0.0]


def test_beta_steps_are_quantiles() -> None:
    times = Beta(alpha=0.6, beta=0.6)(RectifiedFlow(), 10, t_range=WHOLE).double()
    torch.testing.assert_close(times + times.flip(0), torch.ones(11).double(), rtol=0, atol=1e-6)  # symmetric
    assert float(-times.diff()[0]) < 0.05 < 0.1 < float(-times.diff()[5])  # short steps at the ends
    # Beta(1, b) has the quantiles 1 - (1 - u)^(1 / b); b = 1 is uniform
    u = torch.linspace(1, 0, 11).double()
    bent = Beta(alpha=1.0, beta=2.0)(RectifiedFlow(), 10, t_range=WHOLE).double()
    torch.testing.assert_close(bent, 1 - (1 - u) ** 0.5, rtol=0, atol=1e-7)
    even = Beta(alpha=1.0, beta=1.0)(RectifiedFlow(), 10, t_range=WHOLE)
    torch.testing.assert_close(even, Uniform()(RectifiedFlow(), 10, t_range=WHOLE))


def test_published_grids_stop_at_steps_of_the_table() -> None:
    def steps(grid: Grid, num_steps: int) -> list[float]:
        return (grid(ScaledLinear(), num_steps, t_range=(0.001, 1.0)) * 1000 - 1).round(decimals=3).tolist()

    assert steps(Trailing(), 4) == [999, 749, 499, 249, -1]
    assert steps(Linspace(), 4) == [999, 666, 333, 0, -1]
    assert steps(Leading(), 4) == [751, 501, 251, 1, -1]
    assert steps(Leading(steps_offset=0), 4) == [750, 500, 250, 0, -1]
    assert steps(Trailing(), 3) == [999, 666, 332, -1]  # 1000 / 3 does not come out even: rounded, not cut
    assert steps(Linspace(), 1) == [999, -1]
    assert steps(Trailing(num_train_steps=10), 5)[0] == 999  # t = 1 is the last step of every table


def test_leading_begins_before_the_end_of_the_table() -> None:
    """Stable Diffusion's 50 steps: 981, 961 ... 1, from pure noise at 981 (Lin et al. 2023, table 2)."""
    times = Leading()(ScaledLinear(), 50, t_range=(0.001, 1.0))
    expected = (torch.arange(981, 0, -20) + 1) / 1000
    torch.testing.assert_close(times, torch.cat([expected, torch.zeros(1)]))


def test_explicit_times_are_taken_as_they_are() -> None:
    grid = Explicit(times=[1.0, 0.76, 0.5, 0.26])
    assert hash(grid) == hash(Explicit(times=(1, 0.76, 0.5, 0.26)))  # a config's list is as good as a tuple
    torch.testing.assert_close(grid(Cosine(), 4, t_range=WHOLE), torch.tensor([1.0, 0.76, 0.5, 0.26, 0.0]))


@pytest.mark.parametrize("grid", [*GRIDS, Leading(), Explicit(times=[0.5])], ids=name)
def test_no_steps_are_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        grid(RectifiedFlow(), 0, t_range=WHOLE)


@pytest.mark.parametrize(
    ("grid", "num_steps"),
    [
        (LogSNR(log_snr_min=-40.0), 50),
        (Trailing(), 1001),
        (Linspace(), 1001),
        (Leading(), 1001),
        (Beta(), 100_000),
    ],
    ids=str,
)
def test_steps_too_fine_are_refused(grid: Grid, num_steps: int) -> None:
    with pytest.raises(ValueError, match="too many"):
        grid(RectifiedFlow(), num_steps, t_range=WHOLE)


def test_bounds_that_leave_nothing_between_are_refused() -> None:
    for grid in (LogSNR(log_snr_min=0.0), Karras(sigma_max=1.0), Polyexponential(sigma_max=1.0)):
        with pytest.raises(ValueError, match="leaves nothing between"):
            grid(RectifiedFlow(), 4, t_range=(0.9, 1.0))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: LogSNR(log_snr_min=1.0, log_snr_max=0.0), "log_snr_max"),
        (lambda: Karras(rho=0.0), "rho=0.0"),
        (lambda: Karras(sigma_min=2.0, sigma_max=1.0), "sigma_min=2.0, sigma_max=1.0"),
        (lambda: Polyexponential(sigma_min=0.0), "sigma_min=0.0"),
        (lambda: Beta(alpha=0.0), "alpha=0.0"),
        (lambda: Explicit(times=[]), "times that fall"),
        (lambda: Explicit(times=[0.5, 0.5]), "times that fall"),
        (lambda: Explicit(times=[0.5, 0.0]), "stay above 0"),
    ],
)
def test_a_setting_that_makes_no_grid_is_refused(build: Callable[[], Grid], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()


def test_explicit_times_must_fit_what_is_asked() -> None:
    with pytest.raises(ValueError, match=r"needs num_steps=2, got num_steps=3"):
        Explicit(times=[0.5, 0.2])(Cosine(), 3, t_range=WHOLE)
    for times, t_range in itertools.product([[1.0, 0.5], [0.9, 0.05]], [(0.1, 0.9)]):
        with pytest.raises(ValueError, match="must lie within t_range"):
            Explicit(times=times)(Cosine(), 2, t_range=t_range)
