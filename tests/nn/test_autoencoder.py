import pytest
import torch

from ldm.nn.autoencoder import AutoencoderKL


def small(**changes):
    options = {"latent_channels": 4, "channels": (16, 32), "blocks_per_level": 1, "num_groups": 8}
    return AutoencoderKL(**{**options, **changes})


@pytest.mark.parametrize("patch_size, downsample", [(1, 2), (2, 4), (4, 8)])
def test_stride_and_shapes(patch_size, downsample):
    network = small(patch_size=patch_size)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    moments = network.encode(images)
    assert network.downsample == downsample
    assert moments.shape == (2, 8, 16 // downsample, 24 // downsample)
    assert network.decode(moments[:, :4]).shape == images.shape


def test_moments_are_float32_and_log_variance_is_bounded_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        moments = small().encode(torch.full((1, 3, 16, 16), 1e6))
    assert moments.dtype == torch.float32
    assert moments[:, 4:].min() >= -30 and moments[:, 4:].max() <= 20


def test_architecture_makes_the_same_network_again():
    network = small(encoder_channels=(8, 16), attention=False)
    twin = AutoencoderKL(**network.architecture)
    twin.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(network.encode(images), twin.encode(images))


def test_every_parameter_receives_a_gradient():
    network = small()
    moments = network.encode(torch.randn(2, 3, 16, 16))
    mean, log_var = moments.chunk(2, dim=1)
    network.decode(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": (16, 30)}, "num_groups=8 does not divide 30"),
        ({"encoder_channels": (16,)}, "as many levels"),
    ],
)
def test_impossible_channels_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_picture_that_the_stride_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="picture 15x16 is not divisible by the stride 2"):
        small().encode(torch.zeros(1, 3, 15, 16))


def test_quant_convolutions_that_are_identities_change_nothing_and_others_do():
    plain, network = small(), small(quant_convs=True)
    network.load_state_dict(plain.state_dict(), strict=False)
    images, latents = torch.rand(1, 3, 8, 8), torch.randn(1, 4, 4, 4)
    for conv in (network.quant_conv, network.post_quant_conv):
        torch.nn.init.dirac_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    torch.testing.assert_close(network.encode(images), plain.encode(images), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network.decode(latents), plain.decode(latents), rtol=1e-4, atol=1e-6)
    for conv in (network.quant_conv, network.post_quant_conv):
        torch.nn.init.constant_(conv.bias, 1.0)
    torch.testing.assert_close(network.encode(images), plain.encode(images) + 1, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network.decode(latents), plain.decode(latents + 1), rtol=1e-4, atol=1e-5)


def test_blocks_are_listed():
    assert len(small().blocks_to_wrap()) == (2 + 3) + (
        3 + 4
    )  # encoder and decoder: levels, and three in the middle
