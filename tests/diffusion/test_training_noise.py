from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ldm.diffusion.parameterizations import Flow
from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.training_noise import Immiscible, Independent, NoiseOffset, White
from tests.diffusion.parts import diffusion, sample


def more(shape: Sequence[int]) -> Tensor:
    return torch.randn(8, *shape, generator=torch.Generator().manual_seed(5))


def none(shape: Sequence[int]) -> Tensor:
    raise AssertionError("more noise was drawn")


def test_the_defaults_leave_the_noise_alone() -> None:
    x0, eps, _ = sample()
    assert diffusion(RectifiedFlow(), Flow()).training_noise(x0, eps, none) is eps
    assert White()(eps, none) is eps and Independent()(x0, eps) is eps


def test_noise_offset_adds_one_number_per_sample_and_channel() -> None:
    _, eps, _ = sample()
    added = NoiseOffset(strength=0.1)(eps, more) - eps
    torch.testing.assert_close(added, 0.1 * more((4, 1, 1)).expand_as(eps), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"strength=-0\.1"):
        NoiseOffset(strength=-0.1)


def test_immiscible_is_the_best_of_all_assignments() -> None:
    x0, eps, _ = sample()
    x0, eps = x0[:5], eps[:5]
    paired = Immiscible()(x0, eps)

    def distance(noise: Tensor) -> Tensor:
        return (x0 - noise).flatten(1).norm(dim=1).sum()

    best = min(distance(eps[list(order)]) for order in itertools.permutations(range(5)))
    torch.testing.assert_close(distance(paired), best)
    assert distance(paired) < distance(eps)
    # each noise is used once
    assert sorted(row.flatten().tolist() for row in paired) == sorted(row.flatten().tolist() for row in eps)


def test_immiscible_does_not_depend_on_order_or_precision() -> None:
    x0, eps, _ = sample()
    paired = Immiscible()(x0, eps)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Immiscible()(x0, eps[order]), paired)
    assert torch.equal(Immiscible()(x0[order], eps), paired[order])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Immiscible()(x0, eps), paired)


def test_immiscible_needs_no_gradient_of_the_pictures() -> None:
    x0, eps, _ = sample()
    assert not Immiscible()(x0.requires_grad_(), eps).requires_grad


def test_diffusion_pairs_the_noise_that_is_used() -> None:
    x0, eps, _ = sample()
    it = diffusion(RectifiedFlow(), Flow(), noise=NoiseOffset(strength=2.0), coupling=Immiscible())
    expected = Immiscible()(x0, NoiseOffset(strength=2.0)(eps, more))
    assert torch.equal(it.training_noise(x0, eps, more), expected)
