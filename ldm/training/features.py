"""Frozen networks whose features pictures, or latents, are compared by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.codecs.kl import KLCodec, read_autoencoder
from ldm.needs import Need, refuse_unmet
from ldm.nn.perceptual import Backbone, alexnet, vgg16


class Features(nn.Module, ABC):
    """pictures (B, 3, h, w) in [-1, 1] -> maps (B, c, h', w'), the finest first. Frozen, always in evaluation mode.

    Attributes:
        widths: Channels of the maps.
    """

    widths: list[int]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]: ...

    def train(self, mode: bool = True) -> Features:
        super().train(False)
        return self


class AutoencoderFeatures(Features):
    """The encoder of an autoencoder that was trained before, on the data themselves: needs nobody else's weights.

    What it sees is what it needs for reconstruction, not what people look at: no stand-in for LPIPS, and no number of
    one is comparable with the other.

    Args:
        path: Its ``autoencoder.safetensors``.

    Raises:
        MissingNeeds: There is no such file.
    """

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self.autoencoder, _ = read_autoencoder(Path(path))
        self.autoencoder.requires_grad_(False)
        self.eval()
        side = 4 * self.autoencoder.downsample
        with torch.no_grad():
            self.widths = [x.shape[1] for x in self(torch.zeros(1, 3, side, side))]

    @staticmethod
    def needs_for(*, path: str) -> list[Need]:
        return KLCodec.needs_for(path=path)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.autoencoder.features(images)


class ClassifierFeatures(Features):
    """The convolutions of a classifier of ImageNet, from torchvision's published weights.

    Args:
        path: ``vgg16-397923af.pth`` or ``alexnet-owt-7be5be79.pth``; which of the two is seen by its tensors.

    Raises:
        MissingNeeds: There is no such file.
        ValueError: It is another network's.
    """

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self.backbone = read_backbone(path)
        self.widths = self.backbone.widths
        self.requires_grad_(False).eval()

    @staticmethod
    def needs_for(*, path: str) -> list[Need]:
        return [classifier_need(path)]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.backbone(images)


def classifier_need(path: str, *, key: str = "path") -> Need:
    return Need(
        what=f"the classifier {path}",
        found=path if Path(path).is_file() else None,
        bring=f"where there is internet, python -c 'from torchvision.models import vgg16; vgg16(weights=\"DEFAULT\")' "
        f"leaves vgg16-397923af.pth in ~/.cache/torch/hub/checkpoints: bring it and give {{key}}{key}=...; or take "
        f"features of a network of your own (terms=features)",
    )


def read_backbone(path: str, *, key: str = "path") -> Backbone:
    """VGG16 or AlexNet, whichever the file holds."""
    refuse_unmet([classifier_need(path, key=key)])
    state = torch.load(path, map_location="cpu", weights_only=True)
    first = state.get("features.0.weight")
    backbone = alexnet() if first is not None and first.shape[-1] == 11 else vgg16()
    try:
        backbone.load(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; VGG16's or AlexNet's are wanted") from error
    return backbone
