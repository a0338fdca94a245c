"""A small data set with everything that a cache must keep, and a codec and an encoder to make it with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.buckets import Buckets
from ldm.data.pipeline import ShardDataset
from ldm.data.shards import ShardWriter
from ldm.interfaces import Conditioning

SHAPES = ((8, 8), (8, 8), (6, 11), (11, 6), (9, 9))
BUCKETS = Buckets(image_size=8, multiple_of=2, slack=0.25)


class Halves:
    """A codec of one line: moments are the pictures at half size, and twice that."""

    channels, downsample, content_hash = 3, 2, "ab" * 32

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.left = stop_after
        self.num_encoded = 0

    def moments(self, images: Tensor) -> Tensor:
        if self.left is not None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        self.num_encoded += len(images)
        small = torch.nn.functional.avg_pool2d(images, 2)
        return torch.cat([small, 2 * small], dim=1)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        return moments[:, :3]

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Letters:
    """A "pretrained" encoder: a caption's letters are its tokens."""

    width, pooled_width, length = 4, 2, 12
    content_hash = "ef" * 32

    def __init__(self) -> None:
        self.contract = {"encoder": "Letters", "length": 12}
        self.encoded: list[str] = []

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        self.encoded += captions
        ids = torch.zeros(len(captions), self.length, dtype=torch.int64)
        for row, caption in enumerate(captions):
            letters = [0, *caption.encode()][: self.length]
            ids[row, : len(letters)] = torch.tensor(letters)
        mask = torch.arange(self.length) < torch.tensor([[1 + len(text.encode())] for text in captions])
        tokens = torch.stack([(ids * k).remainder(17) / 8 for k in (1, 3, 5, 7)], dim=-1)  # (B, L, 4)
        return Conditioning(tokens=tokens, mask=mask, pooled=tokens[:, :, :2].sum(1) / 4)


def write_shards(folder: Path, num: int = 23, *, broken: int | None = None, first: int = 0) -> Path:
    """Pictures of several shapes with one, two or three captions; every fifth has none in ``captions``."""
    random = np.random.default_rng(0)
    with ShardWriter(folder, samples_per_shard=10) as writer:
        for i in range(first, first + num):
            out = io.BytesIO()
            height, width = SHAPES[i % len(SHAPES)]
            Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "PNG")
            picture = b"broken" if i == broken else out.getvalue()
            said = (
                {"captions": [f"a{i}", f"b{i}"][: i % 3 or 2], "other": f"c{i}"}
                if i % 5
                else {"other": f"c{i}"}
            )
            writer.write(picture, "png", f"sample {i}", said)
    return folder


def dataset(folder: Path, **options: Any) -> ShardDataset:
    usual = {"image_size": 8, "caption_field": {"captions": 2.0, "txt": 1.0}, "buckets": BUCKETS}
    return ShardDataset(shards=str(folder), **(usual | options))
