from __future__ import annotations

import pytest
import torch

from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear, log_snr
from ldm.diffusion.shifts import DimensionShift, Shifted
from ldm.diffusion.tabulated import DDPMLinear, ScaledLinear
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.diffusion.zero_terminal_snr import ZeroTerminalSNR
from ldm.interfaces import NoiseSchedule

BASES = [VPLinear(), DDPMLinear(), ScaledLinear()]
T = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize("base", BASES, ids=lambda b: type(b).__name__)
def test_no_snr_at_the_end_and_the_start_left_alone(base: NoiseSchedule) -> None:
    schedule = ZeroTerminalSNR(schedule=base)
    ends = torch.tensor([0.0, 1.0])
    assert log_snr(schedule, ends).tolist() == [torch.inf, -torch.inf]
    near = torch.tensor([1e-6], dtype=torch.float64)
    change = schedule.sigma(near) / base.sigma(near)
    last = base.alpha(torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(change, (1 / (1 - last)).sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("base", BASES, ids=lambda b: type(b).__name__)
def test_alpha_is_moved_and_stretched(base: NoiseSchedule) -> None:
    last = base.alpha(T)[-1]
    torch.testing.assert_close(ZeroTerminalSNR(schedule=base).alpha(T), (base.alpha(T) - last) / (1 - last))


def test_a_schedule_that_ends_without_picture_is_left_as_it_is() -> None:
    torch.testing.assert_close(ZeroTerminalSNR(schedule=Cosine()).sigma(T), Cosine().sigma(T))


def test_networks_are_told_what_the_table_tells_them() -> None:
    t = torch.rand(9)
    assert torch.equal(
        ZeroTerminalSNR(schedule=ScaledLinear()).network_time(t), ScaledLinear().network_time(t)
    )


@pytest.mark.parametrize("base", [RectifiedFlow(), VarianceExploding()], ids=lambda b: type(b).__name__)
def test_schedules_that_do_not_preserve_variance_are_refused(base: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match=rf"variance-preserving schedules; {type(base).__name__} has"):
        ZeroTerminalSNR(schedule=base)
    with pytest.raises(ValueError, match="variance-preserving"):  # also behind a shift that waits for a shape
        ZeroTerminalSNR(schedule=Shifted(schedule=base, shift=DimensionShift()))
