import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from ldm.interfaces import Conditioning
from ldm.nn.attention import MathAttention
from ldm.nn.dit import DiT
from ldm.nn.layers import SiLU
from ldm.nn.positions import Rotary, SinCos

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "network"

CAPTIONS = {"context_width": 16, "pooled_width": 8}
KINDS = {
    "captions": CAPTIONS,
    "captions in context": {**CAPTIONS, "in_context": True, "positions": Rotary()},
    "classes": {"num_classes": 5, "positions": SinCos(base_size=4)},
    "classes and captions": {**CAPTIONS, "num_classes": 5},
    "nothing": {},
    "modern": {**CAPTIONS, "rms_norm": True, "gated": True, "activation": SiLU(), "positions": Rotary()},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def small(**changes):
    options = {"in_channels": 4, "patch_size": 2, "width": 32, "depth": 2, "num_heads": 4}
    return DiT(**{**options, **changes})


def awake(network):
    """Parameters that adaLN-Zero starts silent get values, so that every path carries something."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def conditioning(batch=3, length=5):
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[1, 2:] = False
    return Conditioning(
        tokens=torch.randn(batch, length, 16),
        mask=mask,
        pooled=torch.randn(batch, 8),
        labels=torch.arange(batch) + 3,
    )


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (2, 2)])
@kinds
def test_any_size_that_patches_divide(size, kind):
    for patch_size in (1, 2):
        network = small(patch_size=patch_size, **kind)
        assert network(torch.randn(3, 4, *size), torch.rand(3), conditioning()).shape == (3, 4, *size)


def test_a_size_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="7x8 is not divisible by patch_size=2"):
        small()(torch.randn(3, 4, 7, 8), torch.rand(3), conditioning())


def test_starts_at_zero():
    network = small(**CAPTIONS)
    assert network(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).abs().max() == 0


@kinds
def test_every_parameter_receives_a_gradient(kind):
    network = awake(small(**kind))
    network(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # a bias on keys shifts all of a query's logits alike; with qk_norm it does matter, so none may be silent
    assert silent == []


@kinds
def test_every_input_matters_and_no_other(kind):
    network, x, t, cond = awake(small(**kind)), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    out = network(x, t, cond)

    def changed(**inputs):
        other = dataclasses.replace(cond, **{k: v for k, v in inputs.items() if k not in "xt"})
        answer = network(inputs.get("x", x), inputs.get("t", t), other)
        return float((out - answer).detach().abs().max())

    assert changed(x=x + 1) > 1e-4
    assert changed(t=t * 0.5) > 1e-4
    assert (changed(tokens=cond.tokens + torch.randn(16)) > 1e-4) == ("context_width" in kind)
    assert (changed(pooled=cond.pooled + 1) > 1e-4) == ("pooled_width" in kind)
    assert (changed(labels=cond.labels - 1) > 1e-4) == ("num_classes" in kind)


@kinds
def test_places_matter(kind):
    """Turned by half a turn, a picture gives another answer than its own turned by half a turn."""
    network = awake(small(patch_size=1, **kind))  # so that a turn moves whole patches
    x, t, cond = torch.randn(3, 4, 4, 4), torch.rand(3), conditioning()
    difference = network(x.rot90(2, (2, 3)), t, cond) - network(x, t, cond).rot90(2, (2, 3))
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["captions", "captions in context", "modern"])
def test_rows_of_a_batch_do_not_see_each_other_nor_padded_words(kind):
    network, x, t, cond = awake(small(**KINDS[kind])), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    out = network(x, t, cond)
    torch.testing.assert_close(network(x[1:2], t[1:2], cond[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    tokens = cond.tokens.clone()
    tokens[1, 2:] = 100.0
    padded_differently = network(x, t, dataclasses.replace(cond, tokens=tokens))
    torch.testing.assert_close(padded_differently, out, rtol=1e-4, atol=1e-5)


def test_attention_kernels_are_interchangeable():
    network, inputs = awake(small(**CAPTIONS)), (torch.randn(3, 4, 8, 8), torch.rand(3), conditioning())
    reference = awake(small(**CAPTIONS, attention=MathAttention()))
    reference.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(*inputs), reference(*inputs), rtol=1e-4, atol=1e-5)


def test_the_variance_is_left_out_or_given_behind_the_mean():
    inputs = (torch.randn(3, 4, 8, 8), torch.rand(3), conditioning())
    both = awake(small(num_classes=5, out_channels=8, drop_variance=False))
    mean = small(num_classes=5, out_channels=8)
    mean.load_state_dict(both.state_dict())
    assert both(*inputs).shape == (3, 8, 8, 8)
    assert torch.equal(mean(*inputs), both(*inputs)[:, :4])


def test_weights_of_a_network_that_learned_the_variance_train_on():
    network = awake(small(num_classes=5, out_channels=8))
    network(torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()).square().sum().backward()
    mean, variance = network.patch_out.weight.grad.unflatten(0, (2, -1))
    assert mean.abs().max() > 0 and variance.abs().max() == 0


def test_labels_are_asked_for():
    cond = dataclasses.replace(conditioning(), labels=None)
    with pytest.raises(ValueError, match=r"wants one of 5 class labels.*text_encoder=labels"):
        small(num_classes=5)(torch.randn(3, 4, 8, 8), torch.rand(3), cond)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"in_context": True}, "in_context=true needs captions"),
        ({"out_channels": 3}, "out_channels=3 must be at least in_channels=4"),
        ({"num_heads": 5}, "num_heads=5 does not divide width=32"),
    ],
)
def test_impossible_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


# Table 1 of 2212.09748; parameters as that table and table 4 round them, in millions.
PUBLISHED = {
    "s": (12, 384, 6, 33),
    "b": (12, 768, 12, 130),
    "l": (24, 1024, 16, 458),
    "xl": (28, 1152, 16, 675),
}


@pytest.mark.parametrize("patch_size", [2, 4, 8])
@pytest.mark.parametrize("size", PUBLISHED)
def test_configs_are_the_published_networks(size, patch_size):
    config = yaml.safe_load((CONFIGS / f"dit_{size}_{patch_size}.yaml").read_text())
    depth, width, num_heads, millions = PUBLISHED[size]
    assert (config["depth"], config["width"], config["num_heads"]) == (depth, width, num_heads)
    assert config["patch_size"] == patch_size and config["positions"]["base_size"] == 32 // patch_size
    for key in ("defaults", "_target_", "activation", "positions"):
        del config[key]
    with torch.device("meta"):
        network = DiT(**config)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert abs(count / 1e6 - millions) < 1
