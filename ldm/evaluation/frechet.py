"""The Fréchet distance between two sets of features, each taken for a Gaussian (FID: Heusel et al. 2017, 1706.08500).

Features arrive in batches and on several processes: what is kept are their sums, which are added up once at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, float64."""

    num: int
    mean: Tensor  # (D,)
    cov: Tensor  # (D, D), of the sample: divided by num - 1, as numpy.cov does

    @staticmethod
    def of(features: Tensor) -> Moments:
        """features (N, D)."""
        return FeatureSums.of(features).moments()


@dataclass(frozen=True)
class FeatureSums:
    """Sums over features, float64; sums of two sets of pictures are added to those of both."""

    num: int
    total: Tensor  # (D,)
    outer: Tensor  # (D, D)

    @staticmethod
    def of(features: Tensor) -> FeatureSums:
        """features (N, D)."""
        x = features.double()
        return FeatureSums(len(x), x.sum(dim=0), x.T @ x)

    def __add__(self, other: FeatureSums) -> FeatureSums:
        return FeatureSums(self.num + other.num, self.total + other.total, self.outer + other.outer)

    def packed(self) -> Tensor:
        """All of it as one tensor (D + 1, D + 1) that processes can add up in one go."""
        count = torch.tensor([float(self.num)], dtype=torch.float64, device=self.total.device)
        top = torch.cat([count, self.total])[None]  # (1, D + 1)
        return torch.cat([top, torch.cat([self.total[:, None], self.outer], dim=1)])

    @staticmethod
    def unpacked(packed: Tensor) -> FeatureSums:
        return FeatureSums(int(packed[0, 0].round()), packed[0, 1:], packed[1:, 1:])

    def moments(self) -> Moments:
        """Raises ValueError for fewer than two pictures, which have no covariance."""
        if self.num < 2:
            raise ValueError(
                f"the covariance of {self.num} pictures' features: two pictures at least are needed"
            )
        mean = self.total / self.num
        cov = (self.outer - self.num * torch.outer(mean, mean)) / (self.num - 1)
        return Moments(self.num, mean, (cov + cov.T) / 2)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (1706.08500, eq. 6).

    The root's trace comes from eigenvalues of S_b^(1/2) S_a S_b^(1/2), which is symmetric: no imaginary part to drop,
    and nothing to add to the diagonal, where features outnumber pictures.
    """
    root = symmetric_root(b.cov)
    values = torch.linalg.eigvalsh(root @ a.cov @ root).clamp(min=0)
    trace = a.cov.trace() + b.cov.trace() - 2 * values.sqrt().sum()
    return float((a.mean - b.mean).square().sum() + trace)


def frechet_influence(features: Tensor, a: Moments, b: Moments) -> Tensor:
    """By how much each picture of ``a`` pulls the distance to ``b``: (N,), with a mean of zero.

    The first term of the distance's expansion in the sample (the delta method): the distance moves like the mean of
    these, so its standard error over draws of as many pictures is std / sqrt(N). The derivative in the covariance is
    I - T, T the optimal map from the one Gaussian to the other (Takatsu 2011, "Wasserstein geometry of Gaussian
    measures", lemma 2.3); along directions that no picture of ``a`` varies in, it is left at I.

    Args:
        features: (N, D), of which ``a`` are the moments.
    """
    root = symmetric_root(b.cov)
    values, vectors = torch.linalg.eigh(root @ a.cov @ root)
    kept = values > values.max().clamp(min=0) * 1e-10
    inverse = torch.where(kept, values.clamp(min=1e-300).rsqrt(), 0.0)
    between = root @ (vectors * inverse) @ vectors.T @ root  # T, (D, D)
    slope = torch.eye(len(root), dtype=root.dtype, device=root.device) - between
    x = features.double() - a.mean  # (N, D)
    pull = ((x @ slope) * x).sum(dim=1) + 2 * x @ (a.mean - b.mean)
    return pull - pull.mean()


def symmetric_root(matrix: Tensor) -> Tensor:
    """The square root of a covariance; eigenvalues that rounding made negative count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
