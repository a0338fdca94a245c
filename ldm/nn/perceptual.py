"""LPIPS (1801.03924): how different two pictures look, by features of a classifier, weighted as people judged.

The classifier's convolutions have the names of torchvision's, so that their published weights load as they are; the
weights of the channels have those of the paper's. Files are read in ``ldm/training/perceptual_terms.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm.nn.fitting import misfits

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
"""3x3 convolutions, each with a ReLU, and 2x2 max pools between (1409.1556, column D)."""

Taps = Sequence[int]


class Backbone(nn.Module):
    """A classifier's convolutions: pictures (B, 3, h, w) in [-1, 1] -> maps after some of its ReLUs, the finest first.

    Args:
        layers: As torchvision numbers them, under ``features``.
        taps: The numbers of the ReLUs whose output is given.
        widths: Channels there.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, layers: Sequence[nn.Module], *, taps: Taps, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers[: max(taps) + 1])
        self.taps, self.widths = frozenset(taps), list(widths)
        # ImageNet's mean and standard deviation of colours in [0, 1], for colours in [-1, 1]. To three places: the
        # paper's channel weights were found with these.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        h, found = (images - self.shift) / self.scale, []
        for number, layer in enumerate(self.layers):
            h = layer(h)
            if number in self.taps:
                found.append(h)
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """From torchvision's state dict of the whole classifier.

        Raises:
            ValueError: It is of another network.
        """
        own = {name: f"features.{name.removeprefix('layers.')}" for name in self.state_dict()}
        found = {ours: state[theirs] for ours, theirs in own.items() if theirs in state}
        if wrong := misfits(self, found):
            raise ValueError(f"these are not torchvision's weights of this classifier: {wrong}")
        self.load_state_dict(found)


def vgg16() -> Backbone:
    """VGG16's convolutions, with a tap before each pool and at the end."""
    layers: list[nn.Module] = []
    width = 3
    for layer in VGG16:
        if isinstance(layer, int):
            # Not in place: what a tap gave must stay as it is.
            layers += [nn.Conv2d(width, layer, 3, padding=1), nn.ReLU()]
            width = layer
        else:
            layers.append(nn.MaxPool2d(2))
    return Backbone(layers, taps=(3, 8, 15, 22, 29), widths=(64, 128, 256, 512, 512))


def alexnet() -> Backbone:
    """AlexNet's convolutions (as 1404.5997 has them), with a tap after each."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    ]
    for width, out in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
    return Backbone(layers, taps=(1, 4, 7, 9, 11), widths=(64, 192, 384, 256, 256))


class LPIPS(nn.Module):
    """Two pictures (B, 3, h, w) in [-1, 1] -> (B,), 0 for equal ones (equation 1).

    Args:
        backbone: The classifier.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ParameterList(torch.ones(width) / width for width in backbone.widths)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        pairs = zip(self.backbone(images), self.backbone(others), self.heads, strict=True)
        return torch.stack([weighted_distance(a, b, head) for a, b, head in pairs]).sum(dim=0)

    def load_heads(self, state: Mapping[str, Tensor]) -> None:
        """From the paper's file: ``lin0.model.1.weight`` (1, c, 1, 1) and so on.

        Raises:
            ValueError: It is for another classifier.
        """
        with torch.no_grad():
            for number, head in enumerate(self.heads):
                found = state.get(f"lin{number}.model.1.weight")
                if found is None or found.numel() != head.numel():
                    raise ValueError(
                        f"these are not LPIPS's weights for this classifier: lin{number} is missing or has another "
                        f"number of channels than {head.numel()}"
                    )
                head.copy_(found.flatten())


def weighted_distance(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Maps a, b (B, c, h, w) and weights (c,) -> (B,): squared distances of unit vectors, averaged over positions."""
    difference = (unit(a) - unit(b)).square()  # (B, c, h, w)
    return (difference * weights[:, None, None]).sum(dim=1).mean(dim=(1, 2))


def unit(x: Tensor) -> Tensor:
    """Each position's vector (B, c, h, w) brought to length one, in float32; what is zero stays zero."""
    x = x.float()
    # Under the root: the root itself has no gradient at zero.
    return x * torch.rsqrt(x.square().sum(dim=1, keepdim=True) + 1e-10)
