"""A small text encoder trained from scratch together with the denoiser: nothing to download.

Words are addressed by hashing, so there is no vocabulary file and no unknown word: each word is the sum of two rows of
one table, chosen by two hashes (hash embeddings, 1709.03933), and two words share both rows about once in
``num_buckets``^2 / 2 pairs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.interfaces import Conditioning
from ldm.nn.attention import AttentionKernel, SelfAttention
from ldm.nn.layers import Activation, FeedForward
from ldm.text.contract import hash_contract
from ldm.text.tokenizers import CutCaptions, capped
from ldm.transfer import sent

WORD = re.compile(r"\w+|[^\w\s]")


def words(caption: str) -> list[str]:
    """Lower-cased words and single punctuation marks: "A red  ring!" -> ["a", "red", "ring", "!"]."""
    return WORD.findall(caption.lower())


@lru_cache(maxsize=100_000)
def buckets(word: str, num_buckets: int) -> tuple[int, int]:
    """Two independent, stable hashes of a word, each in [0, num_buckets)."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little") % num_buckets, int.from_bytes(
        digest[4:], "little"
    ) % num_buckets


class WordConvolution(nn.Module):
    """Each word and its neighbours, by a residual convolution along the caption: (B, L, width) -> same.

    What a word belongs to mostly stands beside it. Attention alone has to learn from denoising to look there, which
    takes it longer than learning to draw (docs/shapes.md); a convolution does from the start. Conformer joins the two
    for speech (2005.08100).
    """

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        words = self.norm(x) * mask[..., None]  # padding says nothing to its neighbours
        words = self.convolution(words.transpose(1, 2)).transpose(1, 2)  # (B, L, width)
        return x + self.out(F.silu(words))


class TextBlock(nn.Module):
    """Pre-norm transformer block over (B, L, width)."""

    def __init__(
        self, width: int, num_heads: int, kernel: AttentionKernel | None, activation: Activation | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width=width, num_heads=num_heads, qk_norm=False, kernel=kernel)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, activation=activation)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.feed_forward(self.norm2(x))


class LearnedTextEncoder(nn.Module):
    """Captions -> Conditioning by convolutions and a bidirectional transformer over hashed words.

    Position 0 is a learned start token, always present: it carries the pooled vector, and alone it is the null
    condition, the encoding of the empty caption.

    Args:
        width: D, also the pooled width.
        num_convolutions: Convolutions along the caption, before the transformer.
        kernel_size: How many words each of them sees, odd.
        depth: Transformer blocks.
        num_heads: Divides ``width``.
        length: L, the start token and up to ``length - 1`` words; longer captions are cut.
        num_buckets: Rows of the embedding table.
        attention: The attention kernel; ``SDPA`` when None.
        activation: Of the feed-forwards; ``GELU`` when None.

    Raises:
        ValueError: No room for a word, or an even ``kernel_size``.
    """

    def __init__(
        self,
        *,
        width: int,
        num_convolutions: int = 2,
        kernel_size: int = 5,
        depth: int = 2,
        num_heads: int = 4,
        length: int = 32,
        num_buckets: int = 8192,
        attention: AttentionKernel | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, so that a word stands in its middle")
        if length < 2:
            raise ValueError(
                f"length={length} leaves no room for a word beside the start token; use at least 2"
            )
        self.width = width
        self.pooled_width = width
        self.length = length
        self.num_buckets = num_buckets
        self.contract = {
            "encoder": "LearnedTextEncoder",
            "width": width,
            "length": length,
            "num_buckets": num_buckets,
        }
        self.content_hash = hash_contract(self.contract)
        self.cut = CutCaptions()
        self.start = nn.Parameter(torch.randn(width))
        self.embedding = nn.EmbeddingBag(num_buckets, width, mode="sum")
        # as large as words: with small ones the order of words, and so what belongs to what, is learned late
        self.positions = nn.Parameter(torch.randn(length, width))
        self.convolutions = nn.ModuleList(
            WordConvolution(width, kernel_size) for _ in range(num_convolutions)
        )
        self.blocks = nn.ModuleList(TextBlock(width, num_heads, attention, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.5**0.5)  # a word, the sum of two rows, has unit variance

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """captions -> bucket pairs (B, L - 1, 2) int64 and mask (B, L) bool."""
        ids = torch.zeros(len(captions), self.length - 1, 2, dtype=torch.int64)
        mask = torch.zeros(len(captions), self.length, dtype=torch.bool)
        mask[:, 0] = True
        found = [words(capped(caption, self.length)) for caption in captions]
        self.cut.note(captions, [len(row) + 1 for row in found], self.length)
        for row, caption_words in enumerate(found):
            pairs = [buckets(word, self.num_buckets) for word in caption_words[: self.length - 1]]
            if pairs:
                ids[row, : len(pairs)] = torch.tensor(pairs)
                mask[row, 1 : 1 + len(pairs)] = True
        return ids, mask

    def shares_cut(self) -> dict[str, float]:
        """Which share of the captions so far was cut: {"": share}."""
        return {"": self.cut.share}

    def forward(self, captions: Sequence[str]) -> Conditioning:
        """Captions, B of them -> tokens (B, L, D), mask (B, L), pooled (B, D); L is ``length`` for every batch."""
        ids, mask = (sent(tensor, self.start.device) for tensor in self.tokenize(captions))
        embedded = self.embedding(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])  # (B, L - 1, D)
        start = self.start.expand(len(captions), 1, -1)
        x = torch.cat([start, embedded], dim=1)  # (B, L, D)
        for convolution in self.convolutions:
            x = convolution(x, mask)
        x = x + self.positions
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return Conditioning(tokens=x, mask=mask, pooled=x[:, 0])
