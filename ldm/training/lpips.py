"""LPIPS as a measure of reconstructions (Zhang et al. 2018, 1801.03924). The network is in ``ldm/nn/perceptual.py``.

Two files of weights: AlexNet's own, as torchvision publishes them, and the five small heads, which torchmetrics brings
along (version 0.1, as the authors recommend).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from ldm.evaluation.features import Codecs, Features, content_hash, within
from ldm.needs import Need, refuse_unmet
from ldm.nn.fitting import misfits
from ldm.nn.perceptual import LPIPS, alexnet

BACKBONE = "alexnet-owt-7be5be79.pth"
SOURCE = f"https://download.pytorch.org/models/{BACKBONE}"
HEADS = Path("functional", "image", "lpips_models", "alex.pth")  # within torchmetrics


@dataclass(frozen=True, kw_only=True)
class Lpips:
    """Where its weights are.

    Args:
        path: AlexNet's; None looks where torch keeps what it downloads.
        heads: The five heads'; None for those of torchmetrics.
    """

    path: str | None = None
    heads: str | None = None

    @property
    def title(self) -> str:
        return "LPIPS 0.1, AlexNet"

    def needs(self) -> list[Need]:
        home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
        backbone = Path(self.path) if self.path else home / "hub" / "checkpoints" / BACKBONE
        heads = Path(self.heads) if self.heads else _heads_of_torchmetrics()
        return [
            Need(
                what=f"AlexNet's weights for LPIPS, {backbone.name}",
                found=str(backbone) if backbone.is_file() else None,
                looked_in=(str(backbone),),
                bring=f"where there is internet: download {SOURCE}, then copy the file here and give "
                f"{{key}}path=<file>",
            ),
            Need(
                what="the heads of LPIPS, alex.pth",
                found=str(heads) if heads and heads.is_file() else None,
                looked_in=(str(heads or "torchmetrics, which is not installed"),),
                bring="install torchmetrics, which holds them, or give {key}heads=<file>",
            ),
        ]

    def open(self, device: torch.device) -> Opened:
        """
        Raises:
            MissingNeeds: A file is not there.
            ValueError: A file holds something else.
        """
        needs = self.needs()
        refuse_unmet(needs)
        backbone, heads = (Path(str(need.found)) for need in needs)
        network = LPIPS(alexnet())
        try:
            network.backbone.load(_whole_alexnet(torch.load(backbone, map_location="cpu", weights_only=True)))
            network.load_heads(torch.load(heads, map_location="cpu", weights_only=True))
        except ValueError as error:
            raise ValueError(f"{backbone} or {heads} does not hold LPIPS's weights ({error})") from error
        both = "".join(map(content_hash, (backbone, heads)))
        return Opened(
            content_hash=hashlib.sha256(both.encode()).hexdigest(),
            network=network.to(device).eval().requires_grad_(False),
        )


@dataclass(frozen=True)
class Opened:
    """The network, on its device."""

    content_hash: str
    network: LPIPS

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (B, 3, H, W) uint8 -> (B,) on the CPU; 0 for equal pictures."""
        device = self.network.backbone.shift.device
        x, y = (images.to(device).float() / 127.5 - 1 for images in (a, b))
        found: Tensor = self.network(x, y)
        return found.cpu()


@dataclass(frozen=True, kw_only=True)
class LpipsOfPairs:
    """Pairs (B, 6, H, W) -> (B,).

    Args:
        lpips: Where its weights are.
    """

    lpips: Lpips
    label: str = "lpips"
    resizing: str = "none"
    lower_is_better: bool = True

    @property
    def title(self) -> str:
        return self.lpips.title

    def needs(self) -> list[Need]:
        return within("lpips", self.lpips.needs())

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        network = self.lpips.open(device)
        return Features(
            network.content_hash, self.resizing, lambda pairs: network(pairs[:, :3], pairs[:, 3:])
        )


def _whole_alexnet(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` again; one that is not all of torchvision's AlexNet is refused, though its classifier is not used."""
    with torch.device("meta"):
        whole = torchvision.models.alexnet(weights=None)
    if wrong := misfits(whole, state):
        raise ValueError(wrong)
    return state


def _heads_of_torchmetrics() -> Path | None:
    found = importlib.util.find_spec("torchmetrics")
    return Path(found.origin).parent / HEADS if found and found.origin else None
