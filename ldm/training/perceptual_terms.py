"""Terms that compare pictures by features of a network instead of by pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ldm.needs import Need, refuse_unmet
from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.perceptual import LPIPS, unit
from ldm.training.autoencoder_pass import Pass
from ldm.training.features import Features, classifier_need, read_backbone


class PerceptualDistance(nn.Module):
    """LPIPS (1801.03924), mean over the batch. The networks are frozen; gradients reach the reconstructions.

    Args:
        classifier: torchvision's weights of VGG16 or AlexNet.
        heads: The paper's weights of their channels, ``vgg.pth`` or ``alex.pth``.
        weight: Of the term.

    Raises:
        MissingNeeds: One of the files is not there.
        ValueError: They do not belong to each other.
    """

    def __init__(self, *, classifier: str, heads: str, weight: float = 1.0) -> None:
        super().__init__()
        refuse_unmet(self.needs_for(classifier=classifier, heads=heads))
        self.weight = weight
        self.lpips = LPIPS(read_backbone(classifier, key="classifier"))
        try:
            self.lpips.load_heads(torch.load(heads, map_location="cpu", weights_only=True))
        except ValueError as error:
            raise ValueError(f"{heads}, with {classifier}: {error}") from error
        self.requires_grad_(False).eval()

    @staticmethod
    def needs_for(*, classifier: str, heads: str, weight: float = 1.0) -> list[Need]:
        return [
            classifier_need(classifier, key="classifier"),
            Need(
                what=f"LPIPS's channel weights {heads}",
                found=heads if Path(heads).is_file() else None,
                bring="the package lpips holds them: pip download lpips --no-deps, unpack the wheel, and give "
                "{key}heads=<lpips/weights/v0.1/vgg.pth>",
            ),
        ]

    def train(self, mode: bool = True) -> PerceptualDistance:
        super().train(False)
        return self

    def forward(self, seen: Pass) -> Tensor:
        return self.lpips(seen.images, seen.reconstructions).mean()


class FeatureDistance(nn.Module):
    """The same kind of distance by the features of any frozen network, without weights of channels: not LPIPS.

    Squared distances of unit vectors, averaged over positions, summed over maps (1801.03924, equation 1 with w = 1).

    Args:
        features: The network.
        weight: Of the term.
    """

    def __init__(self, *, features: Features, weight: float = 1.0) -> None:
        super().__init__()
        self.features, self.weight = features, weight
        self.features.requires_grad_(False)

    def forward(self, seen: Pass) -> Tensor:
        with torch.no_grad():
            theirs = self.features(seen.images)
        return distance(theirs, self.features(seen.reconstructions))


@dataclass(frozen=True, kw_only=True)
class DiscriminatorFeatures:
    """The same by the features of the discriminator that is being trained (feature matching, 1512.09300, section 3.1).

    It is 0 until the discriminator has begun, and in validation: its measure changes as the discriminator learns. The
    discriminator gets no gradient from it.
    """

    weight: float = 1.0

    def __call__(self, seen: Pass) -> Tensor:
        network = seen.discriminator
        if network is None:
            return seen.reconstructions.new_zeros(())
        frozen = {name: x.detach() for name, x in network.named_parameters()}

        def features(images: Tensor) -> list[Tensor]:
            found: list[Tensor] = functional_call(_Features(network), _named(frozen), (images,))
            return found

        with torch.no_grad():
            theirs = features(seen.images)
        return distance(theirs, features(seen.reconstructions))

    def check(self, autoencoder: Autoencoder, *, has_discriminator: bool) -> None:
        if not has_discriminator:
            raise ValueError(
                "the term DiscriminatorFeatures needs a discriminator: add one by terms=[adversary]"
            )


class _Features(nn.Module):
    """A discriminator called for its features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.network.features(images)  # type: ignore[operator]
        return found


def _named(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}": x for name, x in parameters.items()}


def distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Maps of the same shapes -> scalar."""
    each = [(unit(x) - unit(y)).square().sum(dim=1).mean() for x, y in zip(a, b, strict=True)]
    return torch.stack(each).sum()
