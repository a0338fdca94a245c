"""A text encoder, a network and a codec small enough for tests, and a Generation made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import Flow, V
from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.time_samplers import Uniform as UniformTimes
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Conditioning, NoiseSchedule, Sampler
from ldm.sampling.generate import Generation
from ldm.sampling.grids import LogSNR, Uniform
from ldm.sampling.guidance import ClassifierFree
from ldm.sampling.samplers import Heun


class TextEncoder(nn.Module):
    """Letters, embedded; always padded to 24 tokens."""

    width, pooled_width, length = 16, 16, 24

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, self.width)

    def forward(self, captions: Sequence[str]) -> Conditioning:
        ids = torch.tensor([[*text.encode()[:24], *[0] * (24 - len(text))] for text in captions])
        tokens = self.embedding(ids)
        return Conditioning(tokens=tokens, mask=ids > 0, pooled=tokens.mean(1))


class Network(nn.Module):
    """Convolution, attention to the text and a wide layer: the kinds of kernels that may round by batch shape."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(4, 64, 3, padding=1)
        self.text = nn.Linear(16, 64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.5), nn.Linear(256, 4))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        h = self.into(x).flatten(2).transpose(1, 2)  # (B, HW, 64)
        h = h + self.text(cond.pooled)[:, None] + t[:, None, None]
        text = self.text(cond.tokens)
        h = h + self.attention(h, text, text, need_weights=False)[0]
        return self.mlp(h).transpose(1, 2).reshape(x.shape)


class Codec(nn.Module):
    channels, downsample, content_hash = 4, 2, ""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def moments(self, images: Tensor) -> Tensor:
        folded = nn.functional.pixel_unshuffle(images, 2)  # (B, 12, H, W)
        return torch.cat([folded[:, ::3], torch.zeros_like(folded[:, ::3])], dim=1)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        mean, log_var = moments.chunk(2, dim=1)
        return mean if noise is None else mean + torch.exp(0.5 * log_var) * noise

    def decode(self, latents: Tensor) -> Tensor:
        return self.out(latents)


def generation(
    sampler: Sampler | None = None, schedule: NoiseSchedule | None = None, seed: int = 0
) -> Generation:
    torch.manual_seed(seed)
    return Generation(
        diffusion=Diffusion(
            schedule=schedule or RectifiedFlow(),
            parameterization=Flow() if schedule is None else V(),
            time_sampler=UniformTimes(),
            weighting=Unweighted(),
        ),
        network=Network(),
        text_encoder=TextEncoder(),
        codec=Codec(),
        sampler=sampler or Heun(),
        grid=Uniform() if schedule is None else LogSNR(),
        guidance=ClassifierFree(scale=3.0),
        num_steps=4,
    )
