from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ldm.diffusion.schedules import RectifiedFlow
from ldm.sampling.exponential import order_of, predictor, taus_behind, weights
from ldm.sampling.walk import Step, steps_along


def integral(power: int, h: float) -> float:
    """h * integral from 0 to 1 of exp(-h (1 - tau)) tau^power, by Gauss's rule on 20 stretches."""
    nodes, shares = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(0, 1, 21)
    tau = (0.5 * (edges[1:] + edges[:-1]) + 0.5 * np.outer(nodes, np.diff(edges))).T
    return float((h * np.exp(-h * (1 - tau)) * tau**power * (0.5 * np.diff(edges)[:, None] * shares)).sum())


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.1, 0.999, 1.001, 5.0, 30.0])
@pytest.mark.parametrize("taus", [[0.0], [1.0, 0.0], [0.0, -0.7], [0.0, -1.3, -2.0], [1.0, 0.0, -0.4, -3.0]])
def test_the_integral_is_exact_for_polynomials(taus: list[float], h: float) -> None:
    found = weights(taus, h)
    for power in range(len(taus)):
        total = sum(weight * tau**power for weight, tau in zip(found, taus, strict=True))
        assert total == pytest.approx(integral(power, h), rel=1e-9)


def steps(times: list[float]) -> list[Step]:
    return steps_along(RectifiedFlow(), torch.tensor(times, dtype=torch.float64))


def test_points_behind_are_counted_in_lengths_of_the_step() -> None:
    walk = steps([0.9, 0.7, 0.6, 0.2])
    lam = [math.log((1 - t) / t) for t in (0.9, 0.7, 0.6, 0.2)]
    h = lam[3] - lam[2]
    assert taus_behind(walk, 2, 3) == pytest.approx([0.0, (lam[1] - lam[2]) / h, (lam[0] - lam[2]) / h])
    assert taus_behind(walk, 2, 2) == pytest.approx([0.0, (lam[1] - lam[2]) / h])
    assert taus_behind(walk, 0, 3) == [0.0]


def test_a_point_without_picture_lies_infinitely_far_behind_and_drops_out() -> None:
    walk = steps([1.0, 0.7, 0.6, 0.2])
    assert [len(taus_behind(walk, i, 3)) for i in range(3)] == [1, 1, 2]


def test_order_grows_with_what_is_known_and_falls_towards_the_data() -> None:
    inner, to_data = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.8, 0.7, 0.6, 0.5, 0.0]
    assert [order_of(steps(inner), i, 3) for i in range(5)] == [1, 2, 3, 3, 3]
    assert [order_of(steps(to_data), i, 3) for i in range(5)] == [1, 2, 3, 2, 1]
    assert [order_of(steps([1.0, *to_data[1:]]), i, 3) for i in range(5)] == [1, 1, 2, 2, 1]
    assert [order_of(steps(to_data), i, 2) for i in range(5)] == [1, 2, 2, 2, 1]


def test_second_order_is_the_exact_integral_up_to_what_both_neglect() -> None:
    """The slope's weight is h / 2 of the whole in place of the integral of tau: the same to second order in h."""
    for h in (0.02, 0.01):
        t0, t1, t2 = (1 / (1 + math.exp(lam)) for lam in (0.0, h, 2 * h))  # lam of the rectified flow
        walk = steps([t0, t1, t2])
        exact = [walk[1].alpha1 * w for w in weights([0.0, -1.0], walk[1].h)]
        for bh1 in (False, True):
            found = predictor(walk, 1, 2, bh1=bh1).x0
            assert sum(found) == pytest.approx(sum(exact), rel=1e-12)
            assert abs(found[1] - exact[1]) < h**2
