"""A published autoencoder becomes a codec with its own scaling and shift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL

from ldm.codecs.kl import KLCodec
from ldm.commands.autoencoders import convert_autoencoder
from ldm.interop.autoencoder_dc import AutoencoderDCMap
from ldm.interop.autoencoder_kl import AutoencoderKLMap
from tests.interop.witness import with_random_weights


def published(**scale: Any) -> AutoencoderKL:
    return with_random_weights(
        AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            **scale,
        )
    )


def convert(theirs: AutoencoderKL, out: Path) -> KLCodec:
    contract = convert_autoencoder(
        AutoencoderKLMap(), config=theirs.config, theirs=theirs.state_dict(), out=out
    )
    codec = KLCodec(path=str(out))
    assert codec.contract == contract
    return codec


@torch.no_grad()
def test_latents_are_scaled_and_shifted_as_its_pipelines_do_it(tmp_path: Path) -> None:
    theirs = published(scaling_factor=1.5305, shift_factor=0.0609)
    codec = convert(theirs, tmp_path / "vae" / "autoencoder.safetensors")
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    posterior = theirs.encode(images).latent_dist
    moments, noise = codec.moments(images), torch.randn(2, 2, 4, 6)
    expected = (posterior.mean - 0.0609) * 1.5305  # pipelines/stable_diffusion_3
    torch.testing.assert_close(codec.latents(moments, noise=None), expected, rtol=1e-4, atol=1e-5)
    drawn = (posterior.mean + posterior.std * noise - 0.0609) * 1.5305
    torch.testing.assert_close(codec.latents(moments, noise=noise), drawn, rtol=1e-4, atol=1e-5)
    decoded = theirs.decode(expected / 1.5305 + 0.0609).sample
    torch.testing.assert_close(codec.decode(expected), decoded, rtol=1e-4, atol=1e-5)
    assert (codec.channels, codec.downsample) == (2, 2)


def test_weights_and_scale_make_the_content_hash(tmp_path: Path) -> None:
    theirs = published(scaling_factor=0.5)
    first = convert(theirs, tmp_path / "a.safetensors").content_hash
    assert convert(theirs, tmp_path / "b.safetensors").content_hash == first
    assert convert(published(scaling_factor=0.25), tmp_path / "c.safetensors").content_hash != first
    next(theirs.parameters()).data.flatten()[0] += 1e-3
    assert convert(theirs, tmp_path / "d.safetensors").content_hash != first


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    theirs = published().half()
    codec = convert(theirs, tmp_path / "a.safetensors")
    parameter = codec.autoencoder.encoder[1].weight
    assert parameter.dtype == torch.float32
    assert torch.equal(parameter.half(), theirs.encoder.conv_in.weight)


@torch.no_grad()
def test_a_deep_compression_one(tmp_path: Path) -> None:
    both = {"block_types": "ResBlock", "block_out_channels": (8, 8), "qkv_multiscales": ((), ())}
    config = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in both.items()}
    numbers = {f"{side}_layers_per_block": (1, 1) for side in ("encoder", "decoder")}
    theirs = with_random_weights(AutoencoderDC(latent_channels=2, scaling_factor=0.4, **config, **numbers))
    out = tmp_path / "autoencoder.safetensors"
    convert_autoencoder(AutoencoderDCMap(), config=theirs.config, theirs=theirs.state_dict(), out=out)
    codec, images = KLCodec(path=str(out)), torch.rand(1, 3, 8, 8)
    latents = codec.latents(codec.moments(images), noise=None)
    torch.testing.assert_close(latents, theirs.encode(images).latent * 0.4, rtol=1e-4, atol=1e-5)


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    theirs = published()
    config = {**theirs.config, "mid_block_add_attention": False}
    with pytest.raises(ValueError, match="has, with no place here"):
        convert_autoencoder(
            AutoencoderKLMap(), config=config, theirs=theirs.state_dict(), out=tmp_path / "a.safetensors"
        )
    assert list(tmp_path.iterdir()) == []
