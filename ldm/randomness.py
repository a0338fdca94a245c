"""Randomness is addressed, not consumed.

Every random choice for a sample comes from a generator keyed by (seed, purpose, sample key, visit), so it is the
same on one process or eight, with any number of workers, before and after a restart. Two runs that differ in
nothing else see the same noise: ablations are paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


def address(*parts: str | int) -> int:
    """A 63-bit seed from the parts' names; stable over processes, machines and Python versions."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: str | int) -> Generator:
    """A CPU generator of its own for one purpose: ``generator(seed, "crop", key, visit)``."""
    return torch.Generator().manual_seed(address(*parts))


def rows(
    draw: Callable[[Generator], Tensor], seed: int, purpose: str, keys: Sequence[str], visits: Sequence[int]
) -> Tensor:
    """One row per sample, each drawn from the sample's own generator: (B, ...)."""
    one = torch.Generator()  # re-seeding is several times cheaper than making a generator per sample
    out = []
    for key, visit in zip(keys, visits, strict=True):
        one.manual_seed(address(seed, purpose, key, visit))
        out.append(draw(one))
    return torch.stack(out)


def normal(
    shape: Sequence[int], seed: int, purpose: str, keys: Sequence[str], visits: Sequence[int]
) -> Tensor:
    """Standard normal noise (B, *shape), row i tied to (seed, purpose, keys[i], visits[i])."""
    return rows(lambda g: torch.randn(tuple(shape), generator=g), seed, purpose, keys, visits)


def uniform(seed: int, purpose: str, keys: Sequence[str], visits: Sequence[int]) -> Tensor:
    """Uniform draws from [0, 1), (B,), row i tied to (seed, purpose, keys[i], visits[i])."""
    return rows(lambda g: torch.rand((), generator=g), seed, purpose, keys, visits)
