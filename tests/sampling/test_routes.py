"""Where a sampler starts and what it keeps, with every kind of sampler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.interfaces import NoiseSchedule, Prediction, Sampler
from ldm.sampling.dpm_solver import DPMpp2M
from ldm.sampling.editing import noised
from ldm.sampling.noise import ImageNoise
from ldm.sampling.routes import AroundKnown, FromNoise, FromPicture
from ldm.sampling.samplers import DDIM, Euler, Heun
from ldm.sampling.unipc import UniPC
from tests.sampling.oracles import Gaussian

DETERMINISTIC = [Euler(), Heun(), DPMpp2M(), UniPC()]
SAMPLERS = [*DETERMINISTIC, DDIM(eta=1.0)]
SCHEDULES = [RectifiedFlow(), Cosine(), VPLinear()]
EVERY = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
ALONG = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
SHAPE = (2, 4, 4)
NOISE = ImageNoise(seeds=[3, 4], shape=SHAPE)
TIMES = torch.linspace(1, 0, 9)
PICTURE = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(9))
FREE = torch.zeros(1, 1, 4, 4)
FREE[..., 2:] = 1.0
KNOWN = (FREE == 0).expand(2, *SHAPE)


class Seen:
    """A step callback that keeps what it is shown."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Tensor]] = []

    def __call__(self, step: int, x_t: Tensor, prediction: Prediction) -> None:
        self.steps.append((step, x_t.float()))  # the oracles answer in float64

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return iter(self.steps)


def test_from_noise_is_the_whole_way() -> None:
    denoise, seen = Gaussian(VPLinear()), Seen()
    x = FromNoise()(Euler(), denoise, VPLinear(), TIMES, noise=NOISE, on_step=seen)
    assert [step for step, _ in seen] == list(range(8))
    start = NOISE.start() * float(VPLinear().sigma(torch.tensor(1.0)))
    torch.testing.assert_close(seen.steps[0][1], start, rtol=0, atol=0)
    assert x.shape == (2, *SHAPE)


@ALONG
@EVERY
def test_a_picture_is_noised_to_its_strength_and_walked_from_there(
    sampler: Sampler, schedule: NoiseSchedule
) -> None:
    seen = Seen()
    FromPicture(latents=PICTURE, strength=0.5)(
        sampler, Gaussian(schedule), schedule, TIMES, noise=NOISE, on_step=seen
    )
    assert [step for step, _ in seen] == [4, 5, 6, 7]  # numbered along the whole grid
    torch.testing.assert_close(seen.steps[0][1], noised(schedule, PICTURE, NOISE.start(), 0.5))


def test_at_full_strength_a_picture_is_made_from_noise_alone() -> None:
    """On a schedule that ends in pure noise."""
    ways = (FromNoise(), FromPicture(latents=PICTURE, strength=1.0))
    a, b = (way(Heun(), Gaussian(RectifiedFlow()), RectifiedFlow(), TIMES, noise=NOISE) for way in ways)
    assert torch.equal(a, b)


def test_little_strength_leaves_the_picture_nearly_as_it_is() -> None:
    def repeat(x_t: Tensor, t: Tensor | float) -> Prediction:
        return Prediction(x0=x_t, eps=x_t)

    strengths = (0.125, 0.5, 1.0)
    changes = [
        (
            FromPicture(latents=PICTURE, strength=s)(Euler(), repeat, RectifiedFlow(), TIMES, noise=NOISE)
            - PICTURE
        )
        for s in strengths
    ]
    sizes = [float(change.norm()) for change in changes]
    assert sizes == sorted(sizes) and sizes[0] < 0.3 * sizes[-1]


@ALONG
@EVERY
def test_what_is_known_ends_as_it_was_to_the_last_bit(sampler: Sampler, schedule: NoiseSchedule) -> None:
    for route in (
        AroundKnown(latents=PICTURE, free=FREE),
        AroundKnown(latents=PICTURE, free=FREE, strength=0.6),
        AroundKnown(latents=PICTURE, free=FREE, num_passes=3, stretch=3),
    ):
        x = route(sampler, Gaussian(schedule), schedule, TIMES, noise=NOISE)
        assert torch.isfinite(x).all()
        assert torch.equal(x[KNOWN], PICTURE.expand_as(x)[KNOWN])


@ALONG
@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=lambda sampler: type(sampler).__name__)
def test_at_every_step_the_known_region_is_the_noised_original(
    sampler: Sampler, schedule: NoiseSchedule
) -> None:
    """RePaint's rule, here with the noise it began with; the network sees nothing else."""
    seen = Seen()
    AroundKnown(latents=PICTURE, free=FREE)(
        sampler, Gaussian(schedule), schedule, TIMES, noise=NOISE, on_step=seen
    )
    assert len(seen.steps) == 8
    for step, x_t in seen:
        wanted = noised(schedule, PICTURE, NOISE.start(), float(TIMES[step]))
        torch.testing.assert_close(x_t[KNOWN], wanted[KNOWN], rtol=1e-3, atol=1e-3)


@ALONG
def test_with_fresh_noise_the_known_region_has_the_noise_of_its_time(schedule: NoiseSchedule) -> None:
    picture, free = torch.full((1, 1, 48, 48), 0.7), torch.zeros(1, 1, 48, 48)
    seen = Seen()
    noise = ImageNoise(seeds=[0], shape=(1, 48, 48))
    AroundKnown(latents=picture, free=free)(
        DDIM(eta=1.0), Gaussian(schedule), schedule, TIMES, noise=noise, on_step=seen
    )
    for step, x_t in seen:
        t = TIMES[step].double()
        assert float(x_t.std()) == pytest.approx(float(schedule.sigma(t)), rel=0.08, abs=0.005)


def test_a_soft_mask_mixes() -> None:
    """The denoiser is certain of c: what comes out is c where all is free, the picture where nothing is, or between."""
    free = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(1, 1, 4, 4)

    def certain(x_t: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = 1 - float(t), float(t)
        return Prediction(x0=torch.full_like(x_t, 2.0), eps=(x_t - alpha * 2.0) / sigma)

    for sampler in DETERMINISTIC:
        x = AroundKnown(latents=PICTURE, free=free)(sampler, certain, RectifiedFlow(), TIMES, noise=NOISE)
        torch.testing.assert_close(x, (free * 2.0 + (1 - free) * PICTURE).expand_as(x), rtol=1e-4, atol=1e-4)


def test_nothing_under_the_mask_is_seen_at_full_strength() -> None:
    """VPLinear leaves a trace of the picture at t = 1: not of what is to be painted anew."""
    results = []
    for value in (0.0, 1000.0):
        picture = torch.where(FREE == 1, value, PICTURE)
        route = AroundKnown(latents=picture, free=FREE)
        results.append(route(Heun(), Gaussian(VPLinear()), VPLinear(), TIMES, noise=NOISE))
    assert torch.equal(*results)


def test_further_passes_walk_each_stretch_again_from_fresh_noise() -> None:
    seen = Seen()
    route = AroundKnown(latents=PICTURE, free=FREE, num_passes=2, stretch=3, strength=0.75)
    route(Euler(), Gaussian(RectifiedFlow()), RectifiedFlow(), TIMES, noise=NOISE, on_step=seen)
    assert [step for step, _ in seen] == [2, 3, 4, 2, 3, 4, 5, 6, 7, 5, 6, 7]
    first, again = (x for step, x in seen if step == 2)
    assert not torch.allclose(first, again)
    # noised back to where the stretch began: as much noise there as before
    known = again[KNOWN] - (1 - 0.75) * PICTURE.expand_as(again)[KNOWN]
    assert float(known.std()) == pytest.approx(0.75, rel=0.35)


def test_the_same_picture_again_with_further_passes_and_fresh_noise() -> None:
    route = AroundKnown(latents=PICTURE, free=FREE, num_passes=2, stretch=2)
    a, b = (route(DDIM(eta=1.0), Gaussian(Cosine()), Cosine(), TIMES, noise=NOISE) for _ in range(2))
    assert torch.equal(a, b)


def test_pixels_that_stay_are_copied() -> None:
    pixels, decoded = torch.zeros(1, 3, 4, 4), torch.ones(2, 3, 4, 4)
    free_pixels = torch.tensor([0.0, 0.25, 1.0, 1.0]).expand(1, 1, 4, 4)
    route = AroundKnown(latents=PICTURE, free=FREE, pixels=pixels, free_pixels=free_pixels)
    assert route.finish(decoded)[0, 0, 0].tolist() == [0.0, 0.25, 1.0, 1.0]
    assert AroundKnown(latents=PICTURE, free=FREE).finish(decoded).equal(decoded)


def test_impossible_routes_are_refused() -> None:
    with pytest.raises(ValueError, match="strength=0"):
        FromPicture(latents=PICTURE, strength=0.0)
    with pytest.raises(ValueError, match=r"strength=1\.5"):
        AroundKnown(latents=PICTURE, free=FREE, strength=1.5)
    with pytest.raises(ValueError, match="num_passes=0"):
        AroundKnown(latents=PICTURE, free=FREE, num_passes=0)
    with pytest.raises(ValueError, match=r"mask covers \(3, 4\) latents, the picture has \(4, 4\)"):
        AroundKnown(latents=PICTURE, free=FREE[:, :, 1:])
