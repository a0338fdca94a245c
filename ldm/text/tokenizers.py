"""What a tokenizer must do, one that needs no file, and what is common to all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

# Captions whose tokens tell one vocabulary from another, and one version of a library's cleaning from the next.
PROBES = (
    "",
    "a photograph of an astronaut riding a horse",
    "  MiXeD   Case,\tline\nbreaks -- and (punctuation)!?  ",
    "na\u00efve caf\u00e9 \u2116 5 \u201cquoted\u201d \u65e5\u672c\u8a9e \U0001f642 fi\ufb01 &amp; 1234567890",
    "floccinaucinihilipilification's antidisestablishmentarianism",
)
# No vocabulary has tokens this long on average over a caption; what is beyond would be cut after tokenizing anyway.
CHARACTERS_PER_TOKEN = 16


class Tokenized(NamedTuple):
    """Tokens of captions, with those that begin and end them."""

    ids: list[list[int]]  # at most ``length`` in each row
    lengths: list[int]  # how many there would be if nothing were cut


class Tokenizer(Protocol):
    """Captions -> numbers of tokens."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def padding(self) -> int:
        """What fills a row behind its last token, where nothing else is asked for."""
        ...

    def __call__(self, captions: Sequence[str], length: int) -> Tokenized:
        """Caption by caption at most ``length`` tokens; of longer ones the words at the end are left out."""
        ...


class Bytes:
    """Bytes of UTF-8 as tokens, as in ByT5 (2105.13626): needs no file, so it is what random weights are tried with.

    0 is padding, 1 the end; byte b is token b + 3.
    """

    vocab_size = 259
    padding = 0
    END = 1

    def __call__(self, captions: Sequence[str], length: int) -> Tokenized:
        rows = [[b + 3 for b in caption.encode()] for caption in captions]
        return Tokenized([[*row[: length - 1], self.END] for row in rows], [len(row) + 1 for row in rows])


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of what a tokenizer makes of a few difficult captions."""
    probed = [tokenizer([caption], 64).ids for caption in PROBES]
    return hashlib.sha256(json.dumps([tokenizer.vocab_size, probed]).encode()).hexdigest()


def capped(caption: str, length: int) -> str:
    """The caption, cut between two words where it surely has more than ``length`` tokens.

    Tokenizers take time in proportion to a caption, some to its square, and web pages come as captions too.
    """
    limit = CHARACTERS_PER_TOKEN * length
    if len(caption) <= limit:
        return caption
    head, space, _ = caption[:limit].rpartition(" ")
    return head if space and head.strip() else caption[:limit]


class CutCaptions:
    """Counts captions that are longer than an encoder takes, and says so when it meets the first."""

    def __init__(self) -> None:
        self.num_captions = 0
        self.num_cut = 0

    def note(self, captions: Sequence[str], lengths: Sequence[int], length: int) -> None:
        """captions as given, the tokens each would take, and how many there may be."""
        self.num_captions += len(captions)
        long = [i for i, needed in enumerate(lengths) if needed > length]
        if long and not self.num_cut:
            caption = captions[long[0]]
            start = caption if len(caption) <= 60 else f"{caption[:60]}..."
            log.warning(
                "captions are cut to %d tokens; the first has %d: %r", length, lengths[long[0]], start
            )
        self.num_cut += len(long)

    @property
    def share(self) -> float:
        return self.num_cut / max(1, self.num_captions)
