"""Precision, recall, density and coverage: does each set lie where the other one is?

The place of a set is the union of balls around its features, each as wide as the way to the k-th nearest of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.kernel import blocks


@dataclass(frozen=True)
class Fidelity:
    """Verdicts one by one; the measures are their means."""

    precision: Tensor  # (N,) of the samples: it lies in some ball of the reference
    recall: Tensor  # (M,) of the reference: it lies in some ball of the samples
    density: Tensor  # (N,) of the samples: in how many balls of the reference it lies, over k
    coverage: Tensor  # (M,) of the reference: its own ball holds a sample


def fidelity(samples: Tensor, reference: Tensor, *, nearest: int) -> Fidelity:
    """Precision and recall (Kynkaanniemi et al. 2019, 1904.06991, eq. 1 and 2), density and coverage (Naeem et al.
    2020, 2002.09797, eq. 4 and 6).

    Args:
        samples: (N, D).
        reference: (M, D).
        nearest: k.

    Raises:
        ValueError: A set has not more than k features.
    """
    smallest = min(len(samples), len(reference))
    if not 1 <= nearest < smallest:
        raise ValueError(
            f"nearest={nearest} must be at least 1 and less than the number of pictures, {smallest}"
        )
    samples, reference = samples.double(), reference.double()
    own, theirs = radii(samples, nearest), radii(reference, nearest)  # (N,), (M,)
    found: dict[str, list[Tensor]] = {"precision": [], "density": []}
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    covered = recalled.clone()
    for rows, distances in tables(samples, reference):  # (block, M)
        within = distances <= theirs
        found["precision"].append(within.any(dim=1))
        found["density"].append(within.sum(dim=1) / nearest)
        covered |= within.any(dim=0)
        recalled |= (distances <= own[rows, None]).any(dim=0)
    return Fidelity(
        precision=torch.cat(found["precision"]).double(),
        recall=recalled.double(),
        density=torch.cat(found["density"]).double(),
        coverage=covered.double(),
    )


def radii(features: Tensor, nearest: int) -> Tensor:
    """The distance of each to its k-th nearest other, (N, D) -> (N,)."""
    # One more, for each is its own nearest.
    return torch.cat(
        [table.kthvalue(nearest + 1, dim=1).values for _, table in tables(features, features, same=True)]
    )


def tables(x: Tensor, y: Tensor, *, same: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Distances from x (N, D) to y (M, D): some rows, and their (block, M).

    Args:
        same: y is x: a row's distance to itself is exactly zero, which rounding would make a little more.
    """
    norms = y.square().sum(dim=1)
    for rows in blocks(len(x)):
        part = x[rows]
        squared = part.square().sum(dim=1)[:, None] + norms - 2 * part @ y.T
        if same:
            squared[torch.arange(len(part)), torch.arange(len(x))[rows]] = 0
        yield rows, squared.clamp(min=0).sqrt()
