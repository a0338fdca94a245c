"""The single-file layout; diffusers' own conversion from it is the witness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from ldm.interop.autoencoder_kl import AutoencoderKLMap
from ldm.interop.compvis import CompVisAutoencoder, CompVisUNet, averaged_unet, left_alone, part
from ldm.interop.unet import UNetMap
from ldm.interop.weights import to_ours, to_theirs
from tests.interop import test_autoencoder_kl, test_unet
from tests.interop.witness import translated


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], x) and found[name].shape == x.shape for name, x in wanted.items())


@pytest.mark.parametrize("case", ["sd1", "sd2", "sdxl", "classes", "pooled", "two blocks a level"])
def test_unet_is_what_diffusers_converts_from(case: str) -> None:
    theirs = test_unet.tiny(case)
    ours = translated(UNetMap(), theirs)
    rules = CompVisUNet().rules(ours)
    original = to_theirs(rules, ours)
    assert all(name.startswith("model.diffusion_model.") for name in original)
    assert_same(convert_ldm_unet_checkpoint(dict(original), dict(theirs.config)), theirs.state_dict())
    assert_same(to_ours(rules, original, ours), ours.state_dict())


@pytest.mark.parametrize("case", ["sd", "sd3", "three levels, no attention"])
def test_autoencoder_is_what_diffusers_converts_from(case: str) -> None:
    theirs = test_autoencoder_kl.tiny(case)
    ours = translated(AutoencoderKLMap(), theirs)
    rules = CompVisAutoencoder().rules(ours)
    original = to_theirs(rules, ours)
    assert all(name.startswith("first_stage_model.") for name in original)
    assert_same(convert_ldm_vae_checkpoint(dict(original), dict(theirs.config)), theirs.state_dict())
    assert_same(to_ours(rules, original, ours), ours.state_dict())


def test_projections_are_convolutions_in_sd1_and_linear_later() -> None:
    name = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    for case, shape in (("sd1", (16, 16, 1, 1)), ("sd2", (16, 16))):
        ours = translated(UNetMap(), test_unet.tiny(case))
        assert to_theirs(CompVisUNet().rules(ours), ours)[name].shape == shape


def test_a_file_is_taken_apart() -> None:
    names = {
        "model.diffusion_model.out.0.weight": 1.0,
        "model.diffusion_model.time_embed.0.bias": 2.0,
        "model_ema.diffusion_modelout0weight": 3.0,
        "model_ema.diffusion_modeltime_embed0bias": 4.0,
        "first_stage_model.quant_conv.bias": 5.0,
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": 6.0,
        "betas": 7.0,
    }
    tensors = {name: torch.tensor(value) for name, value in names.items()}
    assert part(tensors, "first_stage_model.") == {"first_stage_model.quant_conv.bias": torch.tensor(5.0)}
    average = averaged_unet(tensors)
    assert {name: x.item() for name, x in average.items()} == {
        "model.diffusion_model.out.0.weight": 3.0,
        "model.diffusion_model.time_embed.0.bias": 4.0,
    }
    assert left_alone(tensors) == (
        "left alone: the average (model_ema.*: 2 tensors), the text encoder (cond_stage_model.*: 1 tensors), "
        "betas (betas.*: 1 tensors)"
    )
    assert left_alone(part(tensors, "model.diffusion_model.")) == ""
    del tensors["model_ema.diffusion_modelout0weight"]
    with pytest.raises(ValueError, match="diffusion_modelout0weight is missing"):
        averaged_unet(tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"context_width": None}, "no context_width"),
        ({"middle_depth": 0}, "middle_depth=0"),
        ({"num_classes": 2, "pooled_width": 8}, "both num_classes and pooled_width"),
    ],
)
def test_a_unet_that_the_layout_cannot_hold_is_refused(change: dict[str, Any], message: str) -> None:
    ours = UNetMap().build(test_unet.tiny("sd2").config)
    with pytest.raises(ValueError, match=message):
        CompVisUNet().rules(type(ours)(**{**ours.architecture, **change}))


def test_an_autoencoder_that_the_layout_cannot_hold_is_refused() -> None:
    ours = AutoencoderKLMap().build(test_autoencoder_kl.tiny("sd").config)
    with pytest.raises(ValueError, match="patch_size=2"):
        CompVisAutoencoder().rules(type(ours)(**{**ours.architecture, "patch_size": 2}))
