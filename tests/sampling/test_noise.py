from __future__ import annotations

import torch
from scipy import stats

from ldm.sampling.noise import ImageNoise

SHAPE = (4, 8, 8)


def test_a_row_depends_on_its_own_seed_and_step_only() -> None:
    together = ImageNoise(seeds=[3, 1, 4], shape=SHAPE)
    alone = ImageNoise(seeds=[1], shape=SHAPE)
    torch.testing.assert_close(together.start()[1:2], alone.start(), rtol=0, atol=0)
    together(7)  # asking for other steps changes nothing: noise is addressed, not consumed
    torch.testing.assert_close(together(5)[1:2], alone(5), rtol=0, atol=0)


def test_seeds_steps_and_the_start_all_differ() -> None:
    noise = ImageNoise(seeds=[0, 1], shape=SHAPE)
    draws = [*noise.start(), *noise(0), *noise(1)]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.25


def test_it_is_standard_normal() -> None:
    draws = ImageNoise(seeds=range(50), shape=SHAPE)(0)
    assert draws.shape == (50, *SHAPE)
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 0.01
