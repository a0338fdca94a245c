"""The picture files that editing starts from: read, measured, and known by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.data.decode import UnreadablePicture, decode

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Input:
    """One picture file."""

    path: str  # as it was given
    sha256: str
    picture: Image.Image  # upright RGB; for a mask, transparent parts black

    def record(self) -> dict[str, str]:
        """For a recipe."""
        return {"path": self.path, "sha256": self.sha256}

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """The picture, resized and cropped to ``size`` if it has another: (1, 3, height, width) in [-1, 1]."""
        height, width = size
        picture = self.picture
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
        values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (3, height, width)
        return (values.float() / 127.5 - 1)[None]


def read_inputs(
    files: Mapping[str, str], *, made_with: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Input]:
    """The pictures a mode names, by what they are.

    Args:
        files: What it is ("image", "mask") -> path.
        made_with: What it is -> its record in a recipe; the files must still be the same. None for no such check.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is no picture, is not what it was, or a mask is not as large as its picture.
    """
    found = {what: _read(what, path) for what, path in files.items()}
    for what, one in found.items():
        before = None if made_with is None else made_with.get(what, {}).get("sha256")
        if before is not None and before != one.sha256:
            raise ValueError(
                f"{one.path} has changed since the picture was made (its sha256 was {before[:12]}, now "
                f"{one.sha256[:12]}): bring the former file back"
            )
    image, mask = found.get("image"), found.get("mask")
    if image and mask and image.picture.size != mask.picture.size:
        raise ValueError(
            f"mode.mask: {mask.path} is {_size(mask.picture)} pixels and {image.path} is {_size(image.picture)}: "
            f"a mask must be as large as its picture"
        )
    return found


def tensors(inputs: Mapping[str, Input], size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """The pictures as a mode takes them: (1, 3, height, width) in [-1, 1]; the mask (1, 1, height, width) in [0, 1]."""
    pixels = {what: one.pixels(size).to(device) for what, one in inputs.items()}
    return {what: (x.mean(1, keepdim=True) + 1) / 2 if what == "mask" else x for what, x in pixels.items()}


def input_size(inputs: Mapping[str, Input], unit: int) -> list[int] | None:
    """[height, width] of the picture to edit, or None where there is none.

    Raises:
        ValueError: A side is no multiple of ``unit``.
    """
    if "image" not in inputs:
        return None
    image = inputs["image"]
    width, height = image.picture.size
    if width % unit or height % unit:
        near = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(
            f"mode.image: {image.path} is {_size(image.picture)} pixels, and this run needs multiples of {unit}: give "
            f"image_size=[{near[0]},{near[1]}] (height, width) to have it resized and cropped"
        )
    return [height, width]


def _read(what: str, path: str) -> Input:
    if not Path(path).is_file():
        raise FileNotFoundError(f"mode.{what}: there is no file {path}")
    data = Path(path).read_bytes()
    try:
        picture = decode(data, background=BLACK if what == "mask" else WHITE)
    except UnreadablePicture as error:
        raise ValueError(f"mode.{what}: {path} cannot be read as a picture: {error}") from error
    return Input(path=path, sha256=hashlib.sha256(data).hexdigest(), picture=picture)


def _size(picture: Image.Image) -> str:
    return f"{picture.width}x{picture.height}"


def unit_of(module: Any) -> int:
    """What the sides of a run's pictures must be multiples of: the codec's stride times the network's patch."""
    return int(module.codec.downsample) * int(getattr(module.network, "patch_size", 1))
