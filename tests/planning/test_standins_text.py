"""Text encoders of a plan against the real ones, at small sizes."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.commands.blueprint_text import planned_text
from ldm.commands.compose import compose
from ldm.planning.ledger import Ledger, count
from ldm.planning.standins_text import PlannedJoined, PlannedText


def flops(encoder: nn.Module) -> int:
    with Ledger() as ledger, torch.no_grad():
        encoder(["a"])
    return ledger.flops


@pytest.mark.parametrize("name", ["clip_vit_l", "open_clip_vit_h", "sdxl", "sd3", "flux", "t5_xxl", "pixart"])
def test_a_stand_in_has_the_sizes_and_the_cost_of_what_it_stands_for(name: str) -> None:
    from hydra.utils import instantiate

    small = ["debug=tiny", "codec=pooled", "run_id=x", "data.train_shards=x", "callbacks.samples=null"]
    config = compose("train", [f"text_encoder={name}", *small]).config
    OmegaConf.resolve(config.text_encoder)
    stand_in = planned_text(config.text_encoder)
    assert isinstance(stand_in, PlannedText | PlannedJoined)
    with torch.device("meta"):
        real = instantiate(config.text_encoder, _convert_="all")
    assert count(stand_in.parameters()) == count(real.parameters())
    for size in ("width", "pooled_width", "length"):
        assert getattr(stand_in, size) == getattr(real, size), size
    assert flops(stand_in) == pytest.approx(flops(real), rel=0.05)
