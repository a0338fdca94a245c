from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.sampling.modes import ImageToImage, Inpaint, Interpolate, Mode, Text, Variations
from ldm.sampling.recipe import part_to_plain, plain_to_part
from ldm.sampling.request import Blend, Prompt, Request
from ldm.sampling.routes import AroundKnown, FromNoise, FromPicture

RED, BLUE, OWN = (
    Prompt(text="red"),
    Prompt(text="blue", negative="red", scale=4.0),
    Prompt(text="own", seed=7),
)
MODES: list[Mode] = [
    Text(),
    ImageToImage(image="a.png", strength=0.4),
    Inpaint(image="a.png", mask="m.png", num_passes=2),
    Variations(seed=3),
    Interpolate(num_frames=5),
]


class Codec:
    """Latents are 2x2 means."""

    channels, downsample, content_hash = 3, 2, ""

    def moments(self, images: Tensor) -> Tensor:
        mean = torch.nn.functional.avg_pool2d(images, 2)
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        assert noise is None  # the posterior's mean: the same latents each time
        return moments.chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        raise AssertionError("not needed")


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
def test_modes_survive_a_recipe(mode: Mode) -> None:
    assert plain_to_part(part_to_plain(mode)) == mode


@pytest.mark.parametrize("mode", MODES[:3], ids=lambda mode: type(mode).__name__)
def test_every_prompt_from_every_seed_or_its_own(mode: Mode) -> None:
    assert mode.requests([RED, BLUE, OWN], [1, 2]) == [
        Request(prompt="red", seed=1),
        Request(prompt="red", seed=2),
        Request(prompt="blue", seed=1, negative="red", scale=4.0),
        Request(prompt="blue", seed=2, negative="red", scale=4.0),
        Request(prompt="own", seed=7),
    ]


def test_variations_turn_one_noise_in_a_direction_per_seed() -> None:
    requests = Variations(seed=3, amount=0.2).requests([RED], [0, 1, 3])
    assert {(r.prompt, r.seed) for r in requests} == {("red", 3)}
    blends = [r.blend for r in requests]
    assert all(blend is not None and blend.fraction == 0.2 and blend.prompt == "red" for blend in blends)
    others = [blend.seed for blend in blends if blend]
    assert len({*others, 3}) == 4  # also the variation by the picture's own seed is one
    assert requests == Variations(seed=3, amount=0.2).requests([RED], [0, 1, 3])


def frames(prompts: list[Prompt], seeds: list[int], num_frames: int = 5) -> list[tuple[Any, ...]]:
    requests = Interpolate(num_frames=num_frames).requests(prompts, seeds)
    return [(r.prompt, r.seed, r.blend.prompt, r.blend.seed, r.blend.fraction) for r in requests if r.blend]


def test_interpolation_of_prompts_of_noises_and_of_both() -> None:
    assert frames([RED, OWN], [0], 3) == [
        ("red", 0, "own", 0, 0.0),
        ("red", 0, "own", 0, 0.5),
        ("red", 0, "own", 0, 1.0),
    ]
    assert frames([RED], [0, 1], 3)[1] == ("red", 0, "red", 1, 0.5)
    assert frames([RED, OWN], [0, 1], 3)[1] == ("red", 0, "own", 1, 0.5)


def test_interpolation_leads_through_every_stop() -> None:
    way = frames([RED], [5, 6, 7], 5)
    assert [(a, b, f) for _, a, _, b, f in way] == [(5, 6, 0), (5, 6, 0.5), (6, 7, 0), (6, 7, 0.5), (6, 7, 1)]


def test_prompts_with_seeds_of_their_own_are_stops_with_them() -> None:
    own = [Prompt(text="a", seed=4), Prompt(text="b", seed=9)]
    assert frames(own, [0], 2) == [("a", 4, "b", 9, 0.0), ("a", 4, "b", 9, 1.0)]


@pytest.mark.parametrize(
    ("prompts", "seeds"), [([RED], [0]), ([RED, OWN, RED], [0, 1]), ([RED, OWN], [0, 1, 2])]
)
def test_interpolation_without_a_way_is_refused(prompts: list[Prompt], seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=f"got {len(prompts)} and {len(seeds)}"):
        Interpolate().requests(prompts, seeds)


def test_interpolation_has_one_guidance() -> None:
    with pytest.raises(ValueError, match="must be one"):
        Interpolate().requests([RED, BLUE], [0])


def test_routes_of_the_modes() -> None:
    image = torch.rand(1, 3, 4, 6) * 2 - 1
    mask = torch.zeros(1, 1, 4, 6)
    mask[0, 0, 0, 1], mask[0, 0, 3, 4] = 1.0, 0.5
    for mode in (Text(), Variations(seed=0), Interpolate()):
        assert mode.files() == {} and mode.route(Codec(), {}) == FromNoise()

    change = ImageToImage(image="a.png", strength=0.4)
    assert change.files() == {"image": "a.png"}
    route = change.route(Codec(), {"image": image})
    assert isinstance(route, FromPicture) and route.strength == 0.4 and route.latents.shape == (1, 3, 2, 3)

    paint = Inpaint(image="a.png", mask="m.png")
    assert paint.files() == {"image": "a.png", "mask": "m.png"}
    around = paint.route(Codec(), {"image": image, "mask": mask})
    assert isinstance(around, AroundKnown)
    # a latent is as free as its freest pixel
    assert around.free[0, 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.5]]
    assert around.pixels is image and around.free_pixels is mask
    bare = Inpaint(image="a.png", mask="m.png", paste=False).route(Codec(), {"image": image, "mask": mask})
    assert isinstance(bare, AroundKnown) and bare.pixels is None


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ImageToImage, {"image": "a", "strength": 0.0}, "strength=0.0"),
        (ImageToImage, {"image": "a", "strength": 1.2}, "strength=1.2"),
        (Inpaint, {"image": "a", "mask": "m", "strength": -1.0}, "strength=-1.0"),
        (Inpaint, {"image": "a", "mask": "m", "stretch": 0}, "stretch=0"),
        (Variations, {"seed": 0, "amount": 0.0}, r"mode\.amount=0\.0"),
        (Interpolate, {"num_frames": 1}, r"mode\.num_frames=1"),
        (Blend, {"prompt": "", "seed": 0, "fraction": 1.5}, "1.5"),
    ],
)
def test_impossible_values_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)
