"""MMD against sums written out, against its expectation, and against torchmetrics' KID."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from ldm.evaluation import kernel as module
from ldm.evaluation.kernel import Gaussian, Polynomial, squared_mmd


def draws(num: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(num, 5, generator=torch.Generator().manual_seed(seed)).double() + shift


@pytest.mark.parametrize("kernel", [Polynomial(), Gaussian(bandwidth=1.5)])
@pytest.mark.parametrize("unbiased", [True, False])
def test_it_is_the_sums_of_the_paper(kernel: object, unbiased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.blocks, "__defaults__", (3,))  # several blocks, the last one short
    x, y = draws(7, 0), draws(10, 1, 0.5)

    def mean(a: torch.Tensor, b: torch.Tensor, apart: bool) -> float:
        values = [
            float(kernel(a[i : i + 1], b[j : j + 1]))  # type: ignore[operator]
            for i in range(len(a))
            for j in range(len(b))
            if not (apart and i == j)
        ]
        return sum(values) / len(values)

    known = mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False)
    found = squared_mmd(x, y, kernel, unbiased=unbiased)  # type: ignore[arg-type]
    assert found.value == pytest.approx(known, rel=1e-9)


def test_gaussian_kernel_of_gaussians_has_a_closed_form() -> None:
    """E k(x, y) = (s^2 / (s^2 + 2))^(d/2) exp(-|m|^2 / (2 (s^2 + 2))) for unit Gaussians m apart."""
    s, d, shift = 1.5, 5, 0.7
    base = (s**2 / (s**2 + 2)) ** (d / 2)
    known = 2 * base * (1 - np.exp(-d * shift**2 / (2 * (s**2 + 2))))
    values = [
        squared_mmd(
            draws(400, seed), draws(400, 1000 + seed, shift), Gaussian(bandwidth=s), unbiased=True
        ).value
        for seed in range(20)
    ]
    assert np.mean(values) == pytest.approx(known, abs=4 * np.std(values) / np.sqrt(20))
    assert np.std(values) < 0.2 * known


def test_unbiased_means_zero_on_average_for_equal_laws() -> None:
    values = [
        squared_mmd(draws(30, s), draws(30, 500 + s), Polynomial(), unbiased=True).value for s in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert min(values) < 0 < max(values)


def test_the_influence_tells_how_much_it_varies_from_draw_to_draw() -> None:
    y = draws(500, 9, 0.5)
    found = [squared_mmd(draws(300, s), y, Polynomial(), unbiased=True) for s in range(200)]
    told = np.mean([float(one.influence.std()) / np.sqrt(300) for one in found])
    assert told == pytest.approx(np.std([one.value for one in found]), rel=0.2)
    assert abs(float(found[0].influence.mean())) < 1e-12


def test_a_single_picture_is_refused_where_its_likeness_to_itself_does_not_count() -> None:
    with pytest.raises(ValueError, match="two at least"):
        squared_mmd(draws(1, 0), draws(5, 1), Polynomial(), unbiased=True)


def test_kid_is_torchmetrics() -> None:
    x, y = draws(60, 0), draws(60, 1, 0.3)
    theirs = float(poly_mmd(x, y))
    assert squared_mmd(x, y, Polynomial(), unbiased=True).value == pytest.approx(theirs, rel=1e-9)
