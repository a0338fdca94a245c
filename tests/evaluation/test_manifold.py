"""Precision, recall, density and coverage against loops, and where they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm.evaluation import kernel
from ldm.evaluation.manifold import fidelity, radii


def draws(num: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(seed)) + shift


def test_they_are_what_loops_over_all_pairs_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel.blocks, "__defaults__", (7,))
    fake, real, k = draws(40, 0), draws(50, 1, 0.8), 3

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(np.linalg.norm(a.double() - b.double()))

    def radius(x: torch.Tensor, others: torch.Tensor) -> float:
        return sorted(distance(x, y) for y in others)[k]  # the first is itself

    reach = [radius(y, real) for y in real]
    own = [radius(x, fake) for x in fake]
    inside = np.array([[distance(x, y) <= r for y, r in zip(real, reach, strict=True)] for x in fake])
    recalled = [any(distance(x, y) <= r for x, r in zip(fake, own, strict=True)) for y in real]
    found = fidelity(fake, real, nearest=k)
    np.testing.assert_array_equal(found.precision, inside.any(1))
    np.testing.assert_array_equal(found.recall, recalled)
    np.testing.assert_allclose(found.density, inside.sum(1) / k)
    np.testing.assert_array_equal(found.coverage, inside.any(0))


def test_density_is_one_and_coverage_its_formula_where_the_laws_are_equal() -> None:
    """E[density] = 1, and E[coverage] = 1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)) (2002.09797, lemmas 1 and 2)."""
    n, m, k = 200, 300, 5
    found = [fidelity(draws(m, s), draws(n, 100 + s), nearest=k) for s in range(40)]
    density, coverage = (
        [float(getattr(one, name).mean()) for one in found] for name in ("density", "coverage")
    )
    known = 1 - np.prod([(n - i) / (m + n - i) for i in range(1, k + 1)])
    assert np.mean(density) == pytest.approx(1, abs=4 * np.std(density) / np.sqrt(40))
    assert np.mean(coverage) == pytest.approx(known, abs=4 * np.std(coverage) / np.sqrt(40) + 0.002)


def test_a_copy_of_the_reference_is_perfect_and_a_far_set_is_nothing() -> None:
    real = draws(30, 0)
    same, far = fidelity(real, real, nearest=3), fidelity(draws(30, 1, 100), real, nearest=3)
    for name in ("precision", "recall", "coverage"):
        assert float(getattr(same, name).mean()) == 1
        assert float(getattr(far, name).mean()) == 0
    assert float(far.density.mean()) == 0


def test_one_point_repeated_is_precise_and_recalls_nothing() -> None:
    real = draws(50, 0)
    found = fidelity(real[:1].repeat(20, 1), real, nearest=3)
    assert float(found.precision.mean()) == 1
    assert float(found.recall.mean()) == pytest.approx(1 / 50)


def test_balls_reach_to_the_kth_other() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    torch.testing.assert_close(radii(line, 1), torch.tensor([1.0, 1, 2, 4]))


@pytest.mark.parametrize("nearest", [0, 5])
def test_more_neighbours_than_there_are_is_refused(nearest: int) -> None:
    with pytest.raises(ValueError, match=f"nearest={nearest}"):
        fidelity(draws(5, 0), draws(9, 1), nearest=nearest)
