"""The recipe of a picture: all that is needed to make it again, kept in the PNG file itself."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.sampling.request import Blend, Request

TEXT_KEY = "ldm"  # of the PNG's tEXt chunk


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One picture's recipe, plain data only. What has a default came later than the first recipes.

    ``row`` is the picture's place in its batch: with the same batch size and the same row every kernel does the same
    sums in the same order.
    """

    prompt: str
    seed: int
    num_steps: int
    sampler: dict[str, Any]  # parts as in a config: {"_target_": ..., field: value}
    grid: dict[str, Any]
    guidance: dict[str, Any]
    latent_size: tuple[int, int]  # (H, W)
    batch_size: int
    row: int
    run: str
    checkpoint: str
    checkpoint_hash: str  # sha256 of the checkpoint file
    codec_hash: str
    weights: str  # "ema" or "online"
    device: str
    versions: dict[str, str]
    negative: str = ""
    scale: float | None = None  # the prompt's own guidance scale, in place of the guidance's
    blend: dict[str, Any] | None = None  # the fields of a ``Blend``
    original_size: tuple[int, int] | None = None  # what a network with size conditioning was told
    crop: tuple[int, int] = (0, 0)
    mode: dict[str, Any] = field(default_factory=lambda: {"_target_": "ldm.sampling.modes.Text"})
    inputs: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # what for -> path and sha256 of a file it needs

    def request(self) -> Request:
        """What the picture was asked for with."""
        blend = None if self.blend is None else Blend(**self.blend)
        return Request(
            prompt=self.prompt,
            seed=self.seed,
            negative=self.negative,
            scale=self.scale,
            blend=blend,
            original_size=self.original_size,
            crop=self.crop,
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=True)

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Raises ValueError for text that is no recipe, or one of another version."""
        try:
            plain = json.loads(text)
            recipe = Recipe(**plain)
            recipe = dataclasses.replace(
                recipe,
                latent_size=_pair(recipe.latent_size),
                original_size=None if recipe.original_size is None else _pair(recipe.original_size),
                crop=_pair(recipe.crop),
            )
            recipe.request()
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a recipe this version understands ({error})") from error
        return recipe


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """As json gives it back -> as it was."""
    first, second = values
    return int(first), int(second)


def part_to_plain(part: Any) -> dict[str, Any]:
    """A sampler, grid, guidance or mode -> ``{"_target_": ..., field: value}``, as a config writes it."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        raise TypeError(
            f"{part!r} cannot be written into a recipe: make it a frozen dataclass of plain values"
        )
    kind = type(part)
    values = json.loads(json.dumps(dataclasses.asdict(part)))  # as they will be read back: tuples are lists
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **values}


def plain_to_part(plain: dict[str, Any]) -> Any:
    """The reverse. Only dataclasses of ``ldm.sampling`` are built: a picture must not be able to run other code.

    Raises:
        ValueError: Any other target, or values that do not fit it.
    """
    values = dict(plain)
    target = str(values.pop("_target_", ""))
    module_name, _, name = target.rpartition(".")
    kind: Any = None
    if module_name.startswith("ldm.sampling."):
        try:
            kind = getattr(importlib.import_module(module_name), name, None)
        except ModuleNotFoundError:
            kind = None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module_name):
        raise ValueError(
            f"a recipe may only name samplers, grids, guidances and modes of ldm.sampling, not {target!r}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"the recipe does not fit {target}: {error}") from error


def write_png(path: Path, picture: Tensor, recipe: Recipe) -> None:
    """picture (3, H, W) uint8 -> a PNG file with its recipe inside; the same file for the same picture and recipe."""
    info = PngInfo()
    info.add_text(TEXT_KEY, recipe.to_json())
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(path, pnginfo=info)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe inside a PNG.

    Raises:
        ValueError: The file is no picture, or carries no recipe.
    """
    try:
        with Image.open(path) as picture:
            picture.load()  # the chunk may stand behind the pixels
            text = getattr(picture, "text", {}).get(TEXT_KEY)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture") from error
    if text is None:
        raise ValueError(
            f"{path} carries no recipe: only PNGs that sample.py wrote do (and no copies that dropped it)"
        )
    try:
        return Recipe.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
