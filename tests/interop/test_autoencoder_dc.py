from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC as Theirs
from hydra.utils import instantiate

from ldm.commands.compose import compose
from ldm.interop.autoencoder_dc import AutoencoderDCMap
from ldm.interop.weights import to_ours, to_theirs
from tests.interop.witness import translated, with_random_weights

BLOCKS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
SANA: dict[str, Any] = {  # config.json of mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers
    "attention_head_dim": 32,
    "decoder_act_fns": "silu",
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_types": BLOCKS,
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "decoder_norm_types": "rms_norm",
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "conv",
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_block_types": BLOCKS,
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "in_channels": 3,
    "latent_channels": 32,
    "scaling_factor": 0.41407,
    "upsample_block_type": "interpolate",
}
TINY: dict[str, dict[str, Any]] = {
    "strided": {"downsample_block_type": "conv", "upsample_block_type": "interpolate"},
    "shuffled": {},
    "from half the size": {"encoder_layers_per_block": (0, 2, 1), "decoder_layers_per_block": (0, 1, 2)},
}


def tiny(case: str) -> Theirs:
    both = {
        "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "block_out_channels": (8, 8, 16),
        "qkv_multiscales": ((), (), (3,)),
        "layers_per_block": (1, 1, 2),
    }
    config = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in both.items()}
    return with_random_weights(
        Theirs(**{**config, "latent_channels": 4, "attention_head_dim": 4, **TINY[case]})
    )


@pytest.mark.parametrize("case", TINY)
def test_agrees_with_diffusers_there_and_back_again(case: str) -> None:
    theirs, found = tiny(case), AutoencoderDCMap()
    ours = translated(found, theirs)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    moments, expected = ours.encode(images), theirs.encode(images).latent
    torch.testing.assert_close(moments[:, :4], expected, rtol=0, atol=1e-5)
    assert (moments[:, 4:] == -30).all()
    latents = torch.randn(expected.shape)
    decoded, wanted = ours.decode(latents), theirs.decode(latents).sample
    torch.testing.assert_close(decoded, wanted, rtol=0, atol=1e-5)

    probe = torch.randn_like(images) / images.numel() ** 0.5
    for a, b in ((moments[:, :4], decoded), (expected, wanted)):
        (a.square().mean() + (b * probe).sum()).backward()
    gradients = to_ours(found.rules(ours), {n: p.grad for n, p in theirs.named_parameters()}, ours)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)

    back, state = to_theirs(found.rules(ours), ours), theirs.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], x) and back[name].shape == x.shape for name, x in state.items())
    Theirs.from_config(found.config(ours)).load_state_dict(back, strict=True)
    assert found.config(found.build(found.config(ours))) == found.config(ours)


def test_the_published_configuration() -> None:
    with torch.device("meta"):
        theirs = Theirs.from_config(SANA)
        ours = instantiate(
            compose("train", ["task=autoencoder", "network=dc_f32", "run_id=x"]).config.network
        )
    assert ours.architecture == AutoencoderDCMap().build(SANA).architecture
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
    assert AutoencoderDCMap().latent_scale(SANA) == ((0.0,) * 32, (1 / 0.41407,) * 32)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3},
            "decoder_norm_types=.* has no counterpart",
        ),
        ({"decoder_block_types": "ResBlock"}, "encoder_block_types=.* and decoder_block_types=.* must agree"),
        ({"upsample_block_type": "pixel_shuffle"}, "upsample_block_type='pixel_shuffle' has no counterpart"),
        (
            {f"{side}_block_types": BLOCKS[::-1] for side in ("encoder", "decoder")},
            "encoder_block_types=.* has no counterpart here",
        ),
    ],
)
def test_what_ours_has_not_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderDCMap().build({**SANA, **change})
