"""One vector of all tokens, for networks that are steered by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Pooling(Protocol):
    """x (B, L, D) after the last layer and its norm, mask (B, L) -> pooled (B, D), or (B, 0) for none."""

    @property
    def projected(self) -> bool:
        """Whether the model's own text projection follows."""
        ...

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Unpooled:
    """No vector: P is 0."""

    projected: bool = False

    def __post_init__(self) -> None:
        if self.projected:
            raise ValueError("projected=true: without a pooled vector there is nothing to project")

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        return x[:, 0, :0]


@dataclass(frozen=True, kw_only=True)
class EndToken:
    """The token that ends the caption: what CLIP was trained to tell pictures by.

    Args:
        projected: With CLIP's text projection behind it, as in SDXL and SD3; Flux has it without.
    """

    projected: bool = False

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.take_along_dim((mask.sum(dim=1) - 1)[:, None, None], dim=1)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean over the real tokens. Imagen steers its network by a pooled vector of T5, too (2205.11487).

    Args:
        projected: With the model's text projection behind it, if it has one.
    """

    projected: bool = False

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(x.dtype)[..., None]  # (B, L, 1)
        return (x * weights).sum(dim=1) / weights.sum(dim=1)
