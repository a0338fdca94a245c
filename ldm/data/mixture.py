"""Several sources in fixed proportions, each with its own order and its own visit counters.

The positions of a run are cut into blocks of 65,536. Each block holds every source exactly as often as its weight says,
in a shuffled order; so how often a source was taken before any position is known without walking there, and a restart
is as immediate as with one source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ldm.data.order import Walk, permutation
from ldm.randomness import address

BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A walk over the samples of several sources, numbered one source after the other.

    A source that is drawn more often than it has samples begins its next epoch by itself: a sample's visit is counted
    within its source.

    Args:
        walks: one per source.
        sizes: samples in each source, walked or not; the number of its first sample is the sum of those before it.
        weights: how often each source is drawn, relative to the others; kept to within 1 in 65,536.
        seed: of the order of sources.
    """

    walks: Sequence[Walk]
    sizes: Sequence[int]
    weights: Sequence[float]
    seed: int = 0
    quotas: np.ndarray = field(init=False, repr=False, compare=False)  # (S,) of each block
    _offsets: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self.walks) == len(self.sizes) == len(self.weights) > 0:
            raise ValueError("a mixture needs one walk, one size and one weight per source")
        object.__setattr__(self, "quotas", quotas(self.weights))
        object.__setattr__(self, "_offsets", np.cumsum(self.sizes) - np.asarray(self.sizes))

    @property
    def num_samples(self) -> int:
        """As many positions as all sources have samples; what an epoch is, is a matter of taste here."""
        return sum(walk.num_samples for walk in self.walks)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices, visits = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        source, place = self.sources(positions)
        for number in np.unique(source).tolist():
            of_source = source == number
            found, visits[of_source] = self.walks[number](place[of_source])
            indices[of_source] = found + self._offsets[number]
        return indices, visits

    def sources(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """positions (n,) -> (number of the source (n,), how often that was taken before (n,))."""
        blocks, within = np.divmod(np.asarray(positions, dtype=np.int64), BLOCK)
        source, place = np.empty_like(blocks), np.empty_like(blocks)
        for block in np.unique(blocks).tolist():
            of_block = blocks == block
            drawn, before = self._block(block)
            source[of_block] = drawn[within[of_block]]
            place[of_block] = block * self.quotas[source[of_block]] + before[within[of_block]]
        return source, place

    def taken(self, position: int) -> list[int]:
        """How many samples of each source stand before ``position``."""
        block, within = divmod(position, BLOCK)
        drawn, _ = self._block(block)
        return (block * self.quotas + np.bincount(drawn[:within], minlength=len(self.quotas))).tolist()

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        return _block(address(self.seed, "sources", block), tuple(self.quotas.tolist()))


@lru_cache(maxsize=4)
def _block(seed: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The source at each place of a block (BLOCK,), and how often it stood in the block before (BLOCK,)."""
    of_source = np.asarray(quotas)
    drawn = np.repeat(np.arange(len(of_source)), of_source)[permutation(seed, BLOCK)]
    before = np.empty(BLOCK, np.int64)
    by_source = np.argsort(drawn, kind="stable")
    before[by_source] = np.arange(BLOCK) - np.repeat(np.cumsum(of_source) - of_source, of_source)
    return drawn, before


def quotas(weights: Sequence[float]) -> np.ndarray:
    """How often each source stands in a block: whole numbers with the sum 65,536, by largest remainders.

    Raises:
        ValueError: a weight that is not positive, or too small beside the others to be drawn at all.
    """
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"weights of sources must be positive numbers, not {list(weights)}")
    shares = np.asarray(weights, dtype=np.float64) / sum(weights) * BLOCK
    whole = np.floor(shares).astype(np.int64)
    for source in np.argsort(whole - shares, kind="stable")[: BLOCK - int(whole.sum())]:
        whole[source] += 1
    if whole.min() < 1:
        raise ValueError(
            f"a weight of {min(weights)} beside {max(weights)} is less than one sample in {BLOCK:,}"
        )
    return whole
