"""The Fréchet distance against its closed form, against scipy's matrix root, and over many draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from ldm.evaluation.frechet import FeatureSums, Moments, frechet_distance, frechet_influence


def gaussian(mean: torch.Tensor, cov: torch.Tensor, num: int, seed: int) -> torch.Tensor:
    noise = torch.randn(num, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return mean + noise @ torch.linalg.cholesky(cov).T


def some_cov(seed: int, width: int = 6) -> torch.Tensor:
    root = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + 0.1 * torch.eye(width)


def exactly(mean: torch.Tensor, cov: torch.Tensor) -> Moments:
    return Moments(1000, mean.double(), cov.double())


def test_of_gaussians_that_share_their_axes_it_is_known() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 over the axes."""
    turn = torch.linalg.qr(some_cov(0)).Q
    first, second = torch.arange(1.0, 7.0).double(), torch.tensor([2.0, 2, 2, 0, 9, 1]).double()
    m1, m2 = torch.ones(6), torch.tensor([0.0, 1, 2, 3, 4, 5])
    a = exactly(m1, turn @ first.square().diag() @ turn.T)
    b = exactly(m2, turn @ second.square().diag() @ turn.T)
    known = float((m1 - m2).square().sum() + (first - second).square().sum())
    assert frechet_distance(a, b) == pytest.approx(known, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(known, rel=1e-6)


def test_it_is_what_a_general_matrix_root_gives() -> None:
    """FID's papers take the root of the product, which is not symmetric."""
    a, b = exactly(torch.zeros(6), some_cov(1)), exactly(torch.ones(6), some_cov(2))
    root = linalg.sqrtm(a.cov.numpy() @ b.cov.numpy())
    known = 6 + np.trace(a.cov.numpy()) + np.trace(b.cov.numpy()) - 2 * np.trace(root).real
    assert frechet_distance(a, b) == pytest.approx(known, rel=1e-8)


def test_equal_sets_are_no_distance_apart_also_with_more_features_than_pictures() -> None:
    few = gaussian(torch.zeros(6), some_cov(3), 4, seed=0)
    assert frechet_distance(Moments.of(few), Moments.of(few)) == pytest.approx(0, abs=1e-6)


def test_moments_are_numpys_and_sums_of_parts_are_those_of_the_whole() -> None:
    x = gaussian(torch.full((6,), 30.0), some_cov(4), 101, seed=1)  # far from zero: sums of squares cancel
    whole = Moments.of(x)
    np.testing.assert_allclose(whole.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.cov, np.cov(x.numpy(), rowvar=False), rtol=1e-9)
    packed = FeatureSums.of(x[:40]).packed() + FeatureSums.of(x[40:]).packed()  # as an all-reduce adds
    parts = FeatureSums.unpacked(packed).moments()
    assert parts.num == 101
    torch.testing.assert_close(parts.cov, whole.cov, rtol=1e-9, atol=0)


def test_one_picture_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="two pictures at least"):
        Moments.of(torch.zeros(1, 3))


def test_the_influence_tells_how_much_the_distance_varies_from_draw_to_draw() -> None:
    mean, cov, other = torch.zeros(4).double(), some_cov(5, 4), exactly(torch.ones(4), some_cov(6, 4))
    values, told = [], []
    for seed in range(300):
        x = gaussian(mean, cov, 400, seed)
        own = Moments.of(x)
        values.append(frechet_distance(own, other))
        pull = frechet_influence(x, own, other)
        assert abs(float(pull.mean())) < 1e-9
        told.append(float(pull.std()) / 20)
    assert np.mean(told) == pytest.approx(np.std(values), rel=0.15)  # 300 draws tell a deviation to 4 %


def test_the_influence_is_the_slope_of_the_distance() -> None:
    """Doubling one picture's weight a little moves the distance by its influence over N."""
    x, other = (
        gaussian(torch.zeros(4).double(), some_cov(7, 4), 50, 0),
        exactly(torch.ones(4), some_cov(8, 4)),
    )

    def weighted(weights: torch.Tensor) -> Moments:
        mean = weights @ x
        return exactly(mean, (weights[:, None] * (x - mean)).T @ (x - mean))

    def distance(weights: torch.Tensor) -> float:
        return frechet_distance(weighted(weights), other)

    even = torch.full((50,), 1 / 50, dtype=torch.float64)
    pull = frechet_influence(x, weighted(even), other)
    for i in (0, 17):
        towards = torch.zeros(50, dtype=torch.float64)
        towards[i] = 1
        step = 1e-5
        slope = (distance(even + step * (towards - even)) - distance(even - step * (towards - even))) / (
            2 * step
        )
        assert slope == pytest.approx(float(pull[i]), rel=1e-4)
