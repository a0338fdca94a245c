"""What a text side is made of, in the classes of transformers: for those who write it down for other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.text.pooling import Pooling


@dataclass(frozen=True, kw_only=True)
class PretrainedText:
    """One text model, and what is taken of it.

    Attributes:
        model: Gives it as a model of transformers, with its weights.
        save_tokenizer: Writes its tokenizer into a folder, in the files that transformers reads; returns the name of
            its class there.
        dtype: Of the weights.
        layer, final_norm, length, attends_padding, lowercase: As with ``HuggingFaceText``.
        pooling: Of the pooled vector.
        caution: What the tokenizer of transformers does otherwise, in words; "" where there is nothing to say.
    """

    model: Callable[[], Any]
    save_tokenizer: Callable[[Path], str]
    dtype: torch.dtype
    layer: int
    final_norm: bool
    pooling: Pooling
    length: int
    attends_padding: bool
    lowercase: bool
    caution: str = ""


@dataclass(frozen=True)
class TextSide:
    """Text models in their order, and how they are joined.

    ``arrangement`` names each by its kind in transformers: "clip beside clip, then t5".
    """

    models: tuple[PretrainedText, ...]
    arrangement: str

    def pooled_only(self) -> TextSide:
        """Without the tokens."""
        return replace(self, arrangement=f"{_bracketed(self.arrangement)} pooled only")


def text_side_of(encoder: nn.Module) -> TextSide:
    """
    Raises:
        ValueError: It is none of the models of transformers, nor made up of them.
    """
    say = getattr(encoder, "text_side", None)
    if say is None:
        raise ValueError(f"transformers has no class for a {type(encoder).__name__}")
    return say()


def beside(encoders: Iterable[nn.Module]) -> TextSide:
    """Encoders side by side; see ``text_side_of``."""
    return _joined(encoders, " beside ", _bracketed)


def one_after_the_other(encoders: Iterable[nn.Module]) -> TextSide:
    """Encoders along the caption; see ``text_side_of``."""
    return _joined(encoders, ", then ", str)


def _joined(encoders: Iterable[nn.Module], how: str, within: Callable[[str], str]) -> TextSide:
    sides = [text_side_of(encoder) for encoder in encoders]
    models = tuple(model for side in sides for model in side.models)
    return TextSide(models, how.join(within(side.arrangement) for side in sides))


def _bracketed(arrangement: str) -> str:
    return f"({arrangement})" if " " in arrangement else arrangement
