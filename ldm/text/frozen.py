"""What all pretrained text encoders have in common: they are frozen, and only tokens and layers tell them apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.text.contract import fingerprint, hash_contract
from ldm.text.tokenizers import CutCaptions, Tokenizer, capped, tokenizer_fingerprint
from ldm.transfer import sent

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class FrozenTextEncoder(nn.Module, ABC):
    """Captions -> Conditioning by a model that is not trained: no gradients, no dropout, not in checkpoints.

    A caption's embedding depends on the caption alone. Each different caption of a batch is encoded once, in the
    model's own precision whatever autocast is on, so training, sampling and a cache of embeddings see the same. The
    empty caption is tokenized like any other: its embedding is the null condition.

    A subclass ends its ``__init__`` with ``self.finish()``.

    Args:
        tokenizer: Captions -> tokens.
        length: L, tokens of every caption, the rest padding.
        padding: The token that fills up; None takes the tokenizer's own.
        lowercase: Lower the case of captions and strip spaces at their ends before the tokenizer sees them.
        dtype: Of weights and of what is computed; embeddings come as float32.
        batch_size: How many captions are encoded at once; None for all.
        stated: D and P as a config states them, None where it does not: see ``refuse_other_widths``.

    Raises:
        ValueError: No room for tokens, or a batch of none.
    """

    width: int
    pooled_width: int
    contract: dict[str, Any]
    content_hash: str

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        length: int,
        padding: int | None,
        lowercase: bool,
        dtype: Dtype,
        batch_size: int | None,
        stated: tuple[int | None, int | None],
    ) -> None:
        super().__init__()
        if length < 2:
            raise ValueError(
                f"length={length} leaves no room for a word beside the end token; use at least 2"
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1, or null for all captions at once")
        self.tokenizer = tokenizer
        self.length = length
        self.padding = padding
        self.lowercase = lowercase
        self.dtype = dtype
        self.batch_size = batch_size
        self.stated = stated
        self.cut = CutCaptions()

    # --- what a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, L) int64, mask (B, L) bool -> tokens (B, L, D), pooled (B, P)."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its part of the contract, as plain data: architecture, layer, norm, pooling."""

    def finish(self) -> None:
        """Freeze, and work out the contract; the weights have their dtype, ``width`` and ``pooled_width`` are set."""
        refuse_other_widths(self.stated, (self.width, self.pooled_width))
        self.requires_grad_(False).eval()
        weights = fingerprint(self.state_dict())
        if weights:  # on the meta device nothing is read, a vocabulary neither
            self.padding = self.tokenizer.padding if self.padding is None else self.padding
        self.contract = {
            "encoder": type(self).__name__,
            **self.describe(),
            "width": self.width,
            "pooled_width": self.pooled_width,
            "length": self.length,
            "padding": self.padding,
            "lowercase": self.lowercase,
            "dtype": self.dtype,
            "tokenizer": tokenizer_fingerprint(self.tokenizer) if weights else "",
            "weights": weights,
        }
        self.content_hash = hash_contract(self.contract)

    # --- captions to conditioning --------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> FrozenTextEncoder:
        """Stays in evaluation mode: a frozen encoder has no other."""
        return super().train(False)

    def forward(self, captions: Sequence[str]) -> Conditioning:
        """Captions, B of them -> tokens (B, L, D), mask (B, L), pooled (B, P); float32."""
        different = list(dict.fromkeys(captions))
        ids, mask = self.tokenize(different)
        device = next(self.parameters()).device
        ids, mask = sent(ids, device), sent(mask, device)
        size = self.batch_size or len(different)
        with torch.no_grad(), _own_precision(device):
            encoded = [
                self.encode(i, m) for i, m in zip(ids.split(size), mask.split(size), strict=True)
            ]  # ((B', L, D), (B', P))
        tokens, pooled = (torch.cat(parts).float() for parts in zip(*encoded, strict=True))
        cond = Conditioning(tokens=tokens, mask=mask, pooled=pooled)
        if len(different) == len(captions):
            return cond
        place = {caption: row for row, caption in enumerate(different)}
        return cond[sent(torch.tensor([place[caption] for caption in captions]), device)]

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """captions -> ids (B, L) int64 and mask (B, L) bool, on the CPU."""
        texts = [capped(caption, self.length) for caption in captions]
        was_capped = [len(text) < len(caption) for text, caption in zip(texts, captions, strict=True)]
        if self.lowercase:
            texts = [text.lower().strip() for text in texts]
        rows, lengths = self.tokenizer(texts, self.length)
        # What was cut off before tokenizing would have taken a token at least.
        needed = [max(n, self.length + 1) if cut else n for n, cut in zip(lengths, was_capped, strict=True)]
        self.cut.note(captions, needed, self.length)
        padding = self.tokenizer.padding if self.padding is None else self.padding
        ids = torch.full((len(rows), self.length), padding, dtype=torch.int64)
        mask = torch.zeros(len(rows), self.length, dtype=torch.bool)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return ids, mask

    def shares_cut(self) -> dict[str, float]:
        """Which share of the captions so far was cut: {"": share}."""
        return {"": self.cut.share}


def _own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, where there is one: the meta device has none."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Random weights inside are the same each time, so that a run with them can be resumed and sampled from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def on_meta() -> bool:
    """Whether what is built now has shapes only, ``with torch.device("meta")``: no file is read then."""
    return torch.get_default_device().type == "meta"


def refuse_other_widths(stated: tuple[int | None, int | None], own: tuple[int, int]) -> None:
    """D and P follow from the model, but a network's config can only refer to what a text encoder's config states.

    Raises:
        ValueError: They are stated otherwise.
    """
    for name, said, true in zip(("width", "pooled_width"), stated, own, strict=True):
        if said not in (None, true):
            raise ValueError(f"{name}={said} is stated, but this text encoder has {name}={true}: state that")


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, padding: int | None) -> None:
    """
    Raises:
        ValueError: The tokenizer, or who chose the padding, knows tokens that the model does not.
    """
    if padding is not None and not 0 <= padding < vocab_size:
        raise ValueError(f"padding={padding} is none of the model's {vocab_size} tokens")
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the text model knows {vocab_size}: give the "
            f"tokenizer that belongs to the model, or a larger vocab_size"
        )


def layer_index(layer: int, num_layers: int) -> int:
    """How many blocks run before the wanted layer's output; ``layer`` counts from the end, -1 the last.

    Raises:
        ValueError: There is no such layer.
    """
    if not -num_layers <= layer <= -1:
        raise ValueError(
            f"layer={layer} must be between -{num_layers}, the first of {num_layers}, and -1, the last"
        )
    return num_layers + layer + 1
