"""LPIPS, a learned distance between two pictures (Zhang et al. 2018, 1801.03924), with AlexNet.

Two files of weights: AlexNet's own, as torchvision publishes them, and the five small heads, which torchmetrics brings
along (version 0.1, as the authors recommend).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import alexnet

from ldm.evaluation.features import content_hash
from ldm.needs import Need, refuse_unmet

BACKBONE = "alexnet-owt-7be5be79.pth"
SOURCE = f"https://download.pytorch.org/models/{BACKBONE}"
HEADS = Path("functional", "image", "lpips_models", "alex.pth")  # within torchmetrics
AFTER = (1, 4, 7, 9, 11)  # the layers of torchvision's AlexNet that are looked at: its five ReLUs
# The authors' normalisation of pictures in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


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

    def open(self, device: torch.device) -> LpipsNetwork:
        """
        Raises:
            MissingNeeds: A file is not there.
            ValueError: A file holds something else.
        """
        needs = self.needs()
        refuse_unmet(needs)
        backbone, heads = (Path(str(need.found)) for need in needs)
        network = alexnet(weights=None)
        state = torch.load(backbone, map_location="cpu", weights_only=True)
        try:
            network.load_state_dict(state)
            lines = torch.load(heads, map_location="cpu", weights_only=True)
            weights = [lines[f"lin{i}.model.1.weight"].flatten() for i in range(len(AFTER))]
        except (RuntimeError, KeyError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{backbone} or {heads} does not hold LPIPS's weights ({first})") from error
        layers = network.features.to(device).eval().requires_grad_(False)
        both = "".join(map(content_hash, (backbone, heads)))
        return LpipsNetwork(
            content_hash=hashlib.sha256(both.encode()).hexdigest(),
            layers=list(layers),
            heads=[weight.to(device) for weight in weights],
        )


@dataclass(frozen=True)
class LpipsNetwork:
    """Opened, on its device."""

    content_hash: str
    layers: Sequence[Callable[[Tensor], Tensor]]  # of AlexNet
    heads: Sequence[Tensor]  # (c,) each

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (B, 3, H, W) uint8 -> (B,) on the CPU; 0 for equal pictures (eq. 1)."""
        distance = torch.zeros(len(a), device=self.heads[0].device)
        for head, x, y in zip(self.heads, self._read(a), self._read(b), strict=True):
            difference = (_unit(x) - _unit(y)).square()  # (B, c, h, w)
            distance += (difference * head.view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        return distance.cpu()

    def _read(self, images: Tensor) -> list[Tensor]:
        device = self.heads[0].device
        shift, scale = (torch.tensor(x, device=device).view(3, 1, 1) for x in (SHIFT, SCALE))
        x = (images.to(device).float() / 127.5 - 1 - shift) / scale
        found = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in AFTER:
                found.append(x.clone())  # the ReLUs work in place
        return found


def _unit(x: Tensor) -> Tensor:
    """Each place's channels to unit length."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _heads_of_torchmetrics() -> Path | None:
    found = importlib.util.find_spec("torchmetrics")
    return Path(found.origin).parent / HEADS if found and found.origin else None
