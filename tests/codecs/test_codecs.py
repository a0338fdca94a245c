import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from ldm.codecs.contract import LatentContract, LatentStatistics, hash_content
from ldm.codecs.identity import IdentityCodec
from ldm.codecs.kl import FORMAT, KLCodec, read_autoencoder, write_autoencoder
from ldm.codecs.pooled import PooledCodec
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.autoencoder_dc import AutoencoderDC


@pytest.fixture
def network():
    torch.manual_seed(0)
    return AutoencoderKL(
        latent_channels=2, channels=(8, 8), blocks_per_level=1, num_groups=4, attention=False
    )


def write(path, network, mean=(0.5, -1.0), std=(2.0, 0.1)):
    contract = LatentContract(mean=mean, std=std, downsample=network.downsample, num_images=10)
    return write_autoencoder(path, autoencoder=network, contract=contract)


def test_the_file_brings_back_weights_and_contract(tmp_path, network):
    written = write(tmp_path / "autoencoder.safetensors", network)
    codec = KLCodec(path=str(tmp_path / "autoencoder.safetensors"))
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(codec.moments(images), network.encode(images))
    assert codec.contract == written and codec.content_hash == written.content_hash
    assert (codec.channels, codec.downsample) == (2, 2)


def test_the_file_knows_which_class_of_autoencoder_it_holds(tmp_path):
    blocks = {"channels": [8, 8], "encoder_blocks": [1, 1], "decoder_blocks": [1, 1], "head_width": 4}
    network = AutoencoderDC(latent_channels=2, attention_levels=1, **blocks)
    write(tmp_path / "a.safetensors", network.to(memory_format=torch.channels_last))
    codec = KLCodec(path=str(tmp_path / "a.safetensors"))
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(codec.moments(images), network.encode(images), rtol=1e-4, atol=1e-5)


def test_a_file_from_before_there_were_several_classes_is_still_read(tmp_path, network):
    path, weights = tmp_path / "a.safetensors", dict(network.state_dict())
    architecture = {key: value for key, value in network.architecture.items() if key != "quant_convs"}
    contract = LatentContract(mean=(0.0, 0.0), std=(1.0, 1.0), downsample=2, num_images=1)
    contract = dataclasses.replace(contract, content_hash=hash_content(architecture, weights, contract))
    header = {"architecture": json.dumps(architecture), "contract": contract.to_json(), "format": FORMAT}
    save_file(weights, path, metadata=header)
    codec, images = KLCodec(path=str(path)), torch.rand(1, 3, 8, 8)
    assert codec.contract == contract
    assert torch.equal(codec.moments(images), network.encode(images))


def test_latents_are_normalised_and_decoding_undoes_it(tmp_path, network):
    write(tmp_path / "a.safetensors", network)
    codec = KLCodec(path=str(tmp_path / "a.safetensors"))
    moments = torch.randn(3, 4, 4, 4)
    latents = codec.latents(moments, noise=None)
    expected = (moments[:, :2] - torch.tensor([0.5, -1.0])[:, None, None]) / torch.tensor([2.0, 0.1])[
        :, None, None
    ]
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(codec.decode(latents), network.decode(moments[:, :2]), rtol=1e-4, atol=1e-5)


def test_posterior_samples_have_the_posterior_law(tmp_path, network):
    write(tmp_path / "a.safetensors", network, mean=(0.0, 0.0), std=(1.0, 1.0))
    codec = KLCodec(path=str(tmp_path / "a.safetensors"))
    moments = torch.cat([torch.full((1, 2, 1, 1), 3.0), torch.full((1, 2, 1, 1), -2.0)], dim=1).expand(
        20_000, -1, 1, 1
    )
    samples = codec.latents(moments, noise=torch.randn(20_000, 2, 1, 1))
    assert abs(samples.mean() - 3.0) < 0.02
    assert abs(samples.std() - torch.tensor(-1.0).exp()) < 0.01


def test_the_hash_names_weights_statistics_and_architecture(tmp_path, network):
    first = write(tmp_path / "a.safetensors", network).content_hash
    assert first == write(tmp_path / "b.safetensors", network).content_hash
    assert first != write(tmp_path / "b.safetensors", network, std=(2.0, 0.2)).content_hash
    with torch.no_grad():
        next(network.parameters()).flatten()[0].add_(1e-3)
    assert first != write(tmp_path / "b.safetensors", network).content_hash


def test_a_changed_file_is_refused(tmp_path, network):
    path = tmp_path / "a.safetensors"
    write(path, network)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its own content hash"):
        KLCodec(path=str(path))


@pytest.mark.parametrize("content, message", [(b"not weights", "not a readable safetensors file")])
def test_a_foreign_file_is_refused(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_autoencoder(path)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="train one first"):
        KLCodec(path=str(tmp_path / "nothing.safetensors"))


def test_statistics_equal_those_of_posterior_samples():
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 5.0, 0.01])[:, None, None]
    means = torch.randn(400, 3, 4, 4) * scale + 7
    log_vars = torch.rand(400, 3, 4, 4) - 1.0
    statistics = LatentStatistics(3)
    for part in torch.cat([means, log_vars], dim=1).split(8):
        statistics.update(part)
    contract = statistics.contract(downsample=8)
    samples = means + torch.exp(0.5 * log_vars) * torch.randn(200, 400, 3, 4, 4)
    torch.testing.assert_close(torch.tensor(contract.mean), means.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(contract.std), samples.std((0, 1, 3, 4)), rtol=0.01, atol=0)
    assert contract.num_images == 400


def test_a_channel_without_any_spread_is_named():
    statistics = LatentStatistics(2)
    means = torch.stack([torch.randn(4, 2, 2), torch.ones(4, 2, 2)], dim=1)
    statistics.update(torch.cat([means, torch.full_like(means, -100.0)], dim=1))
    with pytest.raises(ValueError, match=r"channels \[1\] are constant"):
        statistics.contract(downsample=8)


def test_contract_survives_json():
    contract = LatentContract(mean=(0.1, 0.2), std=(1.0, 2.0), downsample=8, num_images=3, content_hash="ab")
    assert LatentContract.from_json(contract.to_json()) == contract
    assert dataclasses.replace(contract, downsample=4) != contract


def test_identity_round_trip():
    codec, images = IdentityCodec(scale=2.0), torch.rand(2, 3, 4, 4) * 2 - 1
    latents = codec.latents(codec.moments(images), noise=torch.randn(2, 3, 4, 4))
    torch.testing.assert_close(codec.decode(latents), images)


def test_the_pooled_codec_keeps_the_colours_of_squares() -> None:
    codec = PooledCodec(channels=16, downsample=4)
    colours = torch.rand(2, 3, 4, 4) * 2 - 1
    images = colours.repeat_interleave(4, 2).repeat_interleave(4, 3)
    latents = codec.latents(codec.moments(images), noise=None)
    assert latents.shape == (2, 16, 4, 4)
    torch.testing.assert_close(codec.decode(latents), images)
    with pytest.raises(ValueError, match="channels=2"):
        PooledCodec(channels=2)
