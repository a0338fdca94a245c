from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import X0, Flow, V
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.diffusion.time_samplers import Uniform
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Conditioning, Denoiser, NoiseSchedule, Parameterization
from ldm.sampling.guidance import Autoguidance, ClassifierFree, Unguided
from ldm.sampling.guidance_base import ScaledGuidance
from ldm.sampling.guidance_projected import APG
from ldm.sampling.guidance_zero_star import CFGZeroStar

B = 3


def conditioning(value: float, length: int = 4, device: str = "cpu") -> Conditioning:
    return Conditioning(
        tokens=torch.full((B, length, 2), value, device=device),
        mask=torch.ones(B, length, dtype=torch.bool, device=device),
        pooled=torch.full((B, 2), value, device=device),
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


def diffusion(
    parameterization: Parameterization | None = None, schedule: NoiseSchedule | None = None
) -> Diffusion:
    return Diffusion(
        schedule=schedule or Cosine(),
        parameterization=parameterization or V(),
        time_sampler=Uniform(),
        weighting=Unweighted(),
    )


def weaker(it: Diffusion) -> Denoiser:
    return it.denoiser(Network(), conditioning(0.2))


def guided(guidance: Any, it: Diffusion, network: Any = None, **given: Any) -> Denoiser:
    """The guidance bound to everything that any of them needs."""
    return guidance(it, network or Network(), COND, NOTHING, weaker=weaker(it), **given)


def ask(denoise: Denoiser, t: float = 0.6, *, number: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """x_t and what the denoiser says of it."""
    x = torch.randn(B, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    return x, *denoise(x, t if number else torch.full((B,), t))


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


# ------------------------------------------------------------------------------- laws that every guidance obeys

GUIDANCES: list[ScaledGuidance] = [
    ClassifierFree(scale=3.0),
    ClassifierFree(scale=3.0, rescale=0.7),
    APG(scale=3.0),
    APG(scale=3.0, momentum=0.3, norm_threshold=0.5, parallel=0.2),
    CFGZeroStar(scale=3.0),
    Autoguidance(scale=3.0, run="weak"),
]
EACH = pytest.mark.parametrize("guidance", GUIDANCES, ids=lambda guidance: repr(guidance)[:60])
SCHEDULES = [RectifiedFlow(), Cosine(), VPLinear()]


@pytest.mark.parametrize("t", [1.0, 0.99, 0.6, 0.01])
@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [*itertools.product(SCHEDULES, [V(), Flow()]), (VPLinear(), X0())],
    ids=lambda part: type(part).__name__,
)
@EACH
def test_x0_and_eps_still_agree_with_x_t(
    guidance: ScaledGuidance, schedule: NoiseSchedule, parameterization: Parameterization, t: float
) -> None:
    x, x0, eps = ask(guided(guidance, diffusion(parameterization, schedule)), t)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time).float(), schedule.sigma(time).float()
    torch.testing.assert_close(alpha * x0 + sigma * eps, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [1.0, 0.97, 0.6, 0.1])
@EACH
def test_one_time_for_all_and_a_time_for_each_row_say_the_same(guidance: ScaledGuidance, t: float) -> None:
    for one in (guidance, windowed(guidance, interval=(0.5, 0.98))):
        for a, b in zip(
            ask(guided(one, diffusion()), t), ask(guided(one, diffusion()), t, number=False), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("guidance", [g for g in GUIDANCES if not isinstance(g, CFGZeroStar)], ids=repr)
def test_every_scale_of_1_is_the_prompt_alone_at_its_cost(guidance: ScaledGuidance) -> None:
    network = Network()
    assert_same(guided(changed(guidance, scale=1.0), diffusion(), network), unguided())
    assert network.batches == [B]


@EACH
def test_a_scale_for_each_prompt_is_that_scale_for_its_row(guidance: ScaledGuidance) -> None:
    scales = [1.0, 2.5, 7.0]
    together = ask(guided(guidance, diffusion(), scales=scales))
    for row, scale in enumerate(scales):
        alone = ask(guided(guidance, diffusion(), scales=[scale] * B))
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[row], b[row])
        if scale != 1:
            own = ask(guided(changed(guidance, scale=scale), diffusion()))
            for a, b in zip(together, own, strict=True):
                torch.testing.assert_close(a[row], b[row])


@EACH
def test_another_number_of_scales_is_refused(guidance: ScaledGuidance) -> None:
    with pytest.raises(ValueError, match="2 guidance scales for 3 prompts"):
        guided(guidance, diffusion(), scales=[1.0, 2.0])


def test_unguided_has_no_scales() -> None:
    with pytest.raises(ValueError, match="no scale"):
        guided(Unguided(), diffusion(), scales=[1.0] * B)


@EACH
def test_outside_the_window_the_prompt_alone_is_asked_once(guidance: ScaledGuidance) -> None:
    network = Network()
    denoise = guided(windowed(guidance, interval=(0.2, 0.5)), diffusion(), network)
    assert_same(denoise, unguided(), t=0.6)
    assert_same(denoise, unguided(), t=0.1)
    assert network.batches == [B, B]
    ask(denoise, 0.4)
    assert sum(network.batches[2:]) == (B if isinstance(guidance, Autoguidance) else 2 * B)
    assert len(network.batches) == 3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_a_window_of_noise_levels_is_one_of_times(schedule: NoiseSchedule) -> None:
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    levels = (schedule.sigma(t) / schedule.alpha(t)).tolist()
    low, high = ClassifierFree(scale=2.0, noise_interval=(levels[0], levels[1])).window(schedule)
    assert (low, high) == pytest.approx((0.3, 0.7), abs=1e-9)
    everywhere = ClassifierFree(scale=2.0, noise_interval=(0.0, math.inf)).window(schedule)
    assert everywhere == pytest.approx((0.0, 1.0), abs=1e-9)
    both = ClassifierFree(scale=2.0, interval=(0.5, 0.6), noise_interval=(levels[0], levels[1]))
    assert both.window(schedule) == pytest.approx((0.5, 0.6))
    apart = ClassifierFree(scale=2.0, interval=(0.8, 0.9), noise_interval=(levels[0], levels[1]))
    assert_same(guided(apart, diffusion(V(), schedule)), unguided(schedule), t=0.85)


@EACH
def test_nothing_waits_for_the_device(guidance: ScaledGuidance) -> None:
    """On the meta device there is nothing to wait for: every look at a value is an error."""
    for one in (
        guidance,
        windowed(guidance, interval=(0.2, 0.5)),
        windowed(guidance, noise_interval=(0.2, 0.9)),
    ):
        it = diffusion()
        on_meta = it.denoiser(Network(), conditioning(0.2, device="meta"))
        denoise = one(
            it,
            Network(),
            conditioning(1.0, device="meta"),
            conditioning(0.0, device="meta"),
            scales=[1.0, 2.0, 3.0],
            weaker=on_meta,
        )
        x = torch.zeros(B, 2, 3, 3, device="meta")
        for t in (1.0, 0.6, 0.3, 0.1):
            assert denoise(x, t).x0.shape == x.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(x.any())  # so it would have been seen


def unguided(schedule: NoiseSchedule | None = None) -> Denoiser:
    return Unguided()(diffusion(V(), schedule), Network(), COND, None)


def changed(guidance: ScaledGuidance, **values: Any) -> ScaledGuidance:
    return dataclasses.replace(guidance, **values)


windowed: Callable[..., ScaledGuidance] = changed


# ----------------------------------------------------------------------------------------------- autoguidance


def test_autoguidance_moves_away_from_the_weaker_model() -> None:
    it = diffusion()
    _, *strong = ask(it.denoiser(Network(), COND))
    _, *weak = ask(weaker(it))
    _, *answer = ask(guided(Autoguidance(scale=2.5, run="weak"), it))
    for a, s, w in zip(answer, strong, weak, strict=True):
        torch.testing.assert_close(a, w + 2.5 * (s - w))


def test_autoguidance_without_its_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weaker model runs/small, and it was not loaded"):
        Autoguidance(scale=2.0, run="runs/small")(diffusion(), Network(), COND, NOTHING)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ClassifierFree, {"noise_interval": (2.0, 1.0)}, "noise_interval"),
        (ClassifierFree, {"noise_interval": (-1.0, 1.0)}, "noise_interval"),
        (ClassifierFree, {"scale": math.nan}, "scale=nan"),
        (ClassifierFree, {"rescale": 1.5}, "rescale=1.5"),
        (APG, {"momentum": -1.0}, "momentum=-1.0"),
        (APG, {"norm_threshold": 0.0}, "norm_threshold"),
        (CFGZeroStar, {"zero_init": 1.0}, "zero_init=1.0"),
    ],
)
def test_impossible_values_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"scale": 2.0, **values})
