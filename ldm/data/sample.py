"""One sample's members -> what a batch is stacked from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.data.decode import colour, decode
from ldm.data.transforms import chance, mirror, pick, square, to_bytes, to_floats
from ldm.interfaces import Batch

CROPS = ("center", "random")


class Item(NamedTuple):
    """One sample, ready to be stacked."""

    image: Tensor  # (3, S, S) uint8
    caption: str
    key: str
    visit: int


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to every sample; each random choice is tied to (seed, its purpose, key, visit).

    Args:
        image_size: side of the square that comes out, in pixels.
        caption_field: "txt", or the json's field that holds a caption or several; of several, one is drawn for
            each visit.
        flip: mirror every other visit. Wrong where captions speak of left and right.
        crop: "center", or "random" along the longer side.
        seed: of the choices.
        background: what transparent parts of a picture show.

    Raises:
        ValueError: an option that is none.
    """

    image_size: int
    caption_field: str = "txt"
    flip: bool = False
    crop: str = "center"
    seed: int = 0
    background: str = "white"

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"crop is '{self.crop}'; it may be one of {', '.join(CROPS)}")
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it is a side in pixels, 1 or more")
        colour(self.background)

    @property
    def caption_part(self) -> str:
        """The member that captions come from, "txt" or "json"."""
        return "txt" if self.caption_field == "txt" else "json"

    def item(self, picture: bytes, texts: bytes, *, key: str, visit: int) -> Item:
        """Prepare one sample.

        Args:
            picture: encoded.
            texts: the member named by ``caption_part``.
            key: the sample's name over all shards.
            visit: how often it was taken before.

        Raises:
            UnreadablePicture: the picture is damaged.
            ValueError: there is no caption in the field.
        """
        rgb = decode(picture, background=colour(self.background))
        along = 0.5 if self.crop == "center" else chance(self.seed, "crop", key, visit)
        rgb = square(rgb, self.image_size, along=along)
        if self.flip and chance(self.seed, "flip", key, visit) < 0.5:
            rgb = mirror(rgb)
        return Item(to_bytes(rgb), self.caption(texts, key=key, visit=visit), key, visit)

    def caption(self, texts: bytes, *, key: str, visit: int) -> str:
        """The caption of this visit; see ``item``."""
        if self.caption_part == "txt":
            return plain(texts)
        return pick(field(captions_in(texts), self.caption_field, key), seed=self.seed, key=key, visit=visit)


def plain(txt: bytes) -> str:
    """A caption file's text; what is not UTF-8 in it becomes replacement signs."""
    return txt.decode("utf-8", "replace").strip()


def captions_in(meta: bytes) -> dict[str, list[str]]:
    """Every field of a sample's json that holds a text or a list of texts."""
    try:
        fields = json.loads(meta)
    except ValueError:
        return {}
    lists = {name: [value] if isinstance(value, str) else value for name, value in dict(fields).items()}
    return {
        name: texts
        for name, texts in lists.items()
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
    }


def field(captions: dict[str, list[str]], name: str, key: str) -> list[str]:
    """The captions under one field's name.

    Raises:
        ValueError: the sample has no such field; the message says which ones it has.
    """
    if name not in captions:
        raise ValueError(
            f"sample {key} has no captions in '{name}', only in {', '.join(captions) or 'none'}; "
            f"set caption_field to a field that all samples have"
        )
    return captions[name]


class Stacked(NamedTuple):
    """What travels from a worker to the main process: bytes, a quarter of what floats would be."""

    images: Tensor  # (B, 3, S, S) uint8
    captions: list[str]
    keys: list[str]
    visits: list[int]

    def batch(self, *, slots: range, num_slots: int) -> Batch:
        """As floats, with the samples' places in the step's global batch."""
        return Batch(
            captions=self.captions,
            images=to_floats(self.images),
            moments=None,
            keys=self.keys,
            visits=self.visits,
            slots=slots,
            num_slots=num_slots,
        )


def stack(items: Sequence[Item]) -> Stacked:
    """Collate, without changing a value."""
    images, captions, keys, visits = zip(*items, strict=True)
    return Stacked(torch.stack(images), list(captions), list(keys), list(visits))
