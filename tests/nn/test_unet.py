import pytest
import torch
from torch import nn

from ldm.interfaces import Conditioning
from ldm.nn.attention import MathAttention
from ldm.nn.unet import ResidualBlock, TransformerBlock, UNet


def small(**changes):
    options = {
        "in_channels": 4,
        "out_channels": 4,
        "channels": [8, 16],
        "blocks_per_level": 1,
        "transformer_depth": [0, 1],
        "middle_depth": 2,
        "num_heads": [1, 2],
        "context_width": 6,
        "num_groups": 4,
    }
    return UNet(**{**options, **changes})


TOLD = {"pooled_width": 5, "size_features": 4, "num_classes": 3}


def awake(network):
    """Parameters that start silent get values, so that every path carries something."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        spread = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, std=spread, generator=generator)
    return network


def conditioning(batch=3, length=5):
    torch.manual_seed(1)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[1, 2:] = False
    return Conditioning(
        tokens=torch.randn(batch, length, 6),
        mask=mask,
        pooled=torch.randn(batch, 5),
        labels=torch.tensor([0, 1, 3])[:batch],
        sizes=torch.randint(0, 1024, (batch, 6)),
    )


def inputs(height=6, width=8):
    torch.manual_seed(0)
    return torch.randn(3, 4, height, width), torch.rand(3), conditioning()


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (7, 9), (1, 1)])
def test_any_size(size):
    x, t, cond = inputs(*size)
    assert small()(x, t, cond).shape == x.shape
    three_levels = small(
        channels=[8, 8, 16], transformer_depth=[0, 0, 1], num_heads=[1, 1, 2], out_channels=3
    )
    assert three_levels(x, t, cond).shape == (3, 3, *size)


def test_starts_at_zero():
    assert small()(*inputs()).abs().max() == 0


@pytest.mark.parametrize("told", [{}, TOLD, {"context_width": None, "num_classes": 3}])
def test_every_parameter_receives_a_gradient(told):
    network = awake(small(**told))
    network(*inputs()).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


def test_every_input_matters_that_the_network_is_told_and_no_other():
    x, t, cond = inputs()
    changes = {
        "tokens": cond.tokens.flip(0),
        "pooled": cond.pooled + 1,
        "labels": cond.labels.flip(0),
        "sizes": cond.sizes + 100,
    }
    told = {
        "tokens": {},
        "pooled": {"pooled_width": 5},
        "labels": {"num_classes": 3},
        "sizes": {"size_features": 4},
    }
    for name, options in told.items():
        network = awake(small(**{"context_width": None, **options} if options else {}))
        out = network(x, t, cond)
        assert (out - network(x, 0.5 * t, cond)).abs().max() > 1e-4
        assert (out - network(x + 1, t, cond)).abs().max() > 1e-4
        for changed, value in changes.items():
            other = network(x, t, Conditioning(**{**vars(cond), changed: value}))
            assert ((out - other).abs().max() > 1e-4) == (changed == name), (name, changed)


def test_the_row_after_the_last_class_stands_for_none():
    network = small(num_classes=3)
    assert network.num_classes == 3 and network.label_embedding.num_embeddings == 4


def test_rows_of_a_batch_do_not_see_each_other():
    network, (x, t, cond) = awake(small(**TOLD)), inputs()
    alone = network(x[1:2], t[1:2], cond[1:2])
    torch.testing.assert_close(alone, network(x, t, cond)[1:2], rtol=1e-4, atol=1e-5)


def test_padding_is_seen_only_where_the_network_is_to_see_it():
    x, t, cond = inputs()
    tokens = cond.tokens.clone()
    tokens[1, 2:] += 3.0
    padded_differently = Conditioning(**{**vars(cond), "tokens": tokens})
    for context_mask in (True, False):
        network = awake(small(context_mask=context_mask))
        change = (network(x, t, cond) - network(x, t, padded_differently)).abs().amax(dim=(1, 2, 3))
        assert (change > 1e-4).tolist() == [False, not context_mask, False]


def test_layout_and_kernel_do_not_change_what_is_computed():
    network = awake(small(**TOLD))
    expected = network(*inputs())
    other = small(**TOLD, attention=MathAttention()).to(memory_format=torch.channels_last)
    other.load_state_dict(network.state_dict())
    assert other.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(other(*inputs()), expected, rtol=1e-4, atol=1e-5)


def test_blocks_hold_most_parameters_once():
    network = small()
    blocks = network.blocks_to_wrap()
    assert {type(block) for block in blocks} == {ResidualBlock, TransformerBlock}
    inside = [id(p) for block in blocks for p in block.parameters()]
    assert len(inside) == len(set(inside))
    assert len(blocks) == 2 + 2 + 4 + 1 + 2 + 2  # residual: down, middle, up; transformer: down, middle, up


def test_architecture_makes_the_same_network_again():
    network = small(**TOLD, conv_projections=True)
    assert UNet(**network.architecture).architecture == network.architecture
    UNet(**network.architecture).load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_heads": [1]}, "num_heads=.1. must have as many levels as channels=.8, 16."),
        ({"transformer_depth": [1, 1, 1]}, "transformer_depth"),
        ({"channels": [8, 18]}, "num_groups=4 does not divide 18"),
        ({"num_heads": [1, 3]}, "num_heads=3 does not divide width=16"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize("told, missing", [({"num_classes": 3}, "labels"), ({"size_features": 4}, "sizes")])
def test_what_the_conditioning_lacks_is_named(told, missing):
    x, t, cond = inputs()
    with pytest.raises(ValueError, match=f"the conditioning has no {missing}"):
        small(**told)(x, t, Conditioning(cond.tokens, cond.mask, cond.pooled))
