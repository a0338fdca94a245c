"""An autoencoder whose training has not written its file yet, as a codec."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.codecs.contract import LatentStatistics
from ldm.evaluation.looking import Pictures
from ldm.training.autoencoder_module import AutoencoderModule

MEASURED = 512  # pictures over which its latents are measured


class InTraining(nn.Module):
    """An autoencoder's module as a codec, before its file is written.

    Args:
        module: Has the weights.
        content_hash: Their name.
        pictures: Over which its latents' mean and deviation are measured.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: AutoencoderModule, content_hash: str, pictures: Pictures) -> None:
        super().__init__()
        self.autoencoder = module.autoencoder
        self.channels = self.autoencoder.latent_channels
        self.downsample = self.autoencoder.downsample
        self.content_hash = content_hash
        statistics = LatentStatistics(self.channels)
        with torch.no_grad():
            for images in pictures.batches(range(len(pictures.sizes))):
                statistics.update(self.moments(images.to(module.device).float() / 127.5 - 1))
        contract = statistics.contract(downsample=self.downsample)
        self.register_buffer("mean", torch.tensor(contract.mean, device=module.device)[:, None, None])
        self.register_buffer("std", torch.tensor(contract.std, device=module.device)[:, None, None])

    def moments(self, images: Tensor) -> Tensor:
        return self.autoencoder.encode(images)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        mean, log_var = moments.float().chunk(2, dim=1)
        z = mean if noise is None else mean + torch.exp(0.5 * log_var) * noise
        return (z - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents * self.std + self.mean)
