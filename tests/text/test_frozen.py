"""What holds of every pretrained encoder: frozen, and one embedding for a caption wherever it stands."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldm.interfaces import Conditioning, CountsCutCaptions
from ldm.text.clip import ClipText
from ldm.text.concat import OneAfterTheOther, PooledOnly, SideBySide
from ldm.text.frozen import FrozenTextEncoder
from ldm.text.hf import HuggingFaceText
from ldm.text.learned import LearnedTextEncoder
from ldm.text.pooling import EndToken, Mean, Unpooled
from ldm.text.tokenizers import Bytes, capped
from tests.text.tiny import CAPTIONS, CLIP, T5, randomize


def clip(**options: object) -> ClipText:
    made = ClipText(**{"architecture": CLIP, "weights": None, "pooling": EndToken(projected=True), **options})
    randomize(made.tower)
    return made


def t5(**options: object) -> HuggingFaceText:
    made = HuggingFaceText(
        **{"weights": None, "architecture": T5, "length": 40, "pooling": Mean(), **options}
    )
    randomize(made.model)
    return made


def sdxl() -> SideBySide:
    return SideBySide(encoders={"l": clip(pooling=Unpooled()), "g": clip(padding=0)})


def sd3() -> OneAfterTheOther:
    return OneAfterTheOther(encoders={"clips": sdxl(), "t5": t5()})


def flux() -> OneAfterTheOther:
    return OneAfterTheOther(encoders={"clip": PooledOnly(encoder=clip()), "t5": t5(pooling=Unpooled())})


ENCODERS = {"clip": clip, "t5": t5, "sdxl": sdxl, "sd3": sd3, "flux": flux}
every = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
Make = Callable[[], nn.Module]


def same(a: Conditioning, b: Conditioning) -> None:
    torch.testing.assert_close(a.tokens, b.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.pooled, b.pooled, rtol=1e-4, atol=1e-5)
    assert a.mask.equal(b.mask)


@every
def test_shapes_are_as_announced(make: Make) -> None:
    encoder = make()
    cond = encoder(CAPTIONS)
    batch = len(CAPTIONS)
    assert cond.tokens.shape == (batch, encoder.length, encoder.width)
    assert cond.mask.shape == (batch, encoder.length) and cond.mask.any(1).all()
    assert cond.pooled.shape == (batch, encoder.pooled_width)
    assert {cond.tokens.dtype, cond.pooled.dtype} == {torch.float32} and cond.mask.dtype == torch.bool


@every
def test_a_caption_has_one_embedding_whatever_else_is_in_the_batch(make: Make) -> None:
    encoder = make()
    together = encoder([*CAPTIONS, CAPTIONS[0], ""])
    for row, caption in enumerate([*CAPTIONS, CAPTIONS[0], ""]):
        same(encoder([caption]), together[row : row + 1])
    assert together.tokens[0].equal(together.tokens[-2]) and together.tokens[1].equal(together.tokens[-1])


@every
def test_what_is_kept_in_half_precision_is_what_would_be_encoded(make: Make) -> None:
    """As a cache of embeddings does: caption by caption, stored in float16, stacked to batches later."""
    encoder = make()
    kept = [encoder([caption]) for caption in CAPTIONS]
    stacked = Conditioning.concatenate(
        [
            Conditioning(tokens=c.tokens.half().float(), mask=c.mask, pooled=c.pooled.half().float())
            for c in kept
        ]
    )
    live = encoder(CAPTIONS)
    torch.testing.assert_close(stacked.tokens, live.tokens, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(stacked.pooled, live.pooled, rtol=1e-3, atol=1e-3)
    assert stacked.mask.equal(live.mask)


@every
def test_nothing_is_trained_and_nothing_is_left_to_chance(make: Make) -> None:
    encoder = make().train()
    assert not any(m.training for m in encoder.modules() if isinstance(m, FrozenTextEncoder | nn.Dropout))
    assert not any(p.requires_grad for p in encoder.parameters())
    first, second = encoder(["a cat"]), encoder(["a cat"])
    assert first.tokens.equal(second.tokens), "no dropout, in training neither"
    assert not first.tokens.requires_grad


@every
def test_autocast_around_it_changes_nothing(make: Make) -> None:
    encoder = make()
    plain = encoder(CAPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = encoder(CAPTIONS)
    assert around.tokens.equal(plain.tokens) and around.pooled.equal(plain.pooled)


@every
def test_shapes_alone_can_be_built(make: Make) -> None:
    real = make()
    with torch.device("meta"):
        encoder = make()
        cond = encoder(["a cat"])
    assert all(x.is_meta for x in (*encoder.parameters(), *encoder.buffers()))
    assert cond.tokens.shape == (1, real.length, real.width)
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in real.parameters())


def test_each_different_caption_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, sizes = clip(batch_size=2), []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda ids, mask: sizes.append(len(ids)) or encode(ids, mask))
    cond = encoder(["a", "", "b", "", "a", "", "c", ""])
    assert sizes == [2, 2], "a, b, c and the empty caption, two at a time"
    same(cond[1:4:2], Conditioning.concatenate([encoder([""]), encoder([""])]))


def test_networks_that_train_get_no_gradient_into_it() -> None:
    encoder, network = clip(), nn.Linear(32, 1)
    network(encoder(["a cat"]).tokens).sum().backward()
    assert network.weight.grad is not None and all(p.grad is None for p in encoder.parameters())


def test_lower_case_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    loud, quiet = "A Red CAT ", "a red cat"
    assert not t5()([loud]).tokens.equal(t5()([quiet]).tokens)
    assert t5(lowercase=True)([loud]).tokens.equal(t5()([quiet]).tokens)


# --- captions that are too long ----------------------------------------------------------------------------------


def test_cut_captions_are_counted_and_the_first_is_told(caplog: pytest.LogCaptureFixture) -> None:
    encoder = clip(length=8)
    with caplog.at_level(logging.WARNING):
        encoder(["a cat", "one two three four five six seven", "a dog", "x " * 5000])
        encoder(["one two three four five six seven"])
    assert encoder.shares_cut() == {"": 3 / 5}
    assert [record.getMessage() for record in caplog.records] == [
        "captions are cut to 8 tokens; the first has 9: 'one two three four five six seven'"
    ]


@pytest.mark.parametrize("encoder", [sd3(), LearnedTextEncoder(width=8, length=4, num_heads=2)])
def test_every_encoder_counts(encoder: nn.Module) -> None:
    assert isinstance(encoder, CountsCutCaptions)
    encoder(["one two three four five six seven eight nine ten", "a"])
    assert set(encoder.shares_cut().values()) <= {0.0, 0.5} and max(encoder.shares_cut().values()) == 0.5


def test_joined_encoders_count_by_their_names() -> None:
    assert set(sd3().shares_cut()) == {"clips.l", "clips.g", "t5"}
    assert set(flux().shares_cut()) == {"clip", "t5"}


def test_a_web_page_is_cut_before_it_is_tokenized() -> None:
    seen = []

    class Watched(Bytes):
        def __call__(self, captions, length):
            seen.extend(map(len, captions))
            return super().__call__(captions, length)

    encoder = t5(tokenizer=Watched(), length=10)
    seen.clear()
    encoder(["word " * 1_000_000])
    assert seen == [159]
    assert capped("ab cd " * 100, 2) == "ab cd ab cd ab cd ab cd ab cd a"[:29]
    assert capped("x" * 100, 2) == "x" * 32 and capped("short", 77) == "short"


def test_bytes_are_tokens() -> None:
    ids, lengths = Bytes()(["ab", "", "\u00e9"], 3)
    assert ids == [[100, 101, 1], [1], [198, 172, 1]] and lengths == [3, 1, 3]
    assert Bytes()(["abcdef"], 3) == ([[100, 101, 1]], [7])


# --- joining -----------------------------------------------------------------------------------------------------


def test_side_by_side_is_wide_and_one_after_the_other_is_long() -> None:
    wide = sdxl()(["a cat"])
    left, right = clip(pooling=Unpooled())(["a cat"]), clip(padding=0)(["a cat"])
    assert wide.tokens[..., :32].equal(left.tokens) and wide.tokens[..., 32:].equal(right.tokens)
    assert wide.pooled.equal(right.pooled) and wide.mask.equal(left.mask)
    words = t5()(["a cat"])
    long = sd3()(["a cat"])
    assert long.tokens[:, :77, :64].equal(wide.tokens) and not long.tokens[:, :77, 64:].any()
    assert long.tokens[:, 77:].equal(words.tokens)
    assert long.mask.equal(torch.cat([wide.mask, words.mask], dim=1))
    assert long.pooled.equal(torch.cat([wide.pooled, words.pooled], dim=1))
    only = flux()(["a cat"])
    assert only.tokens.equal(words.tokens) and only.pooled.equal(clip()(["a cat"]).pooled)


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(ValueError, match="one length for all, and have a 77, b 40"):
        SideBySide(encoders={"a": clip(), "b": t5()})
    with pytest.raises(ValueError, match="no pooled vector to take"):
        PooledOnly(encoder=clip(pooling=Unpooled()))
    with pytest.raises(ValueError, match="name at least one"):
        OneAfterTheOther(encoders={})
    with pytest.raises(ValueError, match="width=9 is stated, but this text encoder has width=64"):
        SideBySide(encoders={"a": clip(), "b": clip()}, width=9)
