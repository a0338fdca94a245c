"""The scheduler that is written does what the run's diffusion does: the same noise levels at the same indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm.diffusion.parameterizations import X0, Epsilon, Flow, V
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.interop.schedulers import differences, scheduler_config

WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Table:
    """Betas of published models, index i at t = (i + 1) / 1000, and a network that is told i."""

    betas: Tensor

    def _log(self, t: Tensor) -> Tensor:
        logs = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas).cumsum(0) / 2])
        position = (t.double() * 1000).clamp(0, 1000)
        left = position.long().clamp(0, 999)
        return logs[left] + (position - left) * (logs[left + 1] - logs[left])

    def alpha(self, t: Tensor) -> Tensor:
        return self._log(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - (2 * self._log(t)).exp()).sqrt()

    def network_time(self, t: Tensor) -> Tensor:
        return (1000 * t - 1).clamp(min=0) / 1000


@dataclass(frozen=True)
class Shifted:
    shift: float

    def sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.sigma(t)

    def network_time(self, t: Tensor) -> Tensor:
        return self.sigma(t)


def scaled_linear() -> Tensor:
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


def loaded(config: dict[str, Any]) -> Any:
    values = dict(config)
    return getattr(diffusers, values.pop("_class_name")).from_config(values)


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine()])
@pytest.mark.parametrize(
    ("parameterization", "name"), [(Epsilon(), "epsilon"), (X0(), "sample"), (V(), "v_prediction")]
)
def test_index_i_has_the_noise_level_of_t_i_over_1000(
    schedule: Any, parameterization: Any, name: str
) -> None:
    config = scheduler_config(schedule, parameterization, WHOLE, native_flow=False)
    assert config["prediction_type"] == name
    t = torch.arange(1000, dtype=torch.float64) / 1000
    torch.testing.assert_close(
        loaded(config).alphas_cumprod.double(), schedule.alpha(t).square(), rtol=2e-4, atol=1e-7
    )


@pytest.mark.parametrize(
    ("betas", "expected"),
    [
        (scaled_linear(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (
            torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
            {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        ),
    ],
)
def test_published_tables_are_written_by_their_names(betas: Tensor, expected: dict[str, Any]) -> None:
    config = scheduler_config(Table(betas), Epsilon(), WHOLE, native_flow=False)
    assert {key: config.get(key) for key in expected} == pytest.approx(expected)
    torch.testing.assert_close(loaded(config).betas.double(), betas, rtol=1e-5, atol=0)


def test_a_table_of_its_own_is_written_out() -> None:
    betas = scaled_linear()
    betas[-1] = 1 - 1e-12  # next to no signal is left at the end
    config = scheduler_config(Table(betas), V(), WHOLE, native_flow=False)
    torch.testing.assert_close(loaded(config).betas.double(), betas, rtol=1e-5, atol=1e-9)
    assert float(loaded(config).alphas_cumprod[-1]) < 1e-12


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_and_its_shift(shift: float) -> None:
    schedule = RectifiedFlow() if shift == 1 else Shifted(shift)
    config = scheduler_config(schedule, Flow(), WHOLE, native_flow=True)
    assert config == {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": pytest.approx(shift),
    }
    scheduler = loaded(config)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    torch.testing.assert_close(scheduler.sigmas, schedule.sigma(t), rtol=1e-6, atol=1e-7)
    general = scheduler_config(schedule, Flow(), WHOLE, native_flow=False)
    assert (general["flow_shift"], general["use_flow_sigmas"]) == (pytest.approx(shift), True)


@pytest.mark.parametrize(
    ("schedule", "parameterization", "t_range", "native", "message"),
    [
        (Cosine(), Flow(), WHOLE, False, "does Flow with Cosine"),
        (RectifiedFlow(), V(), WHOLE, False, "does V with RectifiedFlow"),
        (VPLinear(), Epsilon(), WHOLE, True, "do flow matching, not Epsilon with VPLinear"),
        (Cosine(), Epsilon(), (0.0, 0.9), False, r"begins at t = 0.9, as t_range says"),
    ],
)
def test_what_no_scheduler_does_is_refused(
    schedule: Any, parameterization: Any, t_range: tuple[float, float], native: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_config(schedule, parameterization, t_range, native_flow=native)


def test_a_folders_scheduler_is_held_against_a_diffusion() -> None:
    """Stable Diffusion 1.5's, as published."""
    published = {
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    same = scheduler_config(Table(scaled_linear()), Epsilon(), WHOLE, native_flow=False)
    assert differences(same, published) == []
    assert differences(scheduler_config(VPLinear(), Epsilon(), WHOLE, native_flow=False), published) == [
        "betas scaled_linear 0.00085 to 0.012, not of their own table"
    ]
    assert differences({**same, "prediction_type": "v_prediction"}, published) == [
        "prediction_type 'epsilon', not 'v_prediction'"
    ]
    flow = scheduler_config(RectifiedFlow(), Flow(), WHOLE, native_flow=True)
    assert differences(flow, published) == ["noise levels by betas, no flow matching"]
    assert differences(flow, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}) == []
