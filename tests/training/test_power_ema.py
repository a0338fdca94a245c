"""Power-function averages, and averages of other widths made after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.training.callbacks import StopAtImages
from ldm.training.checkpoint import read_checkpoint
from ldm.training.post_hoc import (
    Profile,
    coefficients,
    gamma_of,
    inner_products,
    share,
    sigma_rel_of,
)
from ldm.training.power_ema import PowerEMA
from ldm.training.saving import Checkpoints
from ldm.training.snapshots import find_average, make_average, read_average, read_snapshots, write_average
from tests.training.test_ema import History
from tests.training.tiny import TinyModule, fit


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25])
def test_width_is_the_standard_deviation_of_the_profile(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-9)
    x = (np.arange(400_000) + 0.5) / 400_000  # the density (gamma + 1) x^gamma on [0, 1]
    density = (gamma + 1) * x**gamma / len(x)
    mean = (density * x).sum()
    assert ((density * (x - mean) ** 2).sum()) ** 0.5 == pytest.approx(sigma_rel, rel=1e-4)


def test_widths_that_cannot_be_are_refused() -> None:
    for width in (0.0, -0.1, 0.3):
        with pytest.raises(ValueError, match=r"sigma_rel=.*must lie in"):
            gamma_of(width)


def discrete_profile(steps: int, gamma: float, length: int) -> np.ndarray:
    """The weight of each step's weights in the average, by its recurrence."""
    profile = np.zeros(length)
    for step in range(1, steps + 1):
        profile *= 1 - share(step, gamma)
        profile[step - 1] += share(step, gamma)
    return profile


def test_the_recurrence_gives_the_cells_of_the_continuous_profile() -> None:
    for sigma_rel in (0.05, 0.1, 0.2):
        gamma = gamma_of(sigma_rel)
        k = np.arange(101) / 100
        expected = np.diff(k ** (gamma + 1))
        np.testing.assert_allclose(discrete_profile(100, gamma, 100), expected, atol=1e-12)


def test_inner_products_are_integrals() -> None:
    profiles = [Profile(30, 3.0), Profile(100, 12.0), Profile(100, 3.0), Profile(64, 0.0)]
    x = (np.arange(200_000) + 0.5) / 2000  # up to 100
    rows = [np.where(x <= p.step, (p.gamma + 1) * (x / p.step) ** p.gamma / p.step, 0.0) for p in profiles]
    numeric = np.array([[(a * b).sum() / 2000 for a in rows] for b in rows])
    np.testing.assert_allclose(inner_products(profiles, profiles), numeric, rtol=2e-3)


def test_a_kept_profile_is_found_again() -> None:
    kept = [Profile(step, gamma_of(width)) for step in (50, 100, 150) for width in (0.05, 0.1)]
    weights, misfit = coefficients(kept, kept[3])
    np.testing.assert_allclose(weights, np.eye(6)[3], atol=1e-6)
    assert misfit < 1e-4


@pytest.mark.parametrize(("sigma_rel", "within"), [(0.06, 0.03), (0.08, 0.02), (0.1, 0.02), (0.15, 0.05)])
def test_an_average_made_after_training_is_the_one_computed_directly(
    tmp_path: Path, sigma_rel: float, within: float
) -> None:
    """Against the recurrence run on every step's weights: the wanted average, within the misfit that is told."""
    power = PowerEMA(snapshot_every_num_images=16, half=False)
    history = History(num_images=400)
    fit(tmp_path, [power, history])
    snapshots = read_snapshots(tmp_path / "averages")
    assert len(snapshots) == 25 and snapshots[-1].step == 100
    made = make_average(snapshots, sigma_rel=sigma_rel)
    direct, gamma = torch.zeros_like(history.weights[0]), gamma_of(sigma_rel)
    for step, weights in enumerate(history.weights, start=1):
        direct.lerp_(weights, share(step, gamma))
    moved = (torch.stack(history.weights) - history.weights[-1]).flatten(1).norm(dim=1).max()
    assert made.misfit < within
    assert (made.state["network"]["0.weight"] - direct).norm() < within * moved


def test_half_precision_costs_what_it_should(tmp_path: Path) -> None:
    states = {}
    for half in (False, True):
        fit(
            tmp_path / str(half),
            [PowerEMA(snapshot_every_num_images=40, half=half), StopAtImages(num_images=200)],
        )
        made = make_average(read_snapshots(tmp_path / str(half) / "averages"), sigma_rel=0.08)
        states[half] = made.state["network"]["0.weight"]
    scale = states[False].abs().max() * made.amplification
    assert not torch.equal(states[True], states[False])
    assert (states[True] - states[False]).abs().max() < 2**-11 * scale


def test_both_averages_and_their_snapshots_survive_a_restart(tmp_path: Path) -> None:
    def parts(num: int) -> list:
        options = {"every_num_images": 1000, "monitor": None}
        return [PowerEMA(snapshot_every_num_images=16), StopAtImages(num_images=num), Checkpoints(**options)]

    fit(tmp_path / "whole", parts(48))
    fit(tmp_path / "parts", parts(20))
    fit(tmp_path / "parts", parts(48), resume=tmp_path / "parts/checkpoints/last")
    whole, in_parts = (read_checkpoint(tmp_path / name / "checkpoints/last") for name in ("whole", "parts"))
    for entry in ("ema", "other_averages"):
        torch.testing.assert_close(in_parts[entry], whole[entry], rtol=0, atol=0)
    assert whole["ema"]["network"].keys() == TinyModule().network.state_dict().keys()
    steps = [[s.step for s in read_snapshots(tmp_path / name / "averages")] for name in ("whole", "parts")]
    assert steps[0] == [4, 8, 12] and steps[1] == [4, 5, 8, 12]  # and the end of the first part


def test_averages_are_found_by_name_and_known_by_hash(tmp_path: Path) -> None:
    fit(tmp_path, [PowerEMA(snapshot_every_num_images=16), StopAtImages(num_images=64)])
    made = make_average(read_snapshots(tmp_path / "averages"), sigma_rel=0.08, images_seen=48)
    path = write_average(tmp_path / "averages/sigma_rel_0.080.safetensors", made, sigma_rel=0.08)
    assert find_average(tmp_path, "sigma_rel_0.080") == find_average(Path("x"), str(path)) == path
    state, seen = read_average(path)
    assert seen == 48 and state["network"].keys() == TinyModule().network.state_dict().keys()
    with pytest.raises(ValueError, match="not the average it was"):
        find_average(tmp_path, "sigma_rel_0.080#0000")
    with pytest.raises(ValueError, match=r"one of those ldm ema made: sigma_rel_0\.080"):
        find_average(tmp_path, "sigma_rel_0.090")
    with pytest.raises(
        ValueError, match=r"no snapshot was taken at 50 images; the nearest are at \[32, 48, 64\]"
    ):
        make_average(read_snapshots(tmp_path / "averages"), sigma_rel=0.08, images_seen=50)
    with pytest.raises(ValueError, match="holds no average"):
        read_average(tmp_path / "averages/000000064.safetensors")


def test_widths_and_the_shown_one_must_fit() -> None:
    with pytest.raises(ValueError, match=r"shown=0\.2 must be one of"):
        PowerEMA(shown=0.2, snapshot_every_num_images=1)
    with pytest.raises(ValueError, match="must be positive"):
        PowerEMA(snapshot_every_num_images=0)
