"""From prompts and seeds to pictures: encoder, guidance, sampler and codec, joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ldm.diffusion.diffusion import Diffusion
from ldm.interfaces import (
    Conditioning,
    Denoiser,
    Guidance,
    LatentCodec,
    Network,
    Sampler,
    StepCallback,
    TextEncoder,
)
from ldm.sampling.editing import between
from ldm.sampling.grids import Grid
from ldm.sampling.noise import ImageNoise
from ldm.sampling.request import Request
from ldm.sampling.routes import FromNoise, Route


@dataclass(frozen=True, kw_only=True)
class Guide:
    """The weaker model of autoguidance: all that makes a denoiser of a prompt."""

    diffusion: Diffusion
    network: Network
    text_encoder: TextEncoder


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Everything that makes a picture of a prompt and a seed.

    A request gives the same picture whatever else is asked for with it, bit for bit on one machine: noise comes from
    each picture's own seed, and networks only ever see full batches of ``batch_size`` (the last is filled up with
    repeats), because matrix kernels may round differently for other shapes.

    Args:
        diffusion: The object the network was trained with.
        network: The denoising network.
        text_encoder: Captions -> Conditioning, on the device where pictures are made.
        codec: Latents -> pictures.
        sampler: Walks from noise to latents.
        grid: Where it stops on the way.
        guidance: How much the prompt counts.
        num_steps: Number of stops.
        guide: The weaker model, for guidance that needs one.
    """

    diffusion: Diffusion
    network: Network
    text_encoder: TextEncoder
    codec: LatentCodec
    sampler: Sampler
    grid: Grid
    guidance: Guidance
    num_steps: int
    guide: Guide | None = None

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        latent_size: tuple[int, int],
        batch_size: int,
        on_batch: Callable[[int], None] | None = None,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """prompts and seeds, one of each per picture -> (N, 3, fH, fW) uint8 on the CPU; see ``pictures``.

        Raises:
            ValueError: No prompts, or another number of seeds than of prompts, or an empty batch or latent.
        """
        if len(prompts) != len(seeds):
            raise ValueError(
                f"got {len(prompts)} prompts and {len(seeds)} seeds; needed is one seed per prompt"
            )
        requests = [Request(prompt=prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return self.pictures(
            requests, latent_size=latent_size, batch_size=batch_size, on_batch=on_batch, on_step=on_step
        )

    def pictures(
        self,
        requests: Sequence[Request],
        *,
        latent_size: tuple[int, int],
        batch_size: int,
        route: Route | None = None,
        on_batch: Callable[[int], None] | None = None,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """One picture per request: (N, 3, fH, fW) uint8 on the CPU.

        Args:
            requests: N of them. Either all or none should have a scale of their own, so that each can be made again
                alone to the last bit: a scale of 1 for all is computed without the null condition.
            latent_size: (H, W).
            batch_size: Pictures made at once: memory against speed.
            route: How the latents come about; ``FromNoise`` when None.
            on_batch: Called with the number of pictures done, after each batch.
            on_step: Called before each sampling step of each batch.

        Raises:
            ValueError: No requests, or an empty batch or latent.
        """
        if not requests:
            raise ValueError("no pictures are asked for")
        if batch_size < 1 or min(latent_size) < 1:
            raise ValueError(f"batch_size={batch_size} and latent_size={latent_size} must be positive")
        route = route or FromNoise()
        diffusion, times = self.path(latent_size)
        pictures = []
        with torch.no_grad(), _in_evaluation_mode(*self._parts()):
            for first in range(0, len(requests), batch_size):
                rows = [min(first + row, len(requests) - 1) for row in range(batch_size)]
                batch = [requests[row] for row in rows]
                made = self._batch(batch, diffusion, times, latent_size, route, on_step)
                pictures.append(made[: len(requests) - first])
                if on_batch is not None:
                    on_batch(min(first + batch_size, len(requests)))
        return torch.cat(pictures)

    def path(self, latent_size: tuple[int, int]) -> tuple[Diffusion, Tensor]:
        """The diffusion as it is for latents of this size, and the times of its steps, (num_steps + 1,)."""
        diffusion = self.diffusion.for_latents((self.codec.channels, *latent_size))
        return diffusion, self.grid(diffusion.schedule, self.num_steps, t_range=diffusion.t_range)

    def _batch(
        self,
        requests: Sequence[Request],
        diffusion: Diffusion,
        times: Tensor,
        latent_size: tuple[int, int],
        route: Route,
        on_step: StepCallback | None,
    ) -> Tensor:
        """One full batch: (batch_size, 3, fH, fW) uint8."""
        cond = conditioning(self.text_encoder, requests)
        stride = self.codec.downsample
        sizes = [request.sizes(latent_size[0] * stride, latent_size[1] * stride) for request in requests]
        told = torch.tensor(sizes, dtype=torch.float32, device=cond.tokens.device)  # (batch_size, 6)
        cond = replace(cond, sizes=told)
        scales = None
        if any(request.scale is not None for request in requests):
            own = float(getattr(self.guidance, "scale", 1.0))
            scales = [own if request.scale is None else request.scale for request in requests]
        uncond = None
        if self.guidance.needs_uncond or scales is not None:
            # Also without a prompt a picture has its size: the null condition is told the same.
            negatives = encode(self.text_encoder, [request.negative for request in requests])
            uncond = replace(negatives, sizes=told)
        weaker = self._weaker(requests, told, latent_size)
        denoise = self.guidance(diffusion, self.network, cond, uncond, scales=scales, weaker=weaker)
        noise = ImageNoise(
            seeds=[request.seed for request in requests],
            shape=(self.codec.channels, *latent_size),
            device=cond.tokens.device,
            turned=[
                None if request.blend is None else (request.blend.seed, request.blend.fraction)
                for request in requests
            ],
        )
        x = route(self.sampler, denoise, diffusion.schedule, times, noise=noise, on_step=on_step)
        return to_uint8(route.finish(self.codec.decode(x)))

    def _weaker(
        self, requests: Sequence[Request], sizes: Tensor, latent_size: tuple[int, int]
    ) -> Denoiser | None:
        if self.guide is None:
            return None
        diffusion = self.guide.diffusion.for_latents((self.codec.channels, *latent_size))
        cond = replace(conditioning(self.guide.text_encoder, requests), sizes=sizes)
        return diffusion.denoiser(self.guide.network, cond)

    def _parts(self) -> list[object]:
        guide = [] if self.guide is None else [self.guide.network, self.guide.text_encoder]
        return [self.network, self.text_encoder, self.codec, *guide]


def conditioning(text_encoder: TextEncoder, requests: Sequence[Request]) -> Conditioning:
    """The prompts', B of them, each as far towards its second prompt as its blend says."""
    cond = encode(text_encoder, [request.prompt for request in requests])
    blends = [request.blend for request in requests]
    if all(blend is None for blend in blends):
        return cond
    others = [request.prompt if request.blend is None else request.blend.prompt for request in requests]
    fractions = torch.tensor([0.0 if blend is None else blend.fraction for blend in blends])
    return between(cond, encode(text_encoder, others), fractions)


def encode(text_encoder: TextEncoder, captions: Sequence[str]) -> Conditioning:
    """B captions -> Conditioning, each different one encoded once and alone.

    Once, because a batch has one negative prompt, as a rule; alone, so that the last bits of a caption's embedding do
    not depend on what else is asked for.
    """
    different = list(dict.fromkeys(captions))
    each = Conditioning.concatenate([text_encoder([caption]) for caption in different])
    if len(different) == len(captions):
        return each
    place = {caption: row for row, caption in enumerate(different)}
    return each[torch.tensor([place[caption] for caption in captions], device=each.mask.device)]


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
