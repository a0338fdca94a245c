"""The text contract: it changes with everything that changes an embedding, and with nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ldm.text.clip import ClipText
from ldm.text.concat import OneAfterTheOther
from ldm.text.contract import differences, fingerprint, hash_contract, refuse_other
from ldm.text.hf import HuggingFaceText
from ldm.text.labels import ClassLabels
from ldm.text.learned import LearnedTextEncoder
from ldm.text.pooling import EndToken, Mean
from ldm.text.tokenizers import Bytes, tokenizer_fingerprint
from tests.text.tiny import CLIP, T5


def clip(**options: Any) -> ClipText:
    return ClipText(**{"architecture": CLIP, "weights": None, **options})


def t5(**options: Any) -> HuggingFaceText:
    return HuggingFaceText(**{"weights": None, "architecture": T5, "length": 16, **options})


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (clip, {"layer": -2}),
        (clip, {"final_norm": False}),
        (clip, {"length": 40}),
        (clip, {"padding": 0}),
        (clip, {"pooling": EndToken()}),
        (clip, {"dtype": "bfloat16"}),
        (t5, {"layer": -2}),
        (t5, {"length": 17}),
        (t5, {"attends_padding": True}),
        (t5, {"lowercase": True}),
        (t5, {"pooling": Mean()}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),  # an address would differ by process
)
def test_every_change_is_caught_by_its_name(make: Callable[..., Any], changes: dict[str, Any]) -> None:
    before, after = make(), make(**changes)
    assert before.content_hash != after.content_hash
    name = next(iter(changes))
    with pytest.raises(
        ValueError, match=rf"this run was made with another text encoder: .*{name} was "
    ) as caught:
        refuse_other(before.contract, after.contract, what="this run")
    assert "\n" not in str(caught.value)


def test_the_same_encoder_has_the_same_contract_before_and_after_it_is_saved() -> None:
    for make in (clip, t5):
        contract = make().contract
        refuse_other(json.loads(json.dumps(contract)), contract, what="this run")
        assert hash_contract(dict(reversed(contract.items()))) == make().content_hash


def test_random_weights_are_the_same_each_time_and_draw_nothing_from_others() -> None:
    torch.manual_seed(1)
    clip(), t5()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.rand(3).equal(drawn)


def test_how_captions_are_batched_is_no_part_of_it() -> None:
    assert clip(batch_size=4).content_hash == clip().content_hash


def test_contracts_of_joined_encoders_name_the_one_that_changed() -> None:
    def joined(**options: Any) -> OneAfterTheOther:
        return OneAfterTheOther(encoders={"clip": clip(**options), "t5": t5()})

    assert joined().content_hash == joined().content_hash
    wrong = differences(joined().contract, joined(layer=-2, padding=0).contract)
    assert wrong == ["encoders.clip.layer was -1 and is -2", "encoders.clip.padding was 49407 and is 0"]


def test_learned_encoders_and_classes_have_one_too() -> None:
    def learned(**options: Any) -> LearnedTextEncoder:
        return LearnedTextEncoder(**{"width": 8, "num_heads": 2, "num_buckets": 64, **options})

    assert learned().content_hash == learned().content_hash != learned(length=9).content_hash
    assert ClassLabels(names=["a", "b"]).content_hash != ClassLabels(names=["b", "a"]).content_hash


def test_one_changed_number_among_many_changes_the_fingerprint() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(300, 70), "b": torch.randn(5).to(torch.bfloat16), "c": torch.tensor(3.0)}
    before = fingerprint(weights)
    for name, index in (("a", (17, 3)), ("a", (299, 69)), ("b", (4,)), ("c", ())):
        changed = {key: x.clone() for key, x in weights.items()}
        changed[name][index] += 0.5
        assert fingerprint(changed) != before
    assert fingerprint({**weights, "a": weights["a"].flip(0)}) != before, "rows in another order"
    assert fingerprint({**weights, "a": weights["a"].reshape(70, 300)}) != before
    assert fingerprint(dict(reversed(weights.items()))) == before
    assert fingerprint({"a": torch.empty(3, device="meta")}) == ""


def test_another_vocabulary_is_another_tokenizer() -> None:
    class Shifted(Bytes):
        def __call__(self, captions, length):
            ids, lengths = super().__call__(captions, length)
            return type(super().__call__([], 2))([[i + (i > 1) for i in row] for row in ids], lengths)

    assert (
        tokenizer_fingerprint(Bytes()) == tokenizer_fingerprint(Bytes()) != tokenizer_fingerprint(Shifted())
    )
