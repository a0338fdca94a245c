from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ldm.commands.guide import check_training
from ldm.sampling.guidance import Autoguidance, ClassifierFree
from ldm.training.packaged import Packaged


def test_a_training_cannot_be_guided_by_a_second_model() -> None:
    check_training(SimpleNamespace(guidance=ClassifierFree(scale=2.0)))
    check_training(SimpleNamespace())  # an autoencoder's
    with pytest.raises(ValueError, match="a training does not load"):
        check_training(SimpleNamespace(guidance=Autoguidance(scale=2.0, run="small")))


def test_an_optimizer_for_whole_weights_is_refused_where_they_are_spread() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    eight_bit = SimpleNamespace(optimizer=Packaged(optimizer=partial(bitsandbytes.optim.AdamW8bit, lr=1e-4)))
    check_training(eight_bit)
    check_training(SimpleNamespace(optimizer=Packaged(optimizer=torch.optim.SGD)), sharded=True)
    with pytest.raises(
        ValueError, match=r"optimizer=AdamW8bit does not go with trainer=fsdp.*use optimizer=adamw"
    ):
        check_training(eight_bit, sharded=True)
