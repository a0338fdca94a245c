import pytest
import torch

from ldm.interfaces import Conditioning
from ldm.nn.attention import MathAttention
from ldm.nn.dit import DiT


def small(**changes):
    options = {
        "in_channels": 4,
        "patch_size": 2,
        "width": 32,
        "depth": 2,
        "num_heads": 4,
        "context_width": 16,
        "pooled_width": 8,
    }
    return DiT(**{**options, **changes})


def awake(network):
    """Parameters that adaLN-Zero starts silent get values, so that every path carries something."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def conditioning(batch=3, length=5):
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[1, 2:] = False
    return Conditioning(tokens=torch.randn(batch, length, 16), mask=mask, pooled=torch.randn(batch, 8))


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (2, 2)])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_any_size_that_patches_divide(size, patch_size):
    out = small(patch_size=patch_size)(torch.randn(3, 4, *size), torch.rand(3), conditioning())
    assert out.shape == (3, 4, *size)


def test_a_size_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="7x8 is not divisible by patch_size=2"):
        small()(torch.randn(3, 4, 7, 8), torch.rand(3), conditioning())


def test_starts_at_zero():
    assert small()(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).abs().max() == 0


def test_every_parameter_receives_a_gradient():
    network = awake(small())
    network(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # a bias on keys shifts all of a query's logits alike; with qk_norm it does matter, so none may be silent
    assert silent == []


def test_every_input_matters():
    network, x, t, cond = awake(small()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    out = network(x, t, cond)
    others = [
        network(x + 1, t, cond),
        network(x, t * 0.5, cond),
        network(x, t, Conditioning(cond.tokens + torch.randn(16), cond.mask, cond.pooled)),
        network(x, t, Conditioning(cond.tokens, cond.mask, cond.pooled + 1)),
    ]
    assert all((out - other).abs().max() > 1e-4 for other in others)


def test_rows_of_a_batch_do_not_see_each_other_nor_padded_words():
    network, x, t, cond = awake(small()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    out = network(x, t, cond)
    torch.testing.assert_close(network(x[1:2], t[1:2], cond[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    tokens = cond.tokens.clone()
    tokens[1, 2:] = 100.0
    padded_differently = network(x, t, Conditioning(tokens, cond.mask, cond.pooled))
    torch.testing.assert_close(padded_differently, out, rtol=1e-4, atol=1e-5)


def test_attention_kernels_are_interchangeable():
    network, inputs = awake(small()), (torch.randn(3, 4, 8, 8), torch.rand(3), conditioning())
    reference = awake(small(attention=MathAttention()))
    reference.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(*inputs), reference(*inputs), rtol=1e-4, atol=1e-5)
