"""Maximum mean discrepancy between two sets of features: KID and CMMD differ by the kernel and the estimator.

All of it is computed block by block: the (N, M) table of kernel values is never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BLOCK = 2048  # rows of the table at a time


class Kernel(Protocol):
    """How alike features are."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x (N, D), y (M, D) -> (N, M)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """(x.y / D + 1)^degree: KID's (Binkowski et al. 2018, 1801.01401, eq. 3)."""

    degree: int = 3

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** self.degree


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """exp(-|x - y|^2 / (2 bandwidth^2)): CMMD's (Jayasumana et al. 2024, 2401.09603, section 4), with bandwidth 10."""

    bandwidth: float = 10.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        squared = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
        return torch.exp(-squared.clamp(min=0) / (2 * self.bandwidth**2))


class Discrepancy(NamedTuple):
    """The squared discrepancy, and by how much each row of x pulls it: (N,) with a mean of zero."""

    value: float
    influence: Tensor


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel, *, unbiased: bool) -> Discrepancy:
    """MMD^2 between the laws that x (N, D) and y (M, D) were drawn from.

    Args:
        x: Features of the pictures that are judged.
        y: Of the reference.
        kernel: How alike two are.
        unbiased: Leave a picture's likeness to itself out (Gretton et al. 2012, JMLR 13, eq. 3: KID). Otherwise it
            counts (eq. 5: the estimate that CMMD's authors publish figures of).

    Raises:
        ValueError: An unbiased estimate from fewer than two features on a side.
    """
    x, y = x.double(), y.double()
    if unbiased and min(len(x), len(y)) < 2:
        raise ValueError(f"MMD between {len(x)} and {len(y)} pictures: two at least are needed on each side")
    within_x, within_y = _means(x, x, kernel, apart=unbiased), _means(y, y, kernel, apart=unbiased)
    across = _means(x, y, kernel, apart=False)  # (N,)
    value = within_x.mean() + within_y.mean() - 2 * across.mean()
    # First-order term of the U-statistic (Hoeffding's projection): each x stands in its pairs twice.
    pull = 2 * (within_x - across)
    return Discrepancy(float(value), pull - pull.mean())


def _means(x: Tensor, y: Tensor, kernel: Kernel, *, apart: bool) -> Tensor:
    """Mean over y of the kernel at each x (N,); ``apart`` leaves the diagonal out, y being x."""
    sums = []
    for rows in blocks(len(x)):
        table = kernel(x[rows], y)  # (block, M)
        if apart:
            table = table.clone()
            table[torch.arange(len(table)), torch.arange(len(x))[rows]] = 0
        sums.append(table.sum(dim=1))
    return torch.cat(sums) / (len(y) - apart)


def blocks(num: int, size: int = BLOCK) -> Iterator[slice]:
    """Rows 0 ... num - 1, ``size`` at a time."""
    for first in range(0, num, size):
        yield slice(first, min(first + size, num))
