from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

from ldm.interfaces import Conditioning
from ldm.interop.sd3 import SD3Map, SD3Original
from ldm.interop.weights import to_ours, to_theirs
from tests.interop.witness import assert_agrees, translated, with_random_weights

SD3_MEDIUM: dict[str, Any] = {  # transformer/config.json of stabilityai/stable-diffusion-3-medium-diffusers
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
SD35_MEDIUM: dict[str, Any] = {  # transformer/config.json of stabilityai/stable-diffusion-3.5-medium
    **SD3_MEDIUM,
    "dual_attention_layers": list(range(13)),
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
}
VARIANTS = {"SD 3": {}, "SD 3.5 large": {"qk_norm": "rms_norm"}}
VARIANTS["SD 3.5 medium"] = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}


def tiny(**changes: Any) -> SD3Transformer2DModel:
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 24,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 12,
        "out_channels": 4,
        "pos_embed_max_size": 6,
    }
    return with_random_weights(SD3Transformer2DModel(**{**config, **changes}))


def question(height: int = 6, width: int = 10) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    torch.manual_seed(0)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 2:] = False  # the published networks attend to padding: this must not matter
    cond = Conditioning(tokens=torch.randn(2, 5, 24), mask=mask, pooled=torch.randn(2, 12))
    return torch.randn(2, 4, height, width), torch.tensor([0.37, 0.999]), cond


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_agrees_with_diffusers(changes: dict[str, Any]) -> None:
    assert_agrees(SD3Map(), tiny(**changes), *question())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_original_layout_is_what_diffusers_converts_from(changes: dict[str, Any]) -> None:
    theirs = tiny(**changes)
    ours = translated(SD3Map(), theirs)
    original = to_theirs(SD3Original().rules(ours), ours)
    converted = convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
    state = theirs.state_dict()
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
    for name, tensor in to_ours(SD3Original().rules(ours), original, ours).items():
        assert torch.equal(tensor, ours.state_dict()[name])


@pytest.mark.parametrize("config", [SD3_MEDIUM, SD35_MEDIUM], ids=["sd3_medium", "sd35_medium"])
def test_full_size_has_as_many_parameters(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        theirs, ours = SD3Transformer2DModel(**config), SD3Map().build(config)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert SD3Map().config(ours).items() >= config.items()


def test_what_has_no_counterpart_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="out_channels=8"):
        SD3Map().build({**SD3_MEDIUM, "out_channels": 8})
    with pytest.raises(ValueError, match="caption_projection_dim"):
        SD3Map().build({**SD3_MEDIUM, "caption_projection_dim": 1152})
    network = SD3Map().build(tiny().config)
    network.context_mask = True
    with pytest.raises(ValueError, match="context_mask=true"):
        SD3Map().config(network)
