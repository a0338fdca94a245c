"""The latent contract: what an autoencoder, the latents made with it and the denoisers trained on them agree on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LatentContract:
    """Part of the autoencoder's file.

    Attributes:
        mean: Per-channel mean of the latents over the training set.
        std: Per-channel standard deviation of posterior samples over the training set.
        downsample: Stride f.
        num_images: Over how many pictures mean and std were measured.
        colour_range: What pixel values the encoder expects.
        origin: The content hash of the autoencoder whose latents these are, where only the decoder was trained on; ""
            where the latents are its own.
        content_hash: SHA-256 of architecture, weights and the fields above: the name of this autoencoder.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    downsample: int
    num_images: int
    colour_range: tuple[float, float] = (-1.0, 1.0)
    origin: str = ""
    content_hash: str = ""

    @property
    def latent_hash(self) -> str:
        """The name of this latent space, which denoisers and cached latents carry: a new decoder does not change it."""
        return self.origin or self.content_hash

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> LatentContract:
        fields = json.loads(text)
        for name in ("mean", "std", "colour_range"):
            fields[name] = tuple(fields[name])
        return LatentContract(**fields)


def hash_content(
    architecture: Mapping[str, object], weights: Mapping[str, Tensor], contract: LatentContract
) -> str:
    """SHA-256 over everything that shapes a latent; independent of dictionary order, dtype kept."""
    digest = hashlib.sha256()
    fields = {**asdict(contract), "content_hash": ""}
    if not contract.origin:  # files from before there was one keep their hash
        del fields["origin"]
    digest.update(json.dumps([dict(architecture), fields], sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LatentStatistics:
    """Running per-channel mean and standard deviation of the aggregate posterior, in float64.

    The variance of a channel is that of its means plus the mean of its variances, so posterior samples have unit
    variance. A channel that carries nothing has means near zero beside it, rather than its noise blown up.
    """

    def __init__(self, channels: int) -> None:
        self.num_images = 0
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._sum_squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, moments: Tensor) -> None:
        """moments (B, 2C, H, W): posterior means and log-variances."""
        mean, log_var = moments.detach().to("cpu", torch.float64).chunk(2, dim=1)
        self.num_images += mean.shape[0]
        self._count += mean.shape[0] * mean.shape[2] * mean.shape[3]
        self._sum += mean.sum(dim=(0, 2, 3))
        self._sum_squares += (mean.square() + log_var.exp()).sum(dim=(0, 2, 3))

    def contract(self, *, downsample: int) -> LatentContract:
        """Raises ValueError without pictures, or where a channel has no spread at all and so cannot be normalised."""
        if not self.num_images:
            raise ValueError("latent statistics of no pictures at all: the training set is empty")
        mean = self._sum / self._count
        std = (self._sum_squares / self._count - mean.square()).clamp(min=0).sqrt()
        if (std < 1e-6).any():
            dead = (std < 1e-6).nonzero().flatten().tolist()
            raise ValueError(
                f"latent channels {dead} are constant over the training set and have no posterior noise"
            )
        return LatentContract(
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            downsample=downsample,
            num_images=self.num_images,
        )
