from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.interfaces import Conditioning, NoiseSchedule, Prediction
from ldm.sampling.editing import between, keeping, noised, noised_further, slerp, times_from

SCHEDULES = pytest.mark.parametrize(
    "schedule", [RectifiedFlow(), Cosine(), VPLinear()], ids=lambda schedule: type(schedule).__name__
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ strength


@pytest.mark.parametrize(
    ("strength", "rest"),
    [
        (1.0, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (0.9, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (0.8, [0.75, 0.5, 0.25, 0.0]),
        (0.5, [0.5, 0.25, 0.0]),
        (0.01, [0.25, 0.0]),  # one step at least
    ],
)
def test_strength_begins_at_the_nearest_time_of_the_grid(strength: float, rest: list[float]) -> None:
    assert times_from(torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]), strength).tolist() == rest


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength=.* must lie in \(0, 1\]"):
        times_from(torch.tensor([1.0, 0.0]), strength)


# --------------------------------------------------------------------------------------------------- noise


@SCHEDULES
@pytest.mark.parametrize(("t_from", "t_to"), [(0.0, 0.3), (0.2, 0.7), (0.5, 1.0)])
def test_noise_added_in_two_steps_has_the_law_of_one(
    schedule: NoiseSchedule, t_from: float, t_to: float
) -> None:
    """x_t = alpha x0 + sigma eps in both ways: the factors of x0 agree, and the variances of the noise."""
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def stepwise(x0: Tensor, first: Tensor, second: Tensor) -> Tensor:
        x = noised(schedule, x0, first, t_from)
        return noised_further(schedule, x, second, t_from=t_from, t_to=t_to)

    torch.testing.assert_close(stepwise(one, zero, zero), noised(schedule, one, zero, t_to))
    variance = stepwise(zero, one, zero) ** 2 + stepwise(zero, zero, one) ** 2
    torch.testing.assert_close(variance, noised(schedule, zero, one, t_to) ** 2)


def test_slerp_keeps_the_length_of_noise_and_its_ends_to_the_last_bit() -> None:
    a, b = draw(4, 8, 8).float(), draw(4, 8, 8, seed=1).float()
    b = b * (a.norm() / b.norm())
    assert torch.equal(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    for fraction in (0.1, 0.5, 0.8):
        torch.testing.assert_close(slerp(a, b, fraction).norm(), a.norm())
    assert torch.lerp(a, b, 0.5).norm() < 0.8 * a.norm()  # what it is good for


def test_slerp_turns_evenly() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for fraction in (0.25, 0.5):
        angle = torch.tensor(fraction * torch.pi / 2)
        torch.testing.assert_close(slerp(a, b, fraction), torch.stack([angle.cos(), angle.sin()]))


def test_slerp_of_parallel_noise_is_the_straight_line() -> None:
    a = draw(3, 3)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    assert slerp(torch.zeros(3), torch.zeros(3), 0.5).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------------- keeping


@SCHEDULES
def test_what_is_kept_is_answered_and_eps_follows(schedule: NoiseSchedule) -> None:
    x_t, x0, known = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1), draw(1, 3, 4, 4, seed=2)
    free = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    free[..., :2] = torch.tensor([0.0, 1.0])

    def denoise(x: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = (
            float(f(torch.tensor(t, dtype=torch.float64))) for f in (schedule.alpha, schedule.sigma)
        )
        return Prediction(x0=x0, eps=(x - alpha * x0) / sigma)

    for t in (1.0, 0.6, 0.01):
        answer = keeping(denoise, schedule, known, free)(x_t, t)
        torch.testing.assert_close(answer.x0, free * x0 + (1 - free) * known)
        torch.testing.assert_close(noised(schedule, answer.x0, answer.eps, t), x_t)


# ------------------------------------------------------------------------------------------ conditionings


def prompts(seed: int, lengths: list[int], width: int) -> Conditioning:
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    tokens = draw(len(lengths), width, 3, seed=seed)
    return Conditioning(tokens=tokens, mask=mask, pooled=draw(len(lengths), 2, seed=seed + 10))


def test_the_ends_are_the_prompts_themselves() -> None:
    a, b = prompts(0, [2, 5, 1], 5), prompts(1, [4, 1, 3], 6)
    for fraction, end in ((0.0, a), (1.0, b)):
        mixed = between(a, b, torch.full((3,), fraction))
        assert mixed.mask[:, : end.mask.shape[1]].equal(end.mask)
        assert not mixed.mask[:, end.mask.shape[1] :].any()
        real = end.mask
        assert mixed.tokens[:, : end.mask.shape[1]][real].equal(end.tokens[real])
        assert mixed.pooled.equal(end.pooled)


def test_shared_tokens_are_mixed_and_the_others_stay() -> None:
    a, b = prompts(0, [2], 5), prompts(1, [4], 5)
    mixed = between(a, b, torch.tensor([0.25]))
    assert mixed.mask.tolist() == [[True, True, True, True, False]]
    torch.testing.assert_close(mixed.tokens[0, :2], 0.75 * a.tokens[0, :2] + 0.25 * b.tokens[0, :2])
    assert mixed.tokens[0, 2:4].equal(b.tokens[0, 2:4])
    torch.testing.assert_close(mixed.pooled, 0.75 * a.pooled + 0.25 * b.pooled)


def test_rows_have_fractions_of_their_own() -> None:
    a, b = prompts(0, [2, 2], 4), prompts(1, [4, 4], 4)
    mixed = between(a, b, torch.tensor([0.0, 0.5]))
    assert mixed.mask.sum(1).tolist() == [2, 4]
