"""Several text encoders as one: side by side in width, one after the other along the caption, or for the pooled vector.

SDXL is two CLIPs ``SideBySide``; SD3 is that and a T5 ``OneAfterTheOther``; Flux is a T5 after a ``PooledOnly`` CLIP.
Pooled vectors are joined in the order of the encoders: one without has P = 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.interfaces import Conditioning
from ldm.text.contract import hash_contract
from ldm.text.frozen import refuse_other_widths
from ldm.text.pretrained import TextSide, beside, one_after_the_other, text_side_of


class Joined(nn.Module, ABC):
    """Base of what joins several encoders.

    Args:
        encoders: By name, in order.

    Raises:
        ValueError: There is none, or they cannot be joined so.
    """

    width: int
    length: int

    def __init__(self, *, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("encoders: name at least one")
        self.encoders = nn.ModuleDict(encoders)
        self.pooled_width = sum(self.of_each("pooled_width"))
        self.contract = {
            "encoder": type(self).__name__,
            "encoders": {name: encoder.contract for name, encoder in encoders.items()},
        }
        self.content_hash = hash_contract(self.contract)

    def of_each(self, attribute: str) -> list[Any]:
        """The same attribute of every encoder."""
        return [getattr(encoder, attribute) for encoder in self.encoders.values()]

    @abstractmethod
    def text_side(self) -> TextSide:
        """Its encoders in transformers' classes, see ``ldm/text/pretrained.py``."""

    @abstractmethod
    def join(self, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, L_i, D_i) and (B, L_i) of each encoder -> (B, L, D), (B, L)."""

    def forward(self, captions: Sequence[str]) -> Conditioning:
        """Captions, B of them -> tokens (B, L, D), mask (B, L), pooled (B, P)."""
        conds = [encoder(captions) for encoder in self.encoders.values()]
        tokens, mask = self.join([cond.tokens for cond in conds], [cond.mask for cond in conds])
        return Conditioning(
            tokens=tokens, mask=mask, pooled=torch.cat([cond.pooled for cond in conds], dim=-1)
        )

    def shares_cut(self) -> dict[str, float]:
        """Which share of the captions so far was cut, by the names of encoders joined with dots."""
        return {
            f"{name}.{inner}".strip("."): share
            for name, encoder in self.encoders.items()
            for inner, share in encoder.shares_cut().items()  # type: ignore[operator]
        }


class SideBySide(Joined):
    """Token by token one wide vector: (B, L, D_1 + D_2 + ...), as SDXL joins its CLIPs (2307.01952, section 2.1).

    Args:
        encoders: By name, in order; all of one length, and all dividing captions into the same tokens.
        width: D, stated for networks' configs to refer to, and checked; None leaves it unsaid.
        pooled_width: P, likewise.

    Raises:
        ValueError: Their lengths differ, or widths are stated otherwise.
    """

    def __init__(
        self, *, encoders: dict[str, nn.Module], width: int | None = None, pooled_width: int | None = None
    ) -> None:
        super().__init__(encoders=encoders)
        lengths = self.of_each("length")
        if len(set(lengths)) > 1:
            named = ", ".join(f"{name} {length}" for name, length in zip(encoders, lengths, strict=True))
            raise ValueError(f"encoders side by side need one length for all, and have {named}")
        self.length = lengths[0]
        self.width = sum(self.of_each("width"))
        refuse_other_widths((width, pooled_width), (self.width, self.pooled_width))

    def text_side(self) -> TextSide:
        return beside(self.encoders.values())

    def join(self, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.cat(list(tokens), dim=-1), torch.stack(list(masks)).any(dim=0)


class OneAfterTheOther(Joined):
    """One sequence: (B, L_1 + L_2 + ..., D), narrow ones filled up with zeros, as SD3 joins CLIPs and T5 (2403.03206).

    Args:
        encoders: By name, in order.
        width: D, stated for networks' configs to refer to, and checked; None leaves it unsaid.
        pooled_width: P, likewise.

    Raises:
        ValueError: Widths are stated otherwise.
    """

    def __init__(
        self, *, encoders: dict[str, nn.Module], width: int | None = None, pooled_width: int | None = None
    ) -> None:
        super().__init__(encoders=encoders)
        self.length = sum(self.of_each("length"))
        self.width = max(self.of_each("width"))
        refuse_other_widths((width, pooled_width), (self.width, self.pooled_width))

    def text_side(self) -> TextSide:
        return one_after_the_other(self.encoders.values())

    def join(self, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        padded = [F.pad(x, (0, self.width - x.shape[-1])) for x in tokens]
        return torch.cat(padded, dim=1), torch.cat(list(masks), dim=1)


class PooledOnly(nn.Module):
    """An encoder's pooled vector without its tokens: tokens (B, 0, 0), as Flux takes of its CLIP.

    Args:
        encoder: One that pools.

    Raises:
        ValueError: It has no pooled vector.
    """

    def __init__(self, *, encoder: nn.Module) -> None:
        super().__init__()
        if not encoder.pooled_width:
            raise ValueError("the encoder has no pooled vector to take: give its pooling")
        self.encoder = encoder
        self.width, self.length = 0, 0
        self.pooled_width = encoder.pooled_width
        self.contract = {"encoder": "PooledOnly", "of": encoder.contract}
        self.content_hash = hash_contract(self.contract)

    def forward(self, captions: Sequence[str]) -> Conditioning:
        """Captions, B of them -> tokens (B, 0, 0), mask (B, 0), pooled (B, P)."""
        cond = self.encoder(captions)
        return Conditioning(tokens=cond.tokens[:, :0, :0], mask=cond.mask[:, :0], pooled=cond.pooled)

    def text_side(self) -> TextSide:
        """Its encoder's, see ``ldm/text/pretrained.py``."""
        return text_side_of(self.encoder).pooled_only()

    def shares_cut(self) -> dict[str, float]:
        return self.encoder.shares_cut()  # type: ignore[operator]
