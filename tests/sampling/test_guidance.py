from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import X0, Flow, V
from ldm.diffusion.schedules import Cosine
from ldm.diffusion.time_samplers import Uniform
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Conditioning, Denoiser, Parameterization
from ldm.sampling.guidance import ClassifierFree, Unguided

B = 3


def conditioning(value: float, length: int = 4) -> Conditioning:
    return Conditioning(
        tokens=torch.full((B, length, 2), value),
        mask=torch.ones(B, length, dtype=torch.bool),
        pooled=torch.full((B, 2), value),
    )


COND, NOTHING = conditioning(1.0), conditioning(-0.5, length=1)


class Network:
    """Answers with its condition times x, and counts its calls and their batch sizes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert len(x) == len(t) == len(cond)
        self.batches.append(len(x))
        return cond.pooled[:, :1, None, None] * x + t[:, None, None, None]


def diffusion(parameterization: Parameterization | None = None) -> Diffusion:
    return Diffusion(
        schedule=Cosine(),
        parameterization=parameterization or V(),
        time_sampler=Uniform(),
        weighting=Unweighted(),
    )


def ask(denoise: Denoiser, t: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """x_t and what the denoiser says of it."""
    x = torch.randn(B, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    return x, *denoise(x, torch.full((B,), t))


def assert_same(a: Denoiser, b: Denoiser, t: float = 0.6) -> None:
    for one, other in zip(ask(a, t), ask(b, t), strict=True):
        torch.testing.assert_close(one, other)


def test_scale_1_is_unguided_at_its_cost() -> None:
    network = Network()
    guided = ClassifierFree(scale=1.0)(diffusion(), network, COND, NOTHING)
    assert_same(guided, Unguided()(diffusion(), Network(), COND, None))
    assert network.batches == [B]


def test_scale_0_ignores_the_prompt() -> None:
    guided = ClassifierFree(scale=0.0)(diffusion(), Network(), COND, NOTHING)
    assert_same(guided, Unguided()(diffusion(), Network(), NOTHING, None))


def test_one_call_on_a_doubled_batch() -> None:
    network = Network()
    ask(ClassifierFree(scale=3.0)(diffusion(), network, COND, NOTHING))
    assert network.batches == [2 * B]


def test_the_same_prompt_twice_leaves_nothing_to_guide() -> None:
    guided = ClassifierFree(scale=7.0)(diffusion(), Network(), COND, COND)
    assert_same(guided, Unguided()(diffusion(), Network(), COND, None))


@pytest.mark.parametrize("parameterization", [X0(), V(), Flow()], ids=lambda p: type(p).__name__)
def test_it_moves_along_the_line_from_uncond_to_cond(parameterization: Parameterization) -> None:
    it = diffusion(parameterization)
    _, *with_prompt = ask(it.denoiser(Network(), COND))
    _, *without = ask(it.denoiser(Network(), NOTHING))
    x, *guided = ask(ClassifierFree(scale=2.5)(it, Network(), COND, NOTHING))
    for g, c, u in zip(guided, with_prompt, without, strict=True):
        torch.testing.assert_close(g, u + 2.5 * (c - u))
    t = torch.tensor(0.6)
    torch.testing.assert_close(it.schedule.alpha(t) * guided[0] + it.schedule.sigma(t) * guided[1], x)


def test_outside_its_interval_the_conditional_prediction_stands_at_half_the_cost() -> None:
    network = Network()
    guided = ClassifierFree(scale=4.0, interval=(0.2, 0.5))(diffusion(), network, COND, NOTHING)
    assert_same(guided, Unguided()(diffusion(), Network(), COND, None), t=0.6)
    assert network.batches == [B]
    assert_same(guided, ClassifierFree(scale=4.0)(diffusion(), Network(), COND, NOTHING), t=0.4)


def test_rows_at_different_times_are_guided_each_by_its_own() -> None:
    x = torch.ones(B, 2, 3, 3)
    t = torch.tensor([0.1, 0.4, 0.9])
    guided = ClassifierFree(scale=4.0, interval=(0.2, 0.5))(diffusion(), Network(), COND, NOTHING)(x, t).x0
    plain = Unguided()(diffusion(), Network(), COND, None)(x, t).x0
    everywhere = ClassifierFree(scale=4.0)(diffusion(), Network(), COND, NOTHING)(x, t).x0
    torch.testing.assert_close(guided, torch.stack([plain[0], everywhere[1], plain[2]]))


def test_a_missing_null_condition_is_refused() -> None:
    for uncond in (None, COND[:1]):
        with pytest.raises(ValueError, match="null condition"):
            ClassifierFree(scale=2.0)(diffusion(), Network(), COND, uncond)


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.5)])
def test_impossible_intervals_are_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="interval"):
        ClassifierFree(scale=2.0, interval=interval)
