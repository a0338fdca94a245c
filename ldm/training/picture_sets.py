"""The sets of pictures that are scored: of the data, made by a run, put through an autoencoder. See ``Pictures``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldm.data.bad_samples import Ledger
from ldm.data.latents import RESAMPLING
from ldm.data.loading import Reader
from ldm.data.order import Request
from ldm.data.pipeline import ShardDataset, pieces_of
from ldm.evaluation.looking import Pictures
from ldm.evaluation.subject import Prompt
from ldm.interfaces import LatentCodec
from ldm.randomness import generator
from ldm.sampling.generate import Generation, to_uint8


@dataclass(frozen=True)
class Reference:
    """Pictures of a data set as they are measured: center crop, not mirrored.

    Args:
        dataset: Where they come from.
        rows: Which of them, in order.
        title: What the set is called.
        batch_size: Pictures at a time.
        num_workers: Processes that decode.
    """

    dataset: ShardDataset
    rows: tuple[int, ...]
    title: str
    batch_size: int
    num_workers: int = 0

    @cached_property
    def _pieces(self) -> list[list[int]]:
        """Samples batch by batch, each batch of one size."""
        wanted = set(self.rows)
        whole = pieces_of(self.dataset.assignment, batch_size=len(self.dataset))
        kept = [[i for i in piece if i in wanted] for piece in whole]
        size = self.batch_size
        return [piece[at : at + size] for piece in kept for at in range(0, len(piece), size)]

    @property
    def sizes(self) -> list[int]:
        return [len(piece) for piece in self._pieces]

    @cached_property
    def keys(self) -> list[str]:
        return [self.dataset.index.key(i) for piece in self._pieces for i in piece]

    @cached_property
    def content_hash(self) -> str:
        preparation = self.dataset.preparation
        return hash_of(
            {
                "shards": self.dataset.index.fingerprint,
                "buckets": self.dataset.assignment.fingerprint,
                "rows": None if len(self.rows) == len(self.dataset) else list(self.rows),
                "image_size": preparation.image_size,
                "background": preparation.background,
                "decode_margin": preparation.decode_margin,
                "resampling": RESAMPLING,
            }
        )

    def batches(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        requests = [[Request(i, 0) for i in self._pieces[number]] for number in numbers]
        reader = Reader(self.dataset, requests, ledger=Ledger(), num_workers=self.num_workers)
        for stacked in reader:
            yield stacked.images.contiguous()


def spread(num: int, among: int) -> tuple[int, ...]:
    """``num`` of ``among`` rows, drawn once for all time, in order; all of them where there are not more."""
    if num >= among:
        return tuple(range(among))
    drawn = torch.randperm(among, generator=generator("evaluation", "rows", among))[:num]
    return tuple(sorted(drawn.tolist()))


@dataclass(frozen=True)
class Made:
    """Pictures that a run makes of prompts, each from its own noise.

    Args:
        generation: What makes them.
        prompts: One for each.
        latent_size: (H, W).
        batch_size: Pictures at a time.
        made_by: All that they depend on besides the prompts, as plain data.
    """

    generation: Generation
    prompts: tuple[Prompt, ...]
    latent_size: tuple[int, int]
    batch_size: int
    made_by: Mapping[str, Any]
    title: str = "samples"

    @property
    def sizes(self) -> list[int]:
        num = len(self.prompts)
        return [min(self.batch_size, num - first) for first in range(0, num, self.batch_size)]

    @property
    def keys(self) -> list[str]:
        return [f"sample {i}, noise {prompt.seed}" for i, prompt in enumerate(self.prompts)]

    @property
    def captions(self) -> list[str]:
        return [prompt.text for prompt in self.prompts]

    @cached_property
    def prompts_hash(self) -> str:
        return hash_of(self.captions)

    @cached_property
    def content_hash(self) -> str:
        seeds = [prompt.seed for prompt in self.prompts]
        # Kernels may round differently for other batches: see ``Generation``.
        return hash_of([dict(self.made_by), self.captions, seeds, self.batch_size])

    def batches(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        for number in numbers:
            rows = self.prompts[number * self.batch_size : (number + 1) * self.batch_size]
            yield self.generation.images(
                [row.text for row in rows],
                [row.seed for row in rows],
                latent_size=self.latent_size,
                batch_size=self.batch_size,
            )


@dataclass(frozen=True)
class Reconstructed:
    """Pictures through the mean of an autoencoder's posterior and back.

    Args:
        originals: The pictures.
        codec: The autoencoder, on its device.
        device: That device.
        beside: Each with its original before it, in six channels.
    """

    originals: Pictures
    codec: LatentCodec
    device: torch.device
    beside: bool = False

    @property
    def title(self) -> str:
        return f"reconstructions of {self.originals.title}"

    @property
    def sizes(self) -> Sequence[int]:
        return self.originals.sizes

    @property
    def keys(self) -> Sequence[str]:
        return self.originals.keys

    @property
    def content_hash(self) -> str:
        return hash_of([self.originals.content_hash, self.codec.content_hash, self.beside])

    @torch.no_grad()
    def batches(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        for images in self.originals.batches(numbers):
            moments = self.codec.moments(images.to(self.device).float() / 127.5 - 1)
            made = to_uint8(self.codec.decode(self.codec.latents(moments, noise=None)))
            yield torch.cat([images, made], dim=1) if self.beside else made


def hash_of(plain: Any) -> str:
    """SHA-256 of plain data, 64 hex digits."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
