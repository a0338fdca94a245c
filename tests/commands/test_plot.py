from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.commands import curves as curves_module
from ldm.commands.compose import CONFIGS
from ldm.commands.curves import Curves, curves, weight_on_eps
from ldm.commands.curves_picture import PANELS
from ldm.commands.plot import built_choice, exchanged, plot, shortened
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import X0, Epsilon, Flow, V
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.diffusion.time_samplers import LogitNormal, Stratified, Uniform
from ldm.diffusion.weightings import MinSNR, Unweighted
from ldm.sampling.grids import LogSNR
from ldm.sampling.grids import Uniform as UniformGrid

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
FEW = {"latents": [4, 8, 8], "num_steps": 4, "label": None}


def diffusion(**parts: object) -> Diffusion:
    values = {"schedule": RectifiedFlow(), "parameterization": Flow(), "time_sampler": Uniform()}
    return Diffusion(**{**values, "weighting": Unweighted(), **parts})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- the numbers


def test_the_plain_eps_loss_weighs_eps_alike_everywhere() -> None:
    it = diffusion(schedule=VPLinear(), parameterization=Epsilon())
    torch.testing.assert_close(weight_on_eps(it, T), torch.ones_like(T))


def test_published_weights_on_eps() -> None:
    snr = (Cosine().alpha(T) / Cosine().sigma(T)) ** 2
    plain_v = diffusion(schedule=Cosine(), parameterization=V())
    torch.testing.assert_close(
        weight_on_eps(plain_v, T), (snr + 1) / snr
    )  # Kingma & Gao 2023, their table of losses
    plain_x0 = diffusion(schedule=Cosine(), parameterization=X0())
    torch.testing.assert_close(weight_on_eps(plain_x0, T), 1 / snr)
    min_snr = diffusion(schedule=Cosine(), parameterization=V(), weighting=MinSNR(gamma=5.0))
    torch.testing.assert_close(weight_on_eps(min_snr, T), snr.clamp(max=5) / snr)  # Hang et al. 2023


def test_a_weight_in_x0_space_is_the_same_whatever_is_predicted() -> None:
    pairs = itertools.pairwise([Epsilon(), X0(), V(), Flow()])
    for a, b in pairs:
        one, other = (diffusion(schedule=VPLinear(), parameterization=p, weighting=MinSNR()) for p in (a, b))
        torch.testing.assert_close(weight_on_eps(one, T), weight_on_eps(other, T))


@pytest.mark.parametrize("law", [Uniform(), LogitNormal(mean=0.5), Stratified(law=LogitNormal(mean=0.5))])
def test_densities_are_those_of_the_law(law: object) -> None:
    one = curves(diffusion(time_sampler=law), UniformGrid(), 4, label="")
    assert np.trapezoid(one.t_density, one.t_bins) == pytest.approx(1, abs=0.02)
    assert np.trapezoid(one.snr_density, one.snr_bins) == pytest.approx(1, abs=0.02)
    if isinstance(law, Uniform):
        assert one.t_density == pytest.approx(np.ones(len(one.t_density)), abs=0.01)
    else:  # logit(t) = -log-SNR / 2 ~ N(0.5, 1)
        expected = np.exp(-0.5 * (-one.snr_bins / 2 - 0.5) ** 2) / np.sqrt(2 * np.pi) / 2
        assert one.snr_density == pytest.approx(expected, abs=0.003)


def test_the_weight_of_the_rectified_flow_is_the_published_one() -> None:
    """exp(-log-SNR / 2), for the plain flow loss at uniform times (Kingma & Gao 2023)."""
    one = curves(diffusion(), UniformGrid(), 4, label="")
    known = np.isfinite(one.weight) & (np.abs(one.snr_bins) < 8)
    expected = np.exp(-one.snr_bins[known] / 2)
    zero = np.argmin(np.abs(one.snr_bins[known]))
    assert one.weight[known] == pytest.approx(expected / expected[zero], rel=0.03)


def test_steps_are_where_the_network_is_asked() -> None:
    one = curves(diffusion(), LogSNR(log_snr_min=-4.0, log_snr_max=4.0), 5, label="")
    assert one.steps == pytest.approx([-np.inf, -2, 0, 2, 4], abs=1e-3)


# ------------------------------------------------------------------------------------------- parts and pictures

SCHEDULES = [f"schedule={path.stem}" for path in sorted((CONFIGS / "diffusion" / "schedule").glob("*.yaml"))]
PRESETS = [path.stem for path in sorted((CONFIGS / "diffusion").glob("*.yaml"))]
# an explicit grid has a number of steps of its own
GRIDS = [
    f"grid={path.stem}"
    for path in sorted((CONFIGS / "grid").glob("*.yaml"))
    if path.stem not in ("from_run", "explicit")
]


@pytest.mark.parametrize("entry", [*SCHEDULES, *PRESETS, *GRIDS])
def test_everything_a_config_names_can_be_drawn(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "NUM_DRAWS", 2000)
    base = diffusion(schedule=Cosine(), parameterization=V())
    grid = LogSNR() if "grid" not in entry else built_choice("grid", entry.partition("=")[2])
    changed, grid = exchanged(base, grid, entry)
    one = curves(changed.for_latents((4, 64, 64)), grid, 4, label=entry)
    assert not np.isnan(one.log_snr).any() and (np.diff(one.log_snr) < 0).all()
    assert len(one.steps) == 4 and (np.diff(one.steps) > 0).all()
    assert np.isfinite(one.t_density).all() and np.nanmin(one.weight) >= 0


def test_one_picture_of_all_that_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "NUM_DRAWS", 2000)
    sizes = []
    for panels in (list(PANELS), ["signal", "log_snr"]):
        out = tmp_path / "new" / f"{len(panels)}.png"
        compare = ["ddpm", "schedule=cosine grid=log_snr"]
        plot(diffusion=diffusion(), grid=UniformGrid(), compare=compare, panels=panels, out=str(out), **FEW)  # type: ignore[arg-type]
        with Image.open(out) as picture:
            sizes.append(picture.size)
            colours = {colour for _, colour in picture.convert("RGB").getcolors(10**6) or []}
        assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours  # a line of each
    assert sizes[0][0] > sizes[1][0] and sizes[0][1] > sizes[1][1]


def test_parts_are_exchanged_and_the_rest_stays() -> None:
    base = diffusion(time_sampler=LogitNormal(mean=0.7))
    changed, grid = exchanged(base, UniformGrid(), "schedule=cosine parameterization=v grid=log_snr")
    assert changed == diffusion(schedule=Cosine(), parameterization=V(), time_sampler=LogitNormal(mean=0.7))
    assert isinstance(grid, LogSNR)
    preset, _ = exchanged(base, UniformGrid(), "ddpm")
    assert isinstance(preset.parameterization, Epsilon)


def test_labels_leave_out_what_they_share() -> None:
    def labelled(*labels: str) -> list[str]:
        one = curves(diffusion(), UniformGrid(), 2, label="")
        named = [Curves(**{**vars(one), "label": label}) for label in labels]
        return [short.label for short in shortened(named)]

    assert labelled("RectifiedFlow", "schedule=cosine", "schedule=b") == ["RectifiedFlow", "cosine", "b"]
    mixed = ["RectifiedFlow", "schedule=cosine", "grid=log_snr"]
    assert labelled(*mixed) == mixed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"compare": ["dppm"]}, "diffusion has no choice 'dppm'; did you mean 'ddpm'"),
        ({"compare": ["schedul=cosine"]}, "names no part that could be exchanged; did you mean 'schedule'"),
        ({"compare": ["schedule=cosin"]}, "diffusion/schedule has no choice 'cosin'; did you mean 'cosine'"),
        ({"compare": ["parameterization=epsilon"]}, "ill-posed"),
        ({"panels": ["signl"]}, "panels: there is no 'signl'; did you mean 'signal'"),
        ({"panels": []}, "panels is empty"),
        ({"latents": [4, 8]}, r"latents=\[4, 8\] must be \[channels, height, width\]"),
        ({"num_steps": 0}, "num_steps=0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, given: dict[str, object], message: str) -> None:
    values = {"diffusion": diffusion(), "grid": UniformGrid(), "compare": [], "panels": ["signal"]}
    out = tmp_path / "x.png"
    with pytest.raises(ValueError, match=message):
        plot(**{**values, **FEW, "out": str(out), **given})  # type: ignore[arg-type]
    assert not out.exists()
