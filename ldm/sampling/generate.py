"""From prompts and seeds to pictures: encoder, guidance, sampler and codec, joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.diffusion.diffusion import Diffusion
from ldm.interfaces import Conditioning, Guidance, LatentCodec, Network, Sampler, TextEncoder
from ldm.sampling.grids import Grid
from ldm.sampling.noise import ImageNoise


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Everything that makes a picture of a prompt and a seed.

    A prompt and a seed give the same picture whatever else is asked for with them, bit for bit on one machine:
    noise comes from each picture's own seed, and networks only ever see full batches of ``batch_size`` (the last
    is filled up with repeats), because matrix kernels may round differently for other shapes.

    Args:
        diffusion: The object the network was trained with.
        network: The denoising network.
        text_encoder: Captions -> Conditioning, on the device where pictures are made.
        codec: Latents -> pictures.
        sampler: Walks from noise to latents.
        grid: Where it stops on the way.
        guidance: How much the prompt counts.
        num_steps: Number of stops.
    """

    diffusion: Diffusion
    network: Network
    text_encoder: TextEncoder
    codec: LatentCodec
    sampler: Sampler
    grid: Grid
    guidance: Guidance
    num_steps: int

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        latent_size: tuple[int, int],
        batch_size: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> Tensor:
        """prompts and seeds, one of each per picture -> (N, 3, fH, fW) uint8 on the CPU.

        Args:
            prompts: Captions, N; the empty one asks for any picture.
            seeds: Integers, N.
            latent_size: (H, W).
            batch_size: Pictures made at once: memory against speed.
            on_batch: Called with the number of pictures done, after each batch.

        Raises:
            ValueError: No prompts, or another number of seeds than of prompts, or an empty batch or latent.
        """
        if not prompts or len(prompts) != len(seeds):
            raise ValueError(
                f"got {len(prompts)} prompts and {len(seeds)} seeds; needed is one seed per prompt"
            )
        if batch_size < 1 or min(latent_size) < 1:
            raise ValueError(f"batch_size={batch_size} and latent_size={latent_size} must be positive")
        times = self.grid(self.diffusion.schedule, self.num_steps, t_range=self.diffusion.t_range)
        pictures = []
        with torch.no_grad(), _in_evaluation_mode(self.network, self.text_encoder, self.codec):
            nothing = self.text_encoder([""] * batch_size)
            for first in range(0, len(prompts), batch_size):
                rows = [min(first + row, len(prompts) - 1) for row in range(batch_size)]
                cond = self.text_encoder([prompts[row] for row in rows])
                made = self._batch(cond, nothing, [seeds[row] for row in rows], times, latent_size)
                pictures.append(made[: len(prompts) - first])
                if on_batch is not None:
                    on_batch(min(first + batch_size, len(prompts)))
        return torch.cat(pictures)

    def _batch(
        self,
        cond: Conditioning,
        nothing: Conditioning,
        seeds: Sequence[int],
        times: Tensor,
        latent_size: tuple[int, int],
    ) -> Tensor:
        """One full batch: (batch_size, 3, fH, fW) uint8."""
        schedule = self.diffusion.schedule
        shape = (self.codec.channels, *latent_size)
        noise = ImageNoise(seeds=seeds, shape=shape, device=cond.tokens.device)
        x = noise.start() * float(schedule.sigma(times[0]))  # (B, C, H, W) of pure noise
        denoise = self.guidance(self.diffusion, self.network, cond, nothing)
        x = self.sampler(denoise, schedule, x, times, noise=noise)
        return to_uint8(self.codec.decode(x))


def to_uint8(images: Tensor) -> Tensor:
    """Pictures around [-1, 1] -> uint8 on the CPU, clipped and rounded; same shape."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


@contextmanager
def _in_evaluation_mode(*parts: object) -> Iterator[None]:
    """Dropout off in every module among ``parts``, and afterwards each submodule as it was."""
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    was_training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, was_training, strict=True):
            module.training = training
