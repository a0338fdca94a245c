from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL as Theirs
from hydra.utils import instantiate
from torch import nn

from ldm.commands.compose import compose
from ldm.interop.autoencoder_kl import AutoencoderKLMap
from ldm.interop.weights import to_ours, to_theirs
from tests.interop.witness import translated, with_random_weights

SD: dict[str, Any] = {  # vae/config.json of stable-diffusion-v1-5/stable-diffusion-v1-5
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD3: dict[str, Any] = {  # vae/config.json of stabilityai/stable-diffusion-3-medium-diffusers
    **SD,
    "force_upcast": True,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
TINY: dict[str, dict[str, Any]] = {
    "sd": {},
    "sd3": {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 3},
    "three levels, no attention": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "mid_block_add_attention": False,
    },
}


def tiny(case: str) -> Theirs:
    config = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
    }
    return with_random_weights(Theirs(**{**config, **TINY[case]}))


@pytest.mark.parametrize("case", TINY)
def test_agrees_with_diffusers(case: str) -> None:
    theirs = tiny(case)
    ours = translated(AutoencoderKLMap(), theirs)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    posterior = theirs.encode(images).latent_dist
    moments = ours.encode(images)
    torch.testing.assert_close(moments, posterior.parameters, rtol=0, atol=1e-5)
    latents = torch.randn(moments.chunk(2, dim=1)[0].shape)
    decoded, expected = ours.decode(latents), theirs.decode(latents).sample
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)

    probe_moments, probe_images = torch.randn_like(moments), torch.randn_like(images)
    for a, b in ((moments, decoded), (posterior.parameters, expected)):
        (
            (a * probe_moments).sum() / a.numel() ** 0.5 + (b * probe_images).sum() / b.numel() ** 0.5
        ).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    wanted = to_ours(AutoencoderKLMap().rules(ours), gradients, ours)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", TINY)
def test_there_and_back_again(case: str) -> None:
    theirs = tiny(case)
    found = AutoencoderKLMap()
    ours = translated(found, theirs)
    back, state = to_theirs(found.rules(ours), ours), theirs.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], x) and back[name].shape == x.shape for name, x in state.items())
    again = Theirs.from_config(found.config(ours))
    again.load_state_dict(back, strict=True)
    assert found.config(found.build(found.config(ours))) == found.config(ours)


@pytest.mark.parametrize("name, config", {"kl_sd": SD, "kl_sd3": SD3}.items())
def test_published_configurations(name: str, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        theirs = Theirs.from_config(config)
        ours = instantiate(
            compose("train", ["task=autoencoder", f"network={name}", "run_id=x"]).config.network
        )
    assert ours.architecture == AutoencoderKLMap().build(config).architecture
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
    written = AutoencoderKLMap().config(ours)
    assert {key: theirs.config[key] for key in written if theirs.config[key] != written[key]} == {}


def test_the_scale_of_latents() -> None:
    assert AutoencoderKLMap().latent_scale({**SD, "latent_channels": 2}) == ((0.0, 0.0), (1 / 0.18215,) * 2)
    mean, std = AutoencoderKLMap().latent_scale(SD3)
    assert mean == (0.0609,) * 16 and std == (1 / 1.5305,) * 16
    each = {
        "latent_channels": 2,
        "scaling_factor": 0.5,
        "latents_mean": [1.0, -2.0],
        "latents_std": [3.0, 4.0],
    }
    assert AutoencoderKLMap().latent_scale(each) == ((1.0, -2.0), (6.0, 8.0))


def test_files_with_the_elder_names_of_attention_are_read() -> None:
    theirs = tiny("sd").state_dict()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    elder = {}
    for name, tensor in theirs.items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        elder[name] = tensor
    assert elder.keys() != theirs.keys()
    assert AutoencoderKLMap().present_names(elder).keys() == theirs.keys()
    assert all(AutoencoderKLMap().present_names(elder)[name] is tensor for name, tensor in theirs.items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types=.*has no counterpart here"),
        ({"use_quant_conv": False}, "use_quant_conv and use_post_quant_conv must agree"),
        ({"in_channels": 1}, "in_channels=1 has no counterpart here, only in_channels=3"),
    ],
)
def test_what_ours_has_not_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderKLMap().build({**SD, **change})


@pytest.mark.parametrize(
    "change, message",
    [({"patch_size": 2}, "patch_size=2"), ({"encoder_channels": [4, 8]}, r"encoder_channels=\[4, 8\]")],
)
def test_what_theirs_has_not_is_named(change: dict[str, Any], message: str) -> None:
    ours: Any = AutoencoderKLMap().build(tiny("sd").config)
    other: nn.Module = type(ours)(**{**ours.architecture, **change})
    with pytest.raises(ValueError, match=message):
        AutoencoderKLMap().config(other)
