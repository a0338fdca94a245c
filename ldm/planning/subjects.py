"""What can be planned: the parts of a task without weights, and the loss of a step whose inputs are there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ldm.diffusion.diffusion import Diffusion
from ldm.interfaces import Conditioning, LatentCodec, Network, TextEncoder
from ldm.nn.autoencoder_base import Autoencoder
from ldm.training.adversary import Adversary
from ldm.training.autoencoder_pass import (
    AutoencoderTerm,
    Disturbance,
    Draw,
    HasTrained,
    run,
    weighted_sum,
)


class Subject(Protocol):
    """A task on the meta device."""

    def trained(self) -> dict[str, nn.Module]:
        """What is trained, by name."""
        ...

    def frozen(self) -> dict[str, nn.Module]:
        """What lies in memory without being trained, by name."""
        ...

    def running_frozen(self) -> dict[str, Callable[[], object]]:
        """What of it runs in each step, by name; a call runs it for one picture."""
        ...

    def loss(self, batch_size: int) -> Tensor:
        """A step's loss for so many pictures."""
        ...


@dataclass(frozen=True, kw_only=True)
class DiffusionSubject:
    """A denoiser's training: see ``ldm/training/diffusion_module.py``.

    Args:
        diffusion: Schedule and loss.
        network: On the meta device, like the next two.
        text_encoder: Trained where its parameters are.
        codec: Frozen.
        image_size: Side of the pictures in pixels.
        from_pictures: Whether pictures come in, or latents that were made beforehand.

    Raises:
        ValueError: The codec's stride does not divide the picture, or its latents are not the network's.
    """

    diffusion: Diffusion
    network: nn.Module
    text_encoder: nn.Module
    codec: nn.Module
    image_size: int
    from_pictures: bool

    def __post_init__(self) -> None:
        codec = cast(LatentCodec, self.codec)
        if self.image_size % codec.downsample:
            raise ValueError(
                f"image_size={self.image_size} is not divisible by the codec's stride {codec.downsample}"
            )
        wanted = getattr(self.network, "in_channels", codec.channels)
        if wanted != codec.channels:
            raise ValueError(
                f"the codec gives latents of {codec.channels} channels, the network takes {wanted}: network.in_channels"
            )

    @property
    def latents(self) -> tuple[int, int, int]:
        """C, H, W."""
        codec = cast(LatentCodec, self.codec)
        side = self.image_size // codec.downsample
        return codec.channels, side, side

    def trained(self) -> dict[str, nn.Module]:
        parts = {
            "network": self.network,
            "text_encoder": self.text_encoder,
            "uncertainty": self.diffusion.uncertainty,
        }
        return {
            name: part
            for name, part in parts.items()
            if isinstance(part, nn.Module) and any(p.requires_grad for p in part.parameters())
        }

    def frozen(self) -> dict[str, nn.Module]:
        parts = {"text_encoder": self.text_encoder, "codec": self.codec}
        return {name: part for name, part in parts.items() if name not in self.trained()}

    def running_frozen(self) -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = {}
        if self.from_pictures:
            codec, shape = cast(LatentCodec, self.codec), (1, 3, self.image_size, self.image_size)
            found["codec"] = lambda: codec.moments(torch.empty(shape, device="meta"))
        if "text_encoder" not in self.trained():
            found["text_encoder"] = lambda: self.text_encoder(captions(self.text_encoder, 1))
        return found

    def loss(self, batch_size: int) -> Tensor:
        x0, eps = torch.empty(2, batch_size, *self.latents, device="meta")
        cond = conditioning(self.text_encoder, batch_size, trained="text_encoder" in self.trained())
        t = torch.empty(batch_size, device="meta")
        return self.diffusion.loss(cast(Network, self.network), x0, cond, eps=eps, t=t).mean()


@dataclass(frozen=True, kw_only=True)
class AutoencoderSubject:
    """An autoencoder's training: see ``ldm/training/autoencoder_module.py``.

    Args:
        autoencoder: On the meta device, like the other networks.
        terms: Of its loss.
        disturbances: Of its latents.
        adversary: The discriminator, or None.
        image_size: Side of the pictures in pixels.
    """

    autoencoder: Autoencoder
    terms: Mapping[str, AutoencoderTerm]
    disturbances: Mapping[str, Disturbance]
    adversary: Adversary | None
    image_size: int

    def trained(self) -> dict[str, nn.Module]:
        trained = {name: term.trained() for name, term in self.terms.items() if isinstance(term, HasTrained)}
        judge = {"discriminator": self.adversary.discriminator} if self.adversary else {}
        return {"autoencoder": self.autoencoder, **trained, **judge}

    def frozen(self) -> dict[str, nn.Module]:
        return {name: term for name, term in self.terms.items() if isinstance(term, nn.Module)}

    def running_frozen(self) -> dict[str, Callable[[], object]]:
        return {}

    def loss(self, batch_size: int) -> Tensor:
        images = torch.empty(batch_size, 3, self.image_size, self.image_size, device="meta")
        keys = [str(number) for number in range(batch_size)]
        seen = run(
            self.autoencoder,
            images,
            Draw(seed=0, keys=keys, visits=[0] * batch_size, step=0),
            disturbances=self.disturbances,
            discriminator=self.adversary.discriminator if self.adversary else None,
        )
        acting = {name: term for name, term in self.terms.items() if term.weight}
        loss = weighted_sum(acting, {name: term(seen) for name, term in acting.items()})
        if self.adversary is None:
            return loss
        judged = self.adversary(seen, loss, images_seen=self.adversary.start_images, num_images=batch_size)
        return loss + judged.generator + judged.discriminator


def conditioning(text_encoder: nn.Module, batch_size: int, *, trained: bool) -> Conditioning:
    """A text encoder's answer; a frozen one is not run for it. With sizes, for networks that are told them."""
    encoder = cast(TextEncoder, text_encoder)
    sizes = torch.empty(batch_size, 6, device="meta")
    if trained:
        cond = encoder(captions(text_encoder, batch_size))
        return Conditioning(tokens=cond.tokens, mask=cond.mask, pooled=cond.pooled, sizes=sizes)
    labels = getattr(encoder, "num_classes", None)
    return Conditioning(
        tokens=torch.empty(batch_size, encoder.length, encoder.width, device="meta"),
        mask=torch.empty(batch_size, encoder.length, dtype=torch.bool, device="meta"),
        pooled=torch.empty(batch_size, encoder.pooled_width, device="meta"),
        labels=torch.empty(batch_size, dtype=torch.int64, device="meta") if labels else None,
        sizes=sizes,
    )


def captions(text_encoder: nn.Module, batch_size: int) -> Sequence[str]:
    """Captions, all different, for equal ones are encoded once; their length does not matter, all are padded."""
    numbers = getattr(text_encoder, "numbers", None)
    if numbers:  # of classes
        return [next(iter(numbers))] * batch_size
    return [str(number) for number in range(batch_size)]
