"""Inception-v3 as FID was defined with it: the network of 2015-12-05, with TensorFlow's ways of pooling.

The weights are the file that pytorch-fid and torch-fidelity publish; the modules carry its names, so that it loads
without a map. (Szegedy et al. 2015, 1512.00567, figures 5 to 7 and 10.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.evaluation.features import Codecs, Features, content_hash
from ldm.evaluation.resize import CleanBicubic, Resize, TensorflowBilinear
from ldm.needs import Need, refuse_unmet

SIZE, WIDTH, CLASSES = 299, 2048, 1008
FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
SOURCE = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/" + FILES[0]
RESIZES: dict[str, Resize] = {"clean": CleanBicubic(size=SIZE), "tensorflow": TensorflowBilinear(size=SIZE)}


@dataclass(frozen=True, kw_only=True)
class Inception:
    """The features of FID, KID and their kin: 2048 channels of the last pooling.

    Args:
        path: The file of weights; None looks where torch keeps what it downloads, under the names that pytorch-fid and
            torch-fidelity give it.
        resize: "clean" as clean-fid (2104.11222), "tensorflow" as the first published FIDs.
    """

    path: str | None = None
    resize: Literal["clean", "tensorflow"] = "clean"
    label: str = "inception"

    @property
    def title(self) -> str:
        return "Inception-v3 of 2015-12-05, pool_3"

    @property
    def resizing(self) -> str:
        return str(RESIZES[self.resize])

    def needs(self) -> list[Need]:
        places = [Path(self.path)] if self.path else [_cache() / name for name in FILES]
        found = next((str(place) for place in places if place.is_file()), None)
        return [
            Need(
                what=f"the weights of Inception-v3 for FID, {places[0].name}",
                found=found,
                looked_in=tuple(map(str, places)),
                bring=f"where there is internet: download {SOURCE}, then copy the file here and give "
                f"{{key}}path=<file>",
            )
        ]

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        needs = self.needs()
        refuse_unmet(needs)
        path = Path(str(needs[0].found))
        network = read_inception(path).to(device)

        def run(images: Tensor) -> Tensor:
            return network(RESIZES[self.resize](images.to(device))).float().cpu()

        return Features(content_hash(path), self.resizing, run)


def read_inception(path: Path) -> InceptionV3:
    """
    Raises:
        ValueError: The file holds other weights.
    """
    with torch.device("meta"):
        network = InceptionV3()
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{path} does not hold the weights of FID's Inception-v3 ({first}): see {SOURCE}"
        ) from error
    return network.eval().requires_grad_(False)


def _cache() -> Path:
    """Where torch.hub keeps files; torch itself would make the folder when asked."""
    home = os.environ.get("TORCH_HOME", "~/.cache/torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def average(x: Tensor) -> Tensor:
    """TensorFlow's: what lies outside the picture does not count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def greatest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class BlockA(nn.Module):
    """Figure 5: 35 x 35."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(inputs, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        deep = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, deep, self.branch_pool(average(x))], dim=1)


class BlockB(nn.Module):
    """Figure 10: from 35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), deep, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """Figure 6: 17 x 17, convolutions of 7 in two parts."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))

        def conv(inputs: int, outputs: int, shape: tuple[tuple[int, int], tuple[int, int]]) -> Conv:
            return Conv(inputs, outputs, shape[0], padding=shape[1])

        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(inputs, width, 1), conv(width, width, row)
        self.branch7x7_3 = conv(width, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(inputs, width, 1), conv(width, width, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = conv(width, width, row), conv(width, width, column)
        self.branch7x7dbl_5 = conv(width, 192, row)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(average(x))], dim=1)


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(inputs, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(inputs, 192, 1), Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = (
            Conv(192, 192, (7, 1), padding=(3, 0)),
            Conv(192, 192, 3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """Figure 7: 8 x 8. The two of them pool differently, in the published graph and so here."""

    def __init__(self, inputs: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        row, column = (1, 3), (3, 1)
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = Conv(384, 384, row, padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, column, padding=(1, 0))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, row, padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, column, padding=(1, 0))
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        fans = [self.branch3x3_2a(once), self.branch3x3_2b(once)]
        fans += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([self.branch1x1(x), *fans, self.branch_pool(self.pool(x))], dim=1)


class InceptionV3(nn.Module):
    """Pictures (B, 3, 299, 299) in [0, 255] -> (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, stride=2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = BlockC(768, 128), BlockC(768, 160), BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, average), BlockE(2048, greatest)
        self.fc = nn.Linear(WIDTH, CLASSES)  # unused here; the file has it

    def forward(self, images: Tensor) -> Tensor:
        x = (images - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean(dim=(2, 3))
