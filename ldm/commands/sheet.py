"""What pictures are called, and the sheet that shows them together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from torch import Tensor

from ldm.sampling.recipe import Recipe
from ldm.sampling.request import Request
from ldm.training.grids import labelled_grid

PIXELS_PER_CELL = 128  # small pictures are enlarged in the sheet
COLUMNS = 8  # where the requests do not say how many


def write_sheet(path: Path, pictures: Tensor, requests: Sequence[Request]) -> None:
    """All pictures (N, 3, H, W) uint8 with their labels; a row per prompt where each has as many seeds."""
    runs = {
        len(list(group)) for _, group in groupby(requests, lambda request: (request.prompt, request.negative))
    }
    columns = runs.pop() if len(runs) == 1 and runs != {1} and requests[0].blend is None else COLUMNS
    seeds = len({request.seed for request in requests}) > 1
    labels = [label(request, with_seed=seeds) for request in requests]
    labelled_grid(pictures, labels, columns=columns, cell=PIXELS_PER_CELL).save(path)


def label(request: Request, *, with_seed: bool) -> str:
    """A request in few words."""
    words, blend = request.prompt or "any picture", request.blend
    if blend is not None and blend.prompt != request.prompt:
        words += f", {blend.fraction:.0%} towards {blend.prompt or 'any picture'}"
    elif blend is not None:
        words += f", noise turned by {blend.fraction:.0%}"
    if request.negative:
        words += f", not {request.negative}"
    if request.scale is not None:
        words += f", guidance {request.scale:g}"
    return f"{words} (seed {request.seed})" if with_seed else words


def file_name(recipe: Recipe) -> str:
    """Readable, and another one for every other recipe: nothing is overwritten but by the same picture."""
    words = re.sub(r"\W+", "-", recipe.prompt.lower()).strip("-")[:60].strip("-") or "no-prompt"
    return f"{words}-seed{recipe.seed}-{digest(recipe.to_json())}.png"


def digest(*texts: str) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=4).hexdigest()
