"""What ``sample.py`` can be asked for: from prompts and seeds to requests, and from input pictures to a route.

A mode is plain data, so a picture's recipe can hold it; the pictures it names are read by whoever makes the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm import randomness
from ldm.interfaces import LatentCodec
from ldm.sampling.editing import check_strength
from ldm.sampling.request import Blend, Prompt, Request
from ldm.sampling.routes import AroundKnown, FromNoise, FromPicture, Route


class Mode(Protocol):
    """One way to make pictures."""

    def files(self) -> dict[str, str]:
        """The picture files it needs, by what they are: "image", "mask"."""
        ...

    def requests(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Request]:
        """The pictures asked for, row by row of the sheet they are shown in."""
        ...

    def route(self, codec: LatentCodec, pictures: Mapping[str, Tensor]) -> Route:
        """The route; of ``files`` "image" is (1, 3, fH, fW) in [-1, 1] and "mask" (1, 1, fH, fW) in [0, 1]."""
        ...


@dataclass(frozen=True)
class Text:
    """Pictures of prompts, from noise: every prompt from every seed."""

    def files(self) -> dict[str, str]:
        return {}

    def requests(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Request]:
        return every_seed(prompts, seeds)

    def route(self, codec: LatentCodec, pictures: Mapping[str, Tensor]) -> Route:
        return FromNoise()


@dataclass(frozen=True, kw_only=True)
class ImageToImage:
    """A picture, changed towards each prompt.

    Args:
        image: The picture's file.
        strength: How much is changed, in (0, 1]: the time to which the picture is noised. At 1 nothing is left of it.
    """

    image: str
    strength: float = 0.6

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def files(self) -> dict[str, str]:
        return {"image": self.image}

    def requests(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Request]:
        return every_seed(prompts, seeds)

    def route(self, codec: LatentCodec, pictures: Mapping[str, Tensor]) -> Route:
        return FromPicture(latents=encoded(codec, pictures["image"]), strength=self.strength)


@dataclass(frozen=True, kw_only=True)
class Inpaint:
    """A part of a picture, painted anew after each prompt; the rest stays.

    Args:
        image: The picture's file.
        mask: A picture of the same size: white is painted anew, black stays, grey is mixed.
        strength: Below 1 something of what stood under the mask shines through, in (0, 1].
        num_passes: How often each stretch of the way is walked; more fits the parts together better and costs as much
            more (RePaint's resampling).
        stretch: Steps of such a stretch.
        paste: Copy the pixels that stay from the picture, rather than as the autoencoder gives them back.
    """

    image: str
    mask: str
    strength: float = 1.0
    num_passes: int = 1
    stretch: int = 5
    paste: bool = True

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.num_passes < 1 or self.stretch < 1:
            raise ValueError(
                f"num_passes={self.num_passes} and stretch={self.stretch} must both be at least 1"
            )

    def files(self) -> dict[str, str]:
        return {"image": self.image, "mask": self.mask}

    def requests(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Request]:
        return every_seed(prompts, seeds)

    def route(self, codec: LatentCodec, pictures: Mapping[str, Tensor]) -> Route:
        image, mask = pictures["image"], pictures["mask"]
        return AroundKnown(
            latents=encoded(codec, image),
            # as free as its freest pixel: else what was to go shines through at the mask's edge
            free=max_pool2d(mask, codec.downsample),  # (1, 1, H, W)
            strength=self.strength,
            num_passes=self.num_passes,
            stretch=self.stretch,
            pixels=image if self.paste else None,
            free_pixels=mask if self.paste else None,
        )


@dataclass(frozen=True, kw_only=True)
class Variations:
    """Pictures like one that is there: its noise, turned a little in another direction for each seed.

    Args:
        seed: Of the picture to vary; give its prompt, sampler and guidance as they were.
        amount: How far, in (0, 1]; at 1 nothing is left of its noise.
    """

    seed: int
    amount: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.amount <= 1:
            raise ValueError(f"mode.amount={self.amount} must lie in (0, 1]")

    def files(self) -> dict[str, str]:
        return {}

    def requests(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Request]:
        def varied(prompt: Prompt, seed: int) -> Request:
            # an address of its own: the variation of seed 0 by seed 0 is one as well
            other = randomness.address(self.seed, "variation", seed)
            return Request(
                prompt=prompt.text,
                seed=self.seed,
                negative=prompt.negative,
                scale=prompt.scale,
                blend=Blend(prompt=prompt.text, seed=other, fraction=self.amount),
            )

        return [varied(prompt, seed) for prompt in prompts for seed in own_or(prompt, seeds)]

    def route(self, codec: LatentCodec, pictures: Mapping[str, Tensor]) -> Route:
        return FromNoise()


@dataclass(frozen=True, kw_only=True)
class Interpolate:
    """The way from one picture to the next: prompts mixed in a straight line, noise on the sphere.

    One prompt and several seeds move the noise alone, several prompts and one seed the prompt alone, as many of both
    move both.

    Args:
        num_frames: Pictures on the whole way, both ends included.
    """

    num_frames: int = 8

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise ValueError(f"mode.num_frames={self.num_frames} must be at least 2: the two ends")

    def files(self) -> dict[str, str]:
        return {}

    def requests(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Request]:
        stops = _stops(prompts, seeds)
        if len({(prompt.negative, prompt.scale) for prompt, _ in stops}) > 1:
            raise ValueError(
                "mode=interpolate moves prompts and seeds: the negative prompt and the guidance must be one"
            )
        requests = []
        for frame in range(self.num_frames):
            place = frame * (len(stops) - 1) / (self.num_frames - 1)
            before = min(int(place), len(stops) - 2)
            (prompt, seed), (to_prompt, to_seed) = stops[before : before + 2]
            blend = Blend(prompt=to_prompt.text, seed=to_seed, fraction=place - before)
            requests.append(
                Request(
                    prompt=prompt.text, seed=seed, negative=prompt.negative, scale=prompt.scale, blend=blend
                )
            )
        return requests

    def route(self, codec: LatentCodec, pictures: Mapping[str, Tensor]) -> Route:
        return FromNoise()


def every_seed(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Request]:
    """Every prompt from every seed, or from its own."""
    return [
        Request(prompt=prompt.text, seed=seed, negative=prompt.negative, scale=prompt.scale)
        for prompt in prompts
        for seed in own_or(prompt, seeds)
    ]


def own_or(prompt: Prompt, seeds: Sequence[int]) -> Sequence[int]:
    return seeds if prompt.seed is None else [prompt.seed]


def encoded(codec: LatentCodec, image: Tensor) -> Tensor:
    """image (1, 3, fH, fW) in [-1, 1] -> latents (1, C, H, W), the posterior's mean."""
    return codec.latents(codec.moments(image), noise=None)


def _stops(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[tuple[Prompt, int]]:
    """The pictures that the way leads through."""
    own = [prompt.seed for prompt in prompts]
    if None not in own and len(own) > 1:
        seeds = [seed for seed in own if seed is not None]
    num = max(len(prompts), len(seeds))
    if num < 2 or not {len(prompts), len(seeds)} <= {1, num}:
        raise ValueError(
            f"mode=interpolate leads from picture to picture: give two or more prompts, two or more seeds, or as many "
            f"of both, got {len(prompts)} and {len(seeds)}"
        )
    every_prompt = list(prompts) * (num // len(prompts))
    every = list(seeds) * (num // len(seeds))
    return list(zip(every_prompt, every, strict=True))
