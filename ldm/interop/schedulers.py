"""From a schedule and a parameterization to the scheduler of diffusers that does the same.

Nothing asks which classes these are: alpha, sigma and the target's two coefficients are looked at as functions of t. A
scheduler counts ``STEPS`` noise levels and tells the network their number, so index i stands at the time at which our
network, which multiplies its time by 1000, would be told i.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.interfaces import NoiseSchedule, Parameterization

STEPS = 1000
NATIVE_FLOW, GENERAL = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"


def scheduler_config(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    t_range: tuple[float, float],
    *,
    native_flow: bool,
) -> dict[str, Any]:
    """Their scheduler_config.json.

    Args:
        schedule: Where it depends on the latents' shape, the one for the shape trained at.
        parameterization: What the network outputs.
        t_range: The times trained at; whatever is left out near the data does not matter to a scheduler.
        native_flow: The pipeline was made for flow matching, and takes nothing else; one that was not needs another
            scheduler for it, which rounds the times it tells the network to thousandths.

    Raises:
        ValueError: No scheduler does this pair, in this pipeline.
    """
    names = f"{type(parameterization).__name__} with {type(schedule).__name__}"
    t = torch.linspace(0, 1, 1025, dtype=torch.float64)[1:-1]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    kind = _prediction_type(parameterization, alpha, sigma)
    if t_range[1] < 1 - 1 / STEPS:
        raise ValueError(
            f"no scheduler of diffusers begins at t = {t_range[1]:g}, as t_range says: they begin at 1"
        )
    if kind == "flow_prediction":
        shift = _flow_shift(schedule, t, alpha, sigma, names)
        if native_flow:
            return {"_class_name": NATIVE_FLOW, "num_train_timesteps": STEPS, "shift": shift}
        return {
            "_class_name": GENERAL,
            "num_train_timesteps": STEPS,
            "prediction_type": kind,
            "use_flow_sigmas": True,
            "flow_shift": shift,
            "solver_order": 1,
            "final_sigmas_type": "zero",
            "steps_offset": 1,
        }
    if kind is None or not torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-6):
        raise ValueError(
            f"no scheduler of diffusers does {names}: they do Epsilon, X0 and V where alpha^2 + sigma^2 = 1, and Flow "
            f"where alpha + sigma = 1"
        )
    if native_flow:
        raise ValueError(f"the pipelines of this network do flow matching, not {names}")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": STEPS,
        **_betas(schedule),
        "prediction_type": kind,
        "timestep_spacing": "trailing",  # begins where there is noise only, as ours does (2305.08891)
        "clip_sample": False,
        "set_alpha_to_one": True,  # ends at the data itself, as ours does
        "steps_offset": 1,  # no effect with "trailing"; pipelines warn of any other
    }


def _prediction_type(parameterization: Parameterization, alpha: Tensor, sigma: Tensor) -> str | None:
    p, q = parameterization.target_coeffs(alpha, sigma)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    known = {
        "epsilon": (zero, one),
        "sample": (one, zero),
        "v_prediction": (-sigma, alpha),
        "flow_prediction": (-one, one),
    }
    plain = torch.equal(parameterization.input_scale(alpha, sigma), one)
    fits = [name for name, (a, b) in known.items() if torch.allclose(p, a) and torch.allclose(q, b)]
    return fits[0] if fits and plain else None


def _flow_shift(schedule: NoiseSchedule, t: Tensor, alpha: Tensor, sigma: Tensor, names: str) -> float:
    """s such that sigma(t) = s t / (1 + (s - 1) t) (2403.03206, eq. 23), 1 where it is t itself."""
    middle = float(schedule.sigma(torch.tensor(0.5, dtype=torch.float64)))
    shift = middle / (1 - middle)
    straight = torch.allclose(alpha + sigma, torch.ones_like(t), atol=1e-6)
    shifted = torch.allclose(sigma, shift * t / (1 + (shift - 1) * t), atol=1e-6)
    told = torch.allclose(_told(schedule, t), STEPS * sigma, atol=1e-3)
    if not (straight and shifted and told):
        raise ValueError(
            f"no scheduler of diffusers does {names}: they do Flow on the rectified flow and its shifts"
        )
    return round(shift, 9)


def _betas(schedule: NoiseSchedule) -> dict[str, Any]:
    """The table's betas: by the name of a formula where one gives them, else one by one."""
    squares = schedule.alpha(_times_of_indices(schedule)).square()  # (STEPS,), their alphas_cumprod
    before = torch.cat([squares.new_ones(1), squares[:-1]])
    betas = (1 - squares / before).clamp(min=0.0)
    first, last = float(betas[0]), float(betas[-1])
    line = torch.linspace(0, 1, STEPS, dtype=torch.float64)
    formulas = {
        "linear": first + line * (last - first),
        "scaled_linear": (math.sqrt(first) + line * (math.sqrt(last) - math.sqrt(first))).square(),
    }
    for name, values in formulas.items():
        if torch.allclose(betas, values, rtol=1e-6, atol=1e-9):
            ends = {"beta_start": float(f"{first:.9g}"), "beta_end": float(f"{last:.9g}")}
            return {"beta_schedule": name, **ends}
    return {"trained_betas": betas.tolist()}


def _times_of_indices(schedule: NoiseSchedule) -> Tensor:
    """The last time at which the network is told no more than i, for i = 0 ... STEPS - 1: (STEPS,) float64."""
    index = torch.arange(STEPS, dtype=torch.float64)
    low, high = torch.zeros(STEPS, dtype=torch.float64), torch.ones(STEPS, dtype=torch.float64)
    if bool((_told(schedule, high) < index).any()):
        raise ValueError(
            f"{type(schedule).__name__} tells the network other times than 0 to 1, which diffusers' do"
        )
    for _ in range(60):
        middle = 0.5 * (low + high)
        later = _told(schedule, middle) <= index + 1e-9
        low, high = torch.where(later, middle, low), torch.where(later, high, middle)
    # Half a step's rounding to 1e-9 is no noise level of its own: i / 1000 is i / 1000.
    return torch.round(high, decimals=12)


def _told(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """1000 times what the network is told at t: t itself, unless the schedule says otherwise."""
    network_time = getattr(schedule, "network_time", None)
    return 1000 * (t if network_time is None else network_time(t))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Where a folder's scheduler_config.json is of another process than ``ours``: what the network was trained on.

    Compared are the noise levels and what is predicted, not how their sampler walks.
    """
    found = []
    for key, default in (("prediction_type", "epsilon"), ("num_train_timesteps", STEPS)):
        if _is_flow(ours) == _is_flow(theirs) and ours.get(key, default) != theirs.get(key, default):
            found.append(f"{key} {theirs.get(key, default)!r}, not {ours.get(key, default)!r}")
    if _is_flow(ours) != _is_flow(theirs):
        found.append("flow matching" if _is_flow(theirs) else "noise levels by betas, no flow matching")
    elif not _is_flow(ours):
        own, other = _cumulated(ours), _cumulated(theirs)
        if len(own) != len(other) or not torch.allclose(own, other, rtol=1e-3, atol=1e-6):
            found.append(f"betas {_said(theirs)}, not {_said(ours)}")
    return found


def _is_flow(config: Mapping[str, Any]) -> bool:
    return "FlowMatch" in config.get("_class_name", "") or config.get("prediction_type") == "flow_prediction"


def _cumulated(config: Mapping[str, Any]) -> Tensor:
    """Their alphas_cumprod."""
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    else:
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        steps = config.get("num_train_timesteps", STEPS)
        if config.get("beta_schedule", "linear") == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
        else:
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)


def _said(config: Mapping[str, Any]) -> str:
    if config.get("trained_betas") is not None:
        return "of their own table"
    return f"{config.get('beta_schedule', 'linear')} {config.get('beta_start', 1e-4)} to {config.get('beta_end', 0.02)}"
