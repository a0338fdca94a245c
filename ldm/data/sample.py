"""One sample's members -> what a batch is stacked from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.data.captions import AS_WRITTEN, CaptionRecipe, as_fields, chance, number_of, texts_of
from ldm.data.decode import colour
from ldm.data.memory import Memory
from ldm.data.pixels import decode_pixels
from ldm.data.transforms import Cut, Size, fit, mirror, to_bytes, to_floats
from ldm.interfaces import Batch

CROPS = ("center", "random")


class MissingCaption(ValueError):
    """A sample has no caption where captions are taken from."""


class Item(NamedTuple):
    """One sample, ready to be stacked."""

    image: Tensor  # (3, height, width) uint8
    caption: str
    sizes: tuple[int, ...]  # original height and width, crop top and left, target height and width
    key: str
    visit: int


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to every sample; each random choice is tied to (seed, its purpose, key, visit).

    Args:
        image_size: side of the square that comes out, in pixels, where ``item`` is not told another size.
        caption_field: "txt", or the json's field that holds a caption or several; or a mapping with several fields
            and how often each is drawn: {txt: 0.2, captions: 0.8}.
        captions: what is done to captions, and what if there is none.
        flip: mirror every other visit. Wrong where captions speak of left and right.
        crop: "center", or "random" along the longer side.
        seed: of the choices.
        background: what transparent parts of a picture show.
        decode_margin: JPEGs are decoded at the smallest of their full, half, quarter and eighth size that is at least
            so many times what is shown, and resampled from there. At 1, which is fastest, the result is about a grey
            level from resampling all pixels, at 2 within half a level; docs/data.md has photographs.
        original_size_from: the json's fields with the height and width that a picture had before it was packed, for
            size conditioning; None, or where they are missing, for those of the stored picture.

    Raises:
        ValueError: an option that is none.
    """

    image_size: int
    caption_field: str | Mapping[str, float] = "txt"
    captions: CaptionRecipe = AS_WRITTEN
    flip: bool = False
    crop: str = "center"
    seed: int = 0
    background: str = "white"
    decode_margin: float = 2.0
    original_size_from: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"crop is '{self.crop}'; it may be one of {', '.join(CROPS)}")
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it is a side in pixels, 1 or more")
        if self.decode_margin < 1:
            raise ValueError(f"decode_margin is {self.decode_margin}; it is a factor, 1 or more")
        if self.original_size_from is not None and len(self.original_size_from) != 2:
            raise ValueError("original_size_from names two fields: [original_height, original_width]")
        colour(self.background)
        as_fields(self.caption_field)

    @cached_property
    def fields(self) -> dict[str, float]:
        """Where captions come from, and how often from each."""
        return as_fields(self.caption_field)

    def item(
        self,
        picture: bytes,
        *,
        txt: bytes | None,
        meta: bytes | None,
        key: str,
        visit: int,
        size: Size | None = None,
    ) -> Item:
        """Prepare one sample.

        Args:
            picture: encoded.
            txt: its caption file.
            meta: its json.
            key: the sample's name over all shards.
            visit: how often it was taken before.
            size: what the picture is brought to; None for the square.

        Raises:
            UnreadablePicture: the picture is damaged.
            MissingCaption: there is none, and the policy is not to give it the empty one.
        """
        caption = self.caption(txt, meta, key=key, visit=visit)  # before the costly part
        size = size or (self.image_size, self.image_size)
        pixels = decode_pixels(
            picture, shown=size, margin=self.decode_margin, background=colour(self.background)
        )
        original = self._original_size(meta) or (pixels.height, pixels.width)
        along = 0.5 if self.crop == "center" else chance(self.seed, "crop", key, visit)
        shown, cut = fit(pixels, size, along=along)
        if self.flip and chance(self.seed, "flip", key, visit) < 0.5:
            shown, cut = mirror(shown), cut.mirrored(size[1])
        return Item(to_bytes(shown), caption, micro_conditioning(original, cut, size), key, visit)

    def caption(self, txt: bytes | None, meta: bytes | None, *, key: str, visit: int) -> str:
        """The caption of this visit; see ``item``."""
        texts = texts_of(txt, meta if self._needs_json else None)
        self.check_caption(texts, key)
        return self.captions.draw(texts, self.fields, seed=self.seed, key=key, visit=visit)

    def check_caption(self, texts: Mapping[str, Sequence[str]], key: str) -> None:
        """Raises MissingCaption where the sample has no text in the fields, unless it may be empty."""
        if self.captions.missing != "empty" and not any(texts.get(name) for name in self.fields):
            raise MissingCaption(
                f"sample {key} has no captions in {' or '.join(map(repr, self.fields))}, only in "
                f"{', '.join(sorted(texts)) or 'none'}; set caption_field to fields that samples have, or "
                f"caption_recipe.missing to skip or empty"
            )

    @property
    def caption_part(self) -> str:
        """The member that captions come from, "txt" or "json"."""
        return "json" if self._needs_json else "txt"

    @property
    def _needs_json(self) -> bool:
        return any(name != "txt" for name in self.fields)

    def _original_size(self, meta: bytes | None) -> Size | None:
        if self.original_size_from is None:
            return None
        height, width = (number_of(meta, name) for name in self.original_size_from)
        return None if height is None or width is None else (int(height), int(width))


def micro_conditioning(original: Size, cut: Cut, shown: Size) -> tuple[int, ...]:
    """The six numbers of ``Conditioning.sizes`` (SDXL: 2307.01952, section 2.2).

    The crop counts in pixels of the resized picture, as it is shown: of a mirrored picture, from its left side too.
    """
    return (*original, cut.top, cut.left, *shown)


class Stacked(NamedTuple):
    """What travels from a worker to the main process: bytes, a quarter of what floats would be."""

    images: Tensor  # (B, 3, height, width) uint8
    captions: list[str]
    sizes: Tensor  # (B, 6) float32
    keys: list[str]
    visits: list[int]

    def to(self, device: torch.device | str) -> Stacked:
        """With the pictures there, still as bytes."""
        return self._replace(images=self.images.to(device))

    def batch(self, *, slots: range, num_slots: int, memory: Memory | None = None) -> Batch:
        """As floats, with the samples' places in the step's global batch; in ``memory``, where it is given."""
        out = None
        if memory is not None:
            num, colours, height, width = self.images.shape
            out = memory.empty(num, height, width, colours, dtype=torch.float32).permute(0, 3, 1, 2)
        return Batch(
            captions=self.captions,
            images=to_floats(self.images, out=out),
            moments=None,
            sizes=self.sizes,
            keys=self.keys,
            visits=self.visits,
            slots=slots,
            num_slots=num_slots,
        )


def stack(items: Iterable[Item], num: int, *, memory: Memory) -> Stacked:
    """Collate ``num`` items of one size, without changing a value.

    Each is copied as it comes, while it is in the cache and before the next is made in the same place.
    """
    rest = iter(items)
    first = next(rest)
    colours, height, width = first.image.shape
    # Rows, columns, colours in memory, as decoded: copied in one piece, and never put in another order.
    pixels = memory.empty(num, height, width, colours, dtype=torch.uint8).permute(0, 3, 1, 2)
    captions, sizes, keys, visits = [], [], [], []
    for row, item in zip(pixels, chain([first], rest), strict=True):
        assert item.image.shape == row.shape, (item.key, item.image.shape, row.shape)
        row.copy_(item.image)
        captions.append(item.caption)
        sizes.append(item.sizes)
        keys.append(item.key)
        visits.append(item.visit)
    return Stacked(pixels, captions, torch.tensor(sizes, dtype=torch.float32), keys, visits)
