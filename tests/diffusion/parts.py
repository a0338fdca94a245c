"""Every part of ``ldm.diffusion`` as the tests go through them: add a new one here and it must obey the laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion import parameterizations, weightings
from ldm.diffusion.contrast import Contrastive, Uncontrasted
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import X0, Epsilon, Flow, V
from ldm.diffusion.schedules import Cosine, ImprovedCosine, RectifiedFlow, VPLinear
from ldm.diffusion.shifts import DimensionShift, FixedShift, Shifted, TokenShift
from ldm.diffusion.tabulated import DDPMLinear, ScaledLinear
from ldm.diffusion.time_samplers import (
    Beta,
    CosMap,
    LogitNormal,
    LogNormalSigma,
    ModeHeavyTails,
    Stratified,
    Uniform,
)
from ldm.diffusion.training_noise import Immiscible, Independent, NoiseOffset, White
from ldm.diffusion.uncertainty import Certain, LearnedUncertainty
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.diffusion.weightings import P2, MinSNR, Sigmoid, SoftMinSNR, Unweighted
from ldm.diffusion.zero_terminal_snr import ZeroTerminalSNR
from ldm.interfaces import Conditioning, NoiseSchedule, Parameterization, Weighting

SHAPE = (4, 16, 8)  # C, H, W, for schedules that ask: 32 tokens of 2 x 2, 512 values

SCHEDULES: dict[str, NoiseSchedule] = {
    "RectifiedFlow": RectifiedFlow(),
    "Cosine": Cosine(),
    "ImprovedCosine": ImprovedCosine(),
    "VPLinear": VPLinear(),
    "DDPMLinear": DDPMLinear(),
    "ScaledLinear": ScaledLinear(),
    "VarianceExploding": VarianceExploding(),
    "ZeroTerminalSNR(ScaledLinear)": ZeroTerminalSNR(schedule=ScaledLinear()),
    "ZeroTerminalSNR(VPLinear)": ZeroTerminalSNR(schedule=VPLinear()),
    "Shifted(RectifiedFlow)": Shifted(schedule=RectifiedFlow(), shift=FixedShift(factor=3.0)),
    "Shifted(VPLinear)": Shifted(schedule=VPLinear(), shift=FixedShift(factor=0.4)),
    "TokenShift": Shifted(schedule=RectifiedFlow(), shift=TokenShift()).for_latents(SHAPE),
    "DimensionShift": Shifted(
        schedule=ZeroTerminalSNR(schedule=ScaledLinear()), shift=DimensionShift()
    ).for_latents(SHAPE),
}
VARIANCE_PRESERVING = [
    name
    for name in SCHEDULES
    if name not in ("RectifiedFlow", "VarianceExploding", "Shifted(RectifiedFlow)", "TokenShift")
]
ENDS_WITHOUT_PICTURE = [
    name
    for name in SCHEDULES
    if name not in ("VPLinear", "DDPMLinear", "ScaledLinear", "VarianceExploding", "Shifted(VPLinear)")
]
PARAMETERIZATIONS: dict[str, Parameterization] = {
    "Epsilon": Epsilon(),
    "X0": X0(),
    "V": V(),
    "Flow": Flow(),
    "EDM": parameterizations.EDM(sigma_data=0.5),
}
# Stated on x0, so that they mean the same for every parameterization; ``Unweighted`` alone does not.
X0_WEIGHTINGS: dict[str, Weighting] = {
    "MinSNR": MinSNR(gamma=5.0),
    "SoftMinSNR": SoftMinSNR(gamma=4.0),
    "P2": P2(gamma=0.5, k=1.0),
    "Sigmoid": Sigmoid(bias=-1.0),
    "EDM": weightings.EDM(sigma_data=0.5),
}
WEIGHTINGS: dict[str, Weighting] = {"Unweighted": Unweighted(), **X0_WEIGHTINGS}
LAWS: dict[str, Any] = {
    "Uniform": Uniform(),
    "LogitNormal": LogitNormal(),
    "LogitNormal(-0.7, 1.6)": LogitNormal(mean=-0.7, std=1.6),
    "ModeHeavyTails(1.29)": ModeHeavyTails(scale=1.29),
    "ModeHeavyTails(1.75)": ModeHeavyTails(scale=1.75),
    "ModeHeavyTails(-0.9)": ModeHeavyTails(scale=-0.9),
    "CosMap": CosMap(),
    "LogNormalSigma": LogNormalSigma(),
    "Beta(1.5, 1)": Beta(alpha=1.5, beta=1.0),
    "Beta(0.3, 0.6)": Beta(alpha=0.3, beta=0.6),
}
OTHERS = [White(), NoiseOffset(), Independent(), Immiscible(), Uncontrasted(), Contrastive(), Certain()]
EVERY = [
    *SCHEDULES.values(),
    *PARAMETERIZATIONS.values(),
    *WEIGHTINGS.values(),
    *LAWS.values(),
    Stratified(law=Uniform()),
    *OTHERS,
    LearnedUncertainty(),
]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_parameterization = pytest.mark.parametrize(
    "parameterization", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS
)
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)

COND = Conditioning(
    tokens=torch.zeros(8, 1, 1), mask=torch.ones(8, 1, dtype=torch.bool), pooled=torch.zeros(8, 1)
)


def diffusion(schedule: NoiseSchedule, parameterization: Parameterization, **others: Any) -> Diffusion:
    """Over times at which every pair is well-posed, unless told otherwise."""
    defaults = {
        "time_sampler": Stratified(law=LogitNormal()),
        "weighting": Unweighted(),
        "t_range": (0.001, 0.999),
    }
    return Diffusion(schedule=schedule, parameterization=parameterization, **(defaults | others))


def sample(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x0, eps (8, 4, 3, 5) and t (8,)."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 8, 4, 3, 5, generator=generator, dtype=dtype)
    return x0, eps, torch.linspace(0.05, 0.95, 8, dtype=dtype)


def says(output: Tensor) -> Any:
    """A network that answers with the same whatever it is asked."""
    return lambda x, t, cond: output
