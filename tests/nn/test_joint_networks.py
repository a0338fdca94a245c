"""What MMDiT and Flux promise alike; that they are the published networks is shown in tests/interop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from ldm.interfaces import Conditioning
from ldm.nn.attention import MathAttention
from ldm.nn.flux import Flux
from ldm.nn.mmdit import MMDiT


def mmdit(**changes) -> MMDiT:
    options = {
        "in_channels": 4,
        "patch_size": 2,
        "width": 24,
        "depth": 3,
        "num_heads": 2,
        "context_width": 16,
        "pooled_width": 8,
        "max_size": 8,
        "base_size": 4,
        "qk_norm": True,
        "dual_attention": [0],
    }
    return MMDiT(**{**options, **changes})


def flux(**changes) -> Flux:
    options = {
        "in_channels": 4,
        "patch_size": 2,
        "width": 24,
        "num_double_blocks": 1,
        "num_single_blocks": 2,
        "num_heads": 2,
        "context_width": 16,
        "pooled_width": 8,
        "rotary_widths": [4, 4, 4],
        "guidance": 3.5,
    }
    return Flux(**{**options, **changes})


both = pytest.mark.parametrize("make", [mmdit, flux])
Maker = Callable[..., nn.Module]


def awake(network: nn.Module) -> nn.Module:
    """Parameters that adaLN-Zero starts silent get values, so that every path carries something."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def conditioning(batch: int = 3, length: int = 5) -> Conditioning:
    torch.manual_seed(1)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[1, 2:] = False
    return Conditioning(tokens=torch.randn(batch, length, 16), mask=mask, pooled=torch.randn(batch, 8))


@both
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (2, 2)])
def test_any_size_that_patches_divide(make: Maker, size: tuple[int, int]) -> None:
    network = make()
    x = torch.randn(3, 4, *size)
    assert network(x, torch.rand(3), conditioning()).shape == x.shape
    with pytest.raises(ValueError, match="7x8 is not divisible by patch_size=2"):
        network(torch.randn(3, 4, 7, 8), torch.rand(3), conditioning())


@both
def test_starts_silent(make: Maker) -> None:
    assert not make()(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).any()


@both
def test_every_trained_parameter_has_a_gradient(make: Maker) -> None:
    """Data-parallel training waits for each of them."""
    network = awake(make())
    network(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@both
def test_padding_counts_only_where_it_is_not_masked(make: Maker) -> None:
    x, t, cond = torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    scribbled = cond.tokens.clone()
    scribbled[1, 2:] = 9.0
    for masked in (True, False):
        network = awake(make(context_mask=masked))
        before, after = network(x, t, cond), network(x, t, replace(cond, tokens=scribbled))
        assert torch.allclose(before[1], after[1], atol=1e-5) is masked
        torch.testing.assert_close(before[::2], after[::2])


@both
def test_a_sample_does_not_depend_on_its_neighbours(make: Maker) -> None:
    network, x, t, cond = awake(make()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    together = network(x, t, cond)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@both
def test_text_is_heard_as_a_set_and_pictures_are_seen_in_place(make: Maker) -> None:
    """No positions for the text, as published: its encoder tells them. The picture has them."""
    network, x, t, cond = (
        awake(make(context_mask=False)),
        torch.randn(3, 4, 8, 8),
        torch.rand(3),
        conditioning(),
    )
    answer = network(x, t, cond)
    shuffled = replace(cond, tokens=cond.tokens.flip(1))
    torch.testing.assert_close(network(x, t, shuffled), answer, rtol=1e-4, atol=1e-5)
    rolled = network(x.roll(2, dims=-1), t, cond).roll(-2, dims=-1)
    assert float((rolled - answer).detach().abs().max()) > 1e-3


@both
def test_the_kernel_is_the_one_that_is_given(make: Maker) -> None:
    x, t, cond = torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    expected = awake(make())(x, t, cond)
    torch.testing.assert_close(
        awake(make(attention=MathAttention()))(x, t, cond), expected, rtol=1e-4, atol=1e-5
    )


@both
def test_blocks_are_listed_and_autocast_runs(make: Maker) -> None:
    network = awake(make())
    assert len(network.blocks_to_wrap()) == 3
    x, t, cond = torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x, t, cond).float()
    assert float((low - network(x, t, cond)).detach().abs().max()) < 0.1 * float(low.detach().abs().max())


def test_the_middle_of_the_table_of_positions_is_taken_and_no_more() -> None:
    network = mmdit()
    features = network.crop_positions(2, 4).unflatten(0, (2, 4))
    assert torch.equal(features, network.positions[3:5, 2:6])
    with pytest.raises(ValueError, match="9x2 patches are more than the 8 a side"):
        network(torch.randn(3, 4, 18, 4), torch.rand(3), conditioning())


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dual_attention=\[3\] must name blocks from 0 to 2"):
        mmdit(dual_attention=[3])
    with pytest.raises(ValueError, match="the width of a head, 12"):
        flux(rotary_widths=[4, 4, 8])
    with pytest.raises(ValueError, match="num_heads=5 does not divide width=24"):
        mmdit(num_heads=5)
