"""No part is forgotten: each has its YAML, and each goes through the laws."""

from __future__ import annotations

from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from ldm.commands.compose import CONFIGS, compose
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import EDM
from ldm.diffusion.shifts import DimensionShift, FixedShift, Shifted, TokenShift
from ldm.diffusion.tabulated import ScaledLinear
from ldm.diffusion.time_samplers import Stratified
from ldm.diffusion.training_noise import Immiscible, NoiseOffset
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.diffusion.zero_terminal_snr import ZeroTerminalSNR
from tests.diffusion.parts import COND, EVERY, sample, says

FOLDER = Path(CONFIGS) / "diffusion"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CHOICES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*.yaml"))


def built(*overrides: str) -> Diffusion:
    return instantiate(compose("train", [*overrides, "run_id=x"]).config.diffusion, _convert_="all")


def within(part: Any) -> set[type]:
    """The classes of a part and of the parts it is made of."""
    fields = vars(part).values() if hasattr(part, "__dataclass_fields__") else ()
    return {type(part)}.union(*(within(value) for value in fields))


@pytest.fixture(scope="module")
def choices() -> dict[str, Any]:
    """Every YAML of every group, built; one of each group at a time, as composing a config takes a while."""
    groups = [list(names) for _, names in groupby(CHOICES, key=lambda choice: choice.split("/")[0])]
    parts = {}
    for together in zip_longest(*groups):
        chosen = [choice.split("/") for choice in together if choice]
        overrides = [f"diffusion/{group}={name}" for group, name in chosen]
        config = compose("train", [*overrides, "run_id=x"]).config.diffusion
        for group, name in chosen:
            parts[f"{group}/{name}"] = instantiate(config[group], _convert_="all")
    return parts


def test_every_choice_goes_through_the_laws(choices: dict[str, Any]) -> None:
    known = set.union(*(within(part) for part in [*EVERY, TokenShift(), DimensionShift()]))
    for choice, part in choices.items():
        assert within(part) <= known, (
            f"{choice}.yaml builds a part that tests/diffusion/parts.py does not list"
        )


def test_every_part_has_its_yaml(choices: dict[str, Any]) -> None:
    offered = set.union(*(within(part) for part in choices.values()))
    for part in EVERY:
        assert within(part) <= offered, f"no YAML in configs/diffusion builds {part}"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_a_loss_and_a_prediction(preset: str) -> None:
    it = built(f"diffusion={preset}")
    x0, eps, _ = sample()
    eps = it.training_noise(x0, eps, lambda shape: torch.randn(8, *shape))
    t = it.for_latents((4, 3, 5)).times(torch.linspace(0, 0.99, 8), slots=range(8), num_slots=8)
    assert it.loss(says(eps), x0, COND, eps=eps, t=t).isfinite().all()
    assert it.predict(says(eps), x0, t, COND).x0.isfinite().all()


def test_presets_are_what_their_names_say() -> None:
    stable_diffusion, sd21_v, edm, sd3, flux = (
        built(f"diffusion={name}") for name in ("stable_diffusion", "sd21_v", "edm", "sd3", "flux")
    )
    assert stable_diffusion.schedule == ScaledLinear()
    assert sd21_v.schedule == ZeroTerminalSNR(schedule=ScaledLinear())
    assert edm.schedule == VarianceExploding()
    assert isinstance(sd3.schedule, Shifted) and sd3.schedule.shift == FixedShift(factor=3.0)
    assert isinstance(flux.schedule, Shifted) and flux.schedule.shift == TokenShift()
    assert isinstance(sd3.time_sampler, Stratified)


def test_edm_s_preset_is_the_paper_s_for_latents_twice_as_wide() -> None:
    """Data of spread 1 in place of 0.5: every sigma is doubled, so ln 2 is added to the mean of ln sigma."""
    it = built("diffusion=edm")
    assert isinstance(it.parameterization, EDM) and it.parameterization.sigma_data == 1.0
    assert it.weighting.sigma_data == it.parameterization.sigma_data
    t = it.times(torch.tensor([0.5]), slots=range(1), num_slots=1)
    torch.testing.assert_close(it.schedule.sigma(t), 2 * torch.tensor([-1.2]).exp(), rtol=1e-3, atol=0)


def test_optional_terms_come_by_one_override() -> None:
    it = built("diffusion=sd3", "diffusion/coupling=immiscible", "diffusion/noise=offset")
    assert it.coupling == Immiscible() and it.noise == NoiseOffset(strength=0.1)
