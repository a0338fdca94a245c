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


def test_noise_turned_towards_another_seed() -> None:
    turned = ImageNoise(seeds=[3, 3, 3, 3], shape=SHAPE, turned=[None, (8, 0.0), (8, 1.0), (8, 0.5)])
    own, other = (ImageNoise(seeds=[seed], shape=SHAPE) for seed in (3, 8))
    for name in ("start", 0, 7):  # the noise of every step is turned as well
        rows = turned.draw(name)
        assert torch.equal(rows[0], own.draw(name)[0]) and torch.equal(rows[1], own.draw(name)[0])
        torch.testing.assert_close(rows[2], other.draw(name)[0])
        half = rows[3]
        for end in (own, other):
            correlation = torch.corrcoef(torch.stack([half.flatten(), end.draw(name).flatten()]))[0, 1]
            assert 0.55 < float(correlation) < 0.85  # 1 / sqrt(2) where the two are at a right angle


def test_noise_half_way_is_still_standard_normal() -> None:
    draws = ImageNoise(seeds=range(50), shape=SHAPE, turned=[(seed + 1000, 0.5) for seed in range(50)])(0)
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 0.01
