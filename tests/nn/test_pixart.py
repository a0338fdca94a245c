import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from ldm.interfaces import Conditioning
from ldm.nn.pixart import PixArt
from ldm.nn.positions import Rotary, SinCos

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "network"


def small(**changes):
    options = {
        "in_channels": 4,
        "patch_size": 2,
        "width": 24,
        "depth": 2,
        "num_heads": 2,
        "context_width": 16,
    }
    return PixArt(**{**options, "positions": SinCos(base_size=4), **changes})


def awake(network):
    """Parameters that start silent get values, so that every path carries something."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def conditioning(batch=3, length=5):
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[1, 2:] = False
    return Conditioning(
        tokens=torch.randn(batch, length, 16),
        mask=mask,
        pooled=torch.zeros(batch, 0),
        sizes=torch.tensor([[64, 48, 0, 0, 64, 64]] * batch),
    )


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
@pytest.mark.parametrize("changes", [{}, {"micro_conditioning": True}, {"positions": Rotary()}])
def test_any_size_that_patches_divide(size, changes):
    assert small(**changes)(torch.randn(3, 4, *size), torch.rand(3), conditioning()).shape == (3, 4, *size)


def test_starts_at_zero():
    assert small()(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).abs().max() == 0


def test_every_parameter_receives_a_gradient_but_for_biases_of_keys():
    network = awake(small(micro_conditioning=True))
    network(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).square().sum().backward()
    width = network.width
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        if name.endswith("attention.qkv.bias"):  # shifts all of a query's logits alike
            gradient = torch.cat([gradient[:width], gradient[2 * width :]])
        if name.endswith("cross_attention.kv.bias"):
            gradient = gradient[width:]
        assert gradient.abs().max() > 0, name


def test_every_input_matters():
    network, x, t, cond = (
        awake(small(micro_conditioning=True)),
        torch.randn(3, 4, 8, 8),
        torch.rand(3),
        conditioning(),
    )
    out = network(x, t, cond)
    others = [
        network(x + 1, t, cond),
        network(x, t * 0.5, cond),
        network(x, t, dataclasses.replace(cond, tokens=cond.tokens + torch.randn(16))),
        network(x, t, dataclasses.replace(cond, sizes=cond.sizes + torch.tensor([9, 0, 0, 0, 0, 0]))),
        network(x, t, dataclasses.replace(cond, sizes=cond.sizes + torch.tensor([0, 0, 0, 0, 0, 32]))),
    ]
    assert all((out - other).abs().max() > 1e-4 for other in others)


def test_rows_of_a_batch_do_not_see_each_other_nor_padded_words():
    network, x, t, cond = awake(small()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    out = network(x, t, cond)
    torch.testing.assert_close(network(x[1:2], t[1:2], cond[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    tokens = cond.tokens.clone()
    tokens[1, 2:] = 100.0
    padded_differently = network(x, t, dataclasses.replace(cond, tokens=tokens))
    torch.testing.assert_close(padded_differently, out, rtol=1e-4, atol=1e-5)


def test_the_variance_is_left_out_or_given_behind_the_mean():
    inputs = (torch.randn(3, 4, 8, 8), torch.rand(3), conditioning())
    both = awake(small(out_channels=8, drop_variance=False))
    mean = small(out_channels=8)
    mean.load_state_dict(both.state_dict())
    assert torch.equal(mean(*inputs), both(*inputs)[:, :4])


def test_what_cannot_be_is_refused():
    x, t, cond = torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    with pytest.raises(ValueError, match="7x8 is not divisible by patch_size=2"):
        small()(x[:, :, :7], t, cond)
    with pytest.raises(ValueError, match=r"sizes of the pictures.*micro_conditioning=false"):
        small(micro_conditioning=True)(x, t, dataclasses.replace(cond, sizes=None))
    with pytest.raises(ValueError, match="width divisible by 3, not 32"):
        small(micro_conditioning=True, width=32)
    with pytest.raises(ValueError, match="out_channels=3 must be at least"):
        small(out_channels=3)


@pytest.mark.parametrize("name, side, micro", [("", 128, True), ("_512", 64, False), ("_256", 32, False)])
def test_configs_are_the_published_networks(name, side, micro):
    config = yaml.safe_load((CONFIGS / f"pixart_alpha{name}.yaml").read_text())
    assert config["positions"]["base_size"] == side // 2 and config["micro_conditioning"] is micro
    for key in ("defaults", "_target_", "activation", "positions"):
        del config[key]
    with torch.device("meta"):
        network = PixArt(**config)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert abs(count / 1e9 - 0.61) < 0.01  # "0.6B", table 2 of 2310.00426
