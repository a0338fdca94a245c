import pytest
import torch

from ldm.nn.autoencoder_dc import AutoencoderDC, Downsample, Upsample, averaged, relu_attention, repeated


def small(**changes):
    options = {
        "latent_channels": 4,
        "channels": [8, 8, 16],
        "encoder_blocks": [1, 1, 1],
        "decoder_blocks": [1, 1, 1],
        "attention_levels": 1,
        "head_width": 8,
        "scales": [3],
    }
    return AutoencoderDC(**{**options, **changes})


@pytest.mark.parametrize("pixel_shuffle", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_stride_and_shapes(pixel_shuffle, first):
    network = small(pixel_shuffle=pixel_shuffle, encoder_blocks=[first, 1, 1], decoder_blocks=[first, 1, 1])
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    moments = network.encode(images)
    assert network.downsample == 4 and moments.shape == (2, 8, 4, 6)
    assert network.decode(moments[:, :4]).shape == images.shape
    assert network.last_layer.out_channels == (12 if pixel_shuffle and not first else 3)


def test_there_is_no_posterior_to_draw_from():
    moments = small().encode(torch.randn(1, 3, 8, 8))
    assert (moments[:, 4:] == -30).all() and moments.dtype == torch.float32


def test_shortcuts_alone_lose_no_pixel_where_channels_can_hold_them():
    down, up = Downsample(2, 8, shuffle=True), Upsample(8, 2, shuffle=True)
    for conv in (down.conv, up.conv):
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    x = torch.randn(1, 2, 4, 6)
    assert torch.equal(up(down(x)), x)
    z = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(averaged(repeated(z, 12), 3), z)


def test_linear_attention_is_attention_with_products_of_relus_as_weights():
    q, k, v = torch.randn(3, 2, 3, 4, 10).unbind(0)  # (B, heads, d, N) each
    weights = q.relu().transpose(-2, -1) @ k.relu()  # (B, heads, N queries, N keys)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-15)
    expected = v @ weights.transpose(-2, -1)
    torch.testing.assert_close(relu_attention(q, k, v), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_receives_a_gradient():
    network = small()
    torch.manual_seed(0)
    mean, _ = network.encode(torch.randn(2, 3, 16, 16)).chunk(2, dim=1)
    network.decode(mean).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_architecture_makes_the_same_network_again_and_blocks_are_listed():
    network = small(encoder_blocks=[0, 1, 2])
    twin = AutoencoderDC(**network.architecture)
    twin.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(twin.encode(images), network.encode(images))
    assert len(network.blocks_to_wrap()) == 3 + 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder_blocks": [1, 0, 1]}, r"encoder_blocks=\[1, 0, 1\] must have one number for each"),
        ({"decoder_blocks": [1, 1]}, r"decoder_blocks=\[1, 1\] must have one number"),
        ({"channels": [8, 40, 80]}, "40 must divide 4 \\* 8"),
        ({"channels": [8, 10, 20]}, "4 must divide 10"),
        ({"latent_channels": 3}, "latent_channels=3 must divide 16"),
        ({"head_width": 5}, "head_width=5 does not divide 16"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_picture_that_the_stride_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="picture 18x16 is not divisible by the stride 4"):
        small().encode(torch.zeros(1, 3, 18, 16))
