"""Confidence intervals for counted shares."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(num_right: int, num: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a binomial share, in [0, 1]; (0, 1) when nothing was counted.

    Unlike the share plus or minus its standard error it holds near 0 and 1 and for small counts.
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not 0 <= num_right <= num:
        raise ValueError(f"{num_right} right of {num}: give 0 <= num_right <= num")
    if num == 0:
        return 0.0, 1.0
    share = num_right / num
    scale = 1 + z**2 / num
    centre = (share + z**2 / (2 * num)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    # At none or all right one end is exact, which rounding would miss.
    return (0.0 if num_right == 0 else centre - half), (1.0 if num_right == num else centre + half)
