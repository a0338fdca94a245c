"""Exponential integrators: a step's integral of x0, exact for polynomials in lam = log(alpha / sigma).

DPM-Solver++ (Lu et al. 2022, 2211.01095), UniP and UniC (Zhao et al. 2023, 2302.04867) all put a polynomial through x0
at some points in lam and integrate it against exp(lam) over the step. Positions are stated as ``tau``, 0 where the
step begins and 1 where it ends; earlier points have tau < 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ldm.sampling.walk import Row, Step


def weights(taus: Sequence[float], h: float) -> list[float]:
    """The weights w with ``sum(w[k] * f(taus[k])) = h * integral from 0 to 1 of exp(-h (1 - tau)) f(tau)``.

    Exact for polynomials f of degree less than ``len(taus)``. Lagrange's basis, integrated term by term.

    Args:
        taus: Where x0 is known, distinct.
        h: The step's length in lam, finite.
    """
    moments = _moments(len(taus), h)
    found = []
    for tau in taus:
        basis = [1.0]  # coefficients of the polynomial that is 1 at tau and 0 at the others, rising powers
        for other in taus:
            if other != tau:
                shifted, scaled = [0.0, *basis], [-other * c for c in basis] + [0.0]
                basis = [(a + b) / (tau - other) for a, b in zip(shifted, scaled, strict=True)]
        found.append(sum(c * moment for c, moment in zip(basis, moments, strict=True)))
    return found


def _moments(num: int, h: float) -> list[float]:
    """h * integral from 0 to 1 of exp(-h (1 - tau)) tau^n, for n = 0 ... num - 1 (the phi functions, up to factors).

    Integrated by parts, each follows from the one before it, ``m[n] = 1 - n / h * m[n - 1]``, which loses digits where
    h is small; there it is turned round, and the last one comes from its power series.
    """
    if h > 1:
        found = [-math.expm1(-h)]
        for n in range(1, num):
            found.append(1 - n / h * found[-1])
        return found
    term = last = h / num
    for k in range(num + 1, num + 20):
        term *= -h / k
        last += term
    found = [last]
    for n in range(num - 1, 0, -1):
        found.insert(0, h / n * (1 - found[0]))
    return found


def taus_behind(steps: Sequence[Step], i: int, num: int) -> list[float]:
    """The last ``num`` points where x0 is known as step i begins, newest first: 0 and then ever further back.

    Fewer where the walk began later, and none with alpha = 0, which lies infinitely far back.
    """
    taus, behind = [0.0], 0.0
    for earlier in reversed(steps[max(0, i - num + 1) : i]):
        behind += earlier.h
        if math.isinf(behind):
            break
        taus.append(-behind / steps[i].h)
    return taus


def order_of(steps: Sequence[Step], i: int, order: int) -> int:
    """How many x0 step i may use: no more than ``order``, and no more than steps are left in a walk to sigma = 0.

    The last of these steps has order 1 by need (its h is infinite), the one before it order 2 by the custom of the
    reference implementations of both papers, where it keeps short walks stable.
    """
    left = len(steps) - i if steps[-1].sigma1 == 0 else order
    return min(order, left, len(taus_behind(steps, i, order)))


def predictor(steps: Sequence[Step], i: int, order: int, *, bh1: bool = False) -> Row:
    """Step i by a polynomial through the last x0, as many as ``order_of`` grants.

    Args:
        steps: The whole walk.
        i: The number of the step.
        order: 1 is DDIM, 2 DPM-Solver++(2M), more the exact integral.
        bh1: With order 2, UniPC's B(h) = h in place of 1 - exp(-h), which is "bh2" and DPM-Solver++(2M).
    """
    step, order = steps[i], order_of(steps, i, order)
    whole = 1 - step.ratio
    if order == 1:
        guesses = [whole]
    elif order == 2:
        # the slope over the last step, and half of B(h) in place of its exact integral, as both papers have it
        slope = 0.5 * (step.h if bh1 else whole) * step.h / steps[i - 1].h
        guesses = [whole + slope, -slope]
    else:
        guesses = weights(taus_behind(steps, i, order), step.h)
    return Row(x=step.sigma1 / step.sigma, x0=tuple(step.alpha1 * w for w in guesses))
