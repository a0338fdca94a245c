"""Copies: does a picture show, whole or cut, mirrored or saved again, one that a model was trained on?

Two steps. A feature space proposes the nearest few training pictures of each; then each pair is laid over another, with
either mirror image, at the cut of the training picture that fits best, and compared as plain pixels. A pair counts as a
copy when it fits almost exactly, and much better than the other candidates do: where all of a data set is alike, a good
fit says nothing. (The second condition is that of Carlini et al. 2023, 2301.13188, section 4.2, in other words.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.features import Codecs, FeatureNetwork, Features
from ldm.evaluation.kernel import blocks
from ldm.needs import Need

SIDE = 32  # of pictures that are compared
KEPT = 2 * SIDE  # of those that are kept: a cut of one still has SIDE pixels
STEPS = (0.06, 0.04, 0.02, 0.02, 0.01, 0.005)  # of the search for the cut, as shares of the side
REFINED = 2  # candidates of each picture for which it is made


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Which squares of a training picture are proposed as what a copy shows.

    Args:
        scales: Their sides, as shares of the picture's.
        places: At each scale below 1, so many times so many, from edge to edge.

    Raises:
        ValueError: No scales, or scales that are not in (0, 1].
    """

    scales: Sequence[float] = (1.0, 0.85, 0.7)
    places: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))  # a config has a list, which has no hash
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"scales={self.scales} must be shares of a side, in (0, 1]")

    def boxes(self) -> Tensor:
        """(V, 3): scale, and the centre's place to the right and down, the picture being [-1, 1] squared."""
        found = []
        for scale in self.scales:
            room = torch.linspace(scale - 1, 1 - scale, self.places) if scale < 1 else torch.zeros(1)
            found += [[scale, float(x), float(y)] for y in room for x in room]
        return torch.tensor(found)


@dataclass(frozen=True, kw_only=True)
class SeenInCuts:
    """A feature network that looks at each cut of a picture: (B, V, D).

    Args:
        features: The network.
        cuts: The cuts.
        side: Pixels of each cut.
    """

    features: FeatureNetwork
    cuts: Cuts
    side: int = SIDE

    @property
    def label(self) -> str:
        return self.features.label

    @property
    def title(self) -> str:
        return f"{self.features.title}, of {len(self.cuts.boxes())} cuts"

    @property
    def resizing(self) -> str:
        return f"cuts {self.cuts} to {self.side}, {self.features.resizing}"

    def needs(self) -> Sequence[Need]:
        return self.features.needs()

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        network, boxes = self.features.open(device=device, codecs=codecs), self.cuts.boxes()

        def run(images: Tensor) -> Tensor:
            source = images.float()
            if max(images.shape[-2:]) > 2 * self.side:  # cuts of large pictures need not see every pixel
                source = F.interpolate(source, (2 * self.side, 2 * self.side), mode="area")
            views = [
                network(cut(source, box.expand(len(images), 3), self.side).round().to(torch.uint8))
                for box in boxes
            ]
            return torch.stack(views, dim=1)

        return Features(network.content_hash, self.resizing, run)


@dataclass(frozen=True, kw_only=True)
class SeenMirrored:
    """A feature network that looks at a picture and at its mirror image: (B, 2, D).

    Args:
        features: The network.
    """

    features: FeatureNetwork

    @property
    def label(self) -> str:
        return self.features.label

    @property
    def title(self) -> str:
        return f"{self.features.title}, also mirrored"

    @property
    def resizing(self) -> str:
        return f"mirrored, {self.features.resizing}"

    def needs(self) -> Sequence[Need]:
        return self.features.needs()

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        network = self.features.open(device=device, codecs=codecs)
        return Features(
            network.content_hash,
            self.resizing,
            lambda images: torch.stack([network(images), network(images.flip(-1))], dim=1),
        )


@dataclass(frozen=True, kw_only=True)
class Small:
    """The pictures at the size at which they are laid over another: (B, 3, KEPT, KEPT) uint8."""

    label: str = "small"
    title: str = "small pictures"
    resizing: str = f"area {KEPT}"

    def needs(self) -> list[Need]:
        return []

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        def run(images: Tensor) -> Tensor:
            return F.interpolate(images.float(), (KEPT, KEPT), mode="area").round().to(torch.uint8)

        return Features("small", self.resizing, run)


def nearest(seen: Tensor, training: Tensor, *, num: int, own: Tensor | None = None) -> Tensor:
    """Rows of the training set that look most like each picture in any of their views: (N, num), best first.

    Args:
        seen: (N, 2, D) features of pictures and their mirror images.
        training: (M, V, D) of the training set's cuts.
        num: How many; fewer where there are fewer.
        own: (N,) the row of the training set that a picture is itself, which is no candidate; -1 where it is none.
    """
    views = F.normalize(training - training.mean(dim=(0, 1)), dim=-1)  # (M, V, D)
    mine = F.normalize(seen - training.mean(dim=(0, 1)), dim=-1)
    num = min(num, len(training) - (own is not None))
    found = []
    for rows in blocks(len(mine), 256):
        part = mine[rows]  # (n, 2, D)
        alike = torch.cat(
            [
                torch.einsum("nfd,mvd->nmfv", part, views[some]).amax(dim=(2, 3))
                for some in blocks(len(views), 1024)
            ],
            dim=1,
        )  # (n, M)
        if own is not None:
            there = own[rows] >= 0
            alike[torch.arange(len(part))[there], own[rows][there]] = -torch.inf
        found.append(alike.topk(num, dim=1).indices)
    return torch.cat(found)


class Fit(NamedTuple):
    """How well a picture lies over another."""

    likeness: Tensor  # (P,) correlation of pixels in [-1, 1]
    box: Tensor  # (P, 3) of the other picture; see ``Cuts.boxes``
    mirrored: Tensor  # (P,) bool


def lay_over(pictures: Tensor, others: Tensor, cuts: Cuts) -> Fit:
    """Find mirror image and cut of each other picture that its partner looks most like.

    Args:
        pictures: (P, 3, S, S) uint8; compared at SIDE pixels.
        others: (P, 3, S', S') uint8, better larger than that.
        cuts: Where the search begins; it ends between them.
    """
    return refined(pictures, others, best_cut(pictures, others, cuts), cuts)


def best_cut(pictures: Tensor, others: Tensor, cuts: Cuts) -> Fit:
    """The best of the cuts as they are; see ``lay_over``."""
    target, num = _both_ways(pictures), len(pictures)
    best = Fit(torch.full((num,), -2.0), torch.zeros(num, 3), torch.zeros(num, dtype=torch.bool))
    for box in cuts.boxes():
        best = _better(best, target, others.float(), box.expand(num, 3))
    return best


def refined(pictures: Tensor, others: Tensor, best: Fit, cuts: Cuts) -> Fit:
    """A better cut near the best so far; see ``lay_over``."""
    target, source = _both_ways(pictures), others.float()
    smallest = min(cuts.scales) - 0.1
    for step in STEPS:
        moves = torch.cartesian_prod(*[torch.tensor([-step, 0.0, step])] * 3)  # (27, 3)
        middle = best.box
        for move in moves[moves.abs().sum(dim=1) > 0]:
            box = middle + move * torch.tensor([1.0, 2.0, 2.0])
            scale = box[:, 0].clamp(smallest, 1.0)
            room = (1 - scale)[:, None]
            box = torch.cat([scale[:, None], box[:, 1:].clamp(-room, room)], dim=1)
            best = _better(best, target, source, box)
    return best


def _both_ways(pictures: Tensor) -> Tensor:
    """(P, 3, S, S) -> (P, 2, 3, SIDE, SIDE): each and its mirror image, ready to be correlated."""
    small = F.interpolate(pictures.float(), (SIDE, SIDE), mode="area")
    return _standard(torch.stack([small, small.flip(-1)], dim=1))


def _better(best: Fit, target: Tensor, source: Tensor, box: Tensor) -> Fit:
    """With this cut where it fits better than the best so far."""
    view = _standard(cut(source, box, SIDE))  # (P, 3, SIDE, SIDE)
    likeness, which = (target * view[:, None]).flatten(2).sum(dim=2).max(dim=1)  # (P,)
    more = likeness > best.likeness
    return Fit(
        torch.where(more, likeness, best.likeness),
        torch.where(more[:, None], box, best.box),
        torch.where(more, which == 1, best.mirrored),
    )


def _standard(images: Tensor) -> Tensor:
    """(..., 3, S, S) less its mean, with unit length: products are correlations. A plain picture becomes zeros."""
    centred = images - images.mean(dim=(-3, -2, -1), keepdim=True)
    length = centred.flatten(-3).norm(dim=-1)[..., None, None, None]
    return torch.where(length > 1e-3, centred / length.clamp(min=1e-3), 0.0)


def cut(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """A square of each picture (B, 3, H, W), in floats, by its box (B, 3), brought to ``side`` pixels."""
    if bool((boxes[:, 0] == 1).all()):
        return F.interpolate(images, (side, side), mode="area")
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = boxes[:, 0]
    theta[:, 0, 2], theta[:, 1, 2] = boxes[:, 1], boxes[:, 2]
    # Averaged over finer places than pixels of the answer: what is made smaller is smoothed, as "area" does.
    fine = max(1, round(images.shape[-1] / side))
    grid = F.affine_grid(theta, [len(images), 3, side * fine, side * fine], align_corners=False)
    return F.avg_pool2d(F.grid_sample(images, grid, align_corners=False, padding_mode="border"), fine)


@dataclass(frozen=True)
class Copies:
    """The training picture that each picture fits best, and whether it is a copy of it."""

    row: Tensor  # (N,) of the training set
    likeness: Tensor  # (N,) of the best pair
    others: Tensor  # (N,) the median likeness of the other candidates
    box: Tensor  # (N, 3)
    mirrored: Tensor  # (N,) bool
    is_copy: Tensor  # (N,) bool


def find_copies(
    pictures: Tensor,
    training: Tensor,
    candidates: Tensor,
    cuts: Cuts,
    *,
    likeness: float = 0.95,
    contrast: float = 0.5,
) -> Copies:
    """Lay each picture over its candidates.

    Args:
        pictures: (N, 3, S, S) uint8.
        training: (M, 3, S, S) uint8.
        candidates: (N, k) rows of the training set.
        cuts: Of the training pictures.
        likeness: A copy's correlation is at least this.
        contrast: What is left unlike (one less the correlation) is at most this share of what the other candidates
            leave, in the median.
    """
    found = [
        _best_pairs(pictures[rows], training, candidates[rows], cuts) for rows in blocks(len(pictures), 128)
    ]
    row, best, others, box, mirrored = (torch.cat(parts) for parts in zip(*found, strict=True))
    is_copy = (best >= likeness) & (1 - best <= contrast * (1 - others))
    return Copies(row, best, others, box, mirrored, is_copy)


def _best_pairs(
    pictures: Tensor, training: Tensor, candidates: Tensor, cuts: Cuts
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row, likeness, median likeness of the others, box and mirroring of each picture's best pair: N of each."""
    num, k = candidates.shape
    every = training[candidates.flatten()]  # (N k, 3, S, S)
    fits = best_cut(pictures.repeat_interleave(k, dim=0), every, cuts)
    alike = fits.likeness.view(num, k).clone()
    # Most of the work is between the cuts: only there where it can matter.
    for place in alike.topk(min(REFINED, k), dim=1).indices.T:  # (N,)
        pick = torch.arange(num) * k + place
        better = refined(pictures, every[pick], Fit(*(x[pick] for x in fits)), cuts)
        alike[torch.arange(num), place] = better.likeness
        for whole, part in zip(fits, better, strict=True):
            whole[pick] = part
    best, place = alike.max(dim=1)
    rest = alike.sort(dim=1, descending=True).values[:, 1:]
    others = rest.median(dim=1).values if k > 1 else torch.zeros(num)
    pick = torch.arange(num) * k + place
    row = candidates.gather(1, place[:, None])[:, 0]
    return row, best, others, fits.box[pick], fits.mirrored[pick]
