from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hydra.utils import instantiate

from ldm.commands.compose import compose
from ldm.interfaces import Conditioning
from ldm.interop.unet import UNetMap
from ldm.interop.weights import to_ours, to_theirs
from tests.interop.witness import assert_agrees, translated, with_random_weights

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD15: dict[str, Any] = {  # unet/config.json of stable-diffusion-v1-5/stable-diffusion-v1-5
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
}
SD21: dict[str, Any] = {  # unet/config.json of stabilityai/stable-diffusion-2-1
    **SD15,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {  # unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
    **SD21,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
    "upcast_attention": None,
}
TINY: dict[str, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 4, "use_linear_projection": False},
    "sd2": {"attention_head_dim": [2, 4]},
    "sdxl": {
        "down_block_types": ("DownBlock2D", CROSS_DOWN),
        "up_block_types": (CROSS_UP, "UpBlock2D"),
        "transformer_layers_per_block": [1, 2],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 6,
        "projection_class_embeddings_input_dim": 10 + 6 * 6,
    },
    "classes": {"num_class_embeds": 4},
    "pooled": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10},
    "two blocks a level": {"layers_per_block": 2},
}


def tiny(case: str) -> UNet2DConditionModel:
    config = {
        "block_out_channels": (16, 32),
        "down_block_types": (CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", CROSS_UP),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
        "use_linear_projection": True,
    }
    return with_random_weights(UNet2DConditionModel(**{**config, **TINY[case]}))


def question(height: int = 6, width: int = 10) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    torch.manual_seed(0)
    cond = Conditioning(
        tokens=torch.randn(2, 5, 12),
        mask=torch.ones(2, 5, dtype=torch.bool),
        pooled=torch.randn(2, 10),
        labels=torch.tensor([1, 3]),
        sizes=torch.tensor([[512, 384, 0, 16, 512, 512], [1024, 1024, 3, 0, 768, 1344]]),
    )
    return torch.randn(2, 4, height, width), torch.tensor([0.37, 0.999]), cond


@pytest.mark.parametrize("case", TINY)
def test_agrees_with_diffusers(case: str) -> None:
    assert_agrees(UNetMap(), tiny(case), *question())


@pytest.mark.parametrize("size", [(7, 9), (1, 5)])
def test_agrees_on_odd_sizes(size: tuple[int, int]) -> None:
    theirs = tiny("sd1")
    x, t, cond = question(*size)
    ours = translated(UNetMap(), theirs)
    torch.testing.assert_close(ours(x, t, cond), UNetMap().call(theirs, x, t, cond), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, config", {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}.items())
def test_published_configurations(name: str, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(config)
        ours = instantiate(compose("train", [f"network={name}", "run_id=x"]).config.network)
        built = UNetMap().build(config)
    assert ours.architecture == built.architecture
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
    written = UNetMap().config(ours)
    full = dict(theirs.config)
    assert {key: full[key] for key in written if full[key] != written[key]} == {}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"act_fn": "gelu"}, "act_fn='gelu' has no counterpart here"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep' has no counterpart"),
        ({"new_feature": 3}, "new_feature=3 has no counterpart here"),
        (
            {"down_block_types": ["DownBlock2D"] * 4},
            "the blocks DownBlock2D and CrossAttnUpBlock2D at one level",
        ),
        ({"layers_per_block": [1, 2, 2, 2]}, "layers_per_block=.* has no counterpart here, only one"),
    ],
)
def test_what_ours_has_not_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetMap().build({**SD15, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"context_mask": True}, "pipelines attend to padding; say context_mask=false"),
        ({"middle_depth": 0}, "middle_depth=0"),
        ({"transformer_depth": [1, 2], "middle_depth": 1}, "middle_depth=1"),
        ({"num_classes": 3, "pooled_width": 10}, "num_classes beside pooled_width"),
    ],
)
def test_what_theirs_has_not_is_named(change: dict[str, Any], message: str) -> None:
    ours = UNetMap().build(tiny("sd2").config)
    other = type(ours)(**{**ours.architecture, **change})
    with pytest.raises(ValueError, match=message):
        UNetMap().config(other)


def test_weights_of_another_network_are_refused_by_name() -> None:
    theirs = tiny("sd2")
    ours = UNetMap().build(tiny("two blocks a level").config)

    with pytest.raises(ValueError, match=r"the file lacks .*resnets\.1"):
        to_ours(UNetMap().rules(ours), theirs.state_dict(), ours)


def test_a_network_with_weights_in_channels_last_is_written_like_any_other() -> None:

    ours = translated(UNetMap(), tiny("sd1"))
    expected = to_theirs(UNetMap().rules(ours), ours)
    ours.to(memory_format=torch.channels_last)
    written = to_theirs(UNetMap().rules(ours), ours)
    assert all(
        torch.equal(written[name], x) and written[name].is_contiguous() for name, x in expected.items()
    )
    x, t, cond = question()
    ours(x, t, replace(cond, labels=None))
