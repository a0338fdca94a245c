"""Losses that stand out from the last ones, told without sorting all of them at every step."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

MAD_TO_SIGMA = 1.4826  # the standard deviation of a normal law over its median absolute deviation
FEWEST = 32  # losses from which on a threshold is believed


class LastLosses:
    """The losses of the last steps, in the order they came in and sorted.

    Args:
        size: How many are kept.
        losses: To begin with, the oldest first.
    """

    def __init__(self, size: int, losses: Iterable[float] = ()) -> None:
        self.in_order = deque(losses, maxlen=size)
        self._sorted = sorted(self.in_order)

    def __len__(self) -> int:
        return len(self.in_order)

    def add(self, loss: float) -> None:
        if len(self.in_order) == self.in_order.maxlen:
            del self._sorted[bisect_left(self._sorted, self.in_order[0])]
        self.in_order.append(loss)
        insort(self._sorted, loss)

    def threshold(self, spike: float) -> float:
        """Median + spike * 1.4826 * median absolute deviation; infinite for too few losses."""
        if len(self) < FEWEST:
            return math.inf
        middle = _middle(self._sorted)
        return middle + spike * MAD_TO_SIGMA * _middle(sorted(abs(loss - middle) for loss in self._sorted))

    def is_spike(self, loss: float, spike: float) -> bool:
        """Whether ``loss`` is above the threshold; most are so far below that the deviations need not be sorted."""
        if len(self) < FEWEST:
            return False
        n, middle = len(self), _middle(self._sorted)
        # Fewer than half lie strictly between these two places, so the deviations' median is at least the smaller
        # of their distances.
        lower, upper = self._sorted[n // 4 + 1], self._sorted[n // 4 + 1 + n // 2]
        at_least = max(0.0, min(middle - lower, upper - middle))
        return loss > middle + spike * MAD_TO_SIGMA * at_least and loss > self.threshold(spike)


def _middle(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
