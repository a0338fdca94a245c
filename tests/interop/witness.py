"""What every map of a network is held to, with a tiny model of diffusers as the witness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.interop.weights import NetworkMap, to_ours, to_theirs


def with_random_weights(model: nn.Module) -> nn.Module:
    """All parameters drawn anew, also those that start at zero or one, so that every path carries something."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        values = torch.randn(parameter.shape, generator=generator) * 0.5 * spread
        is_norm = "norm" in name and parameter.ndim == 1 and name.endswith("weight")
        parameter.data = values + 1.0 if is_norm else values
    return model.eval()


def translated(found: NetworkMap, theirs: Any) -> nn.Module:
    """Our network with their weights."""
    ours = found.build(theirs.config)
    ours.load_state_dict(to_ours(found.rules(ours), theirs.state_dict(), ours))
    return ours.eval()


def assert_agrees(found: NetworkMap, theirs: Any, x: Tensor, t: Tensor, cond: Conditioning) -> None:
    """Outputs and gradients equal within 1e-5, weights and config there and back again unchanged."""
    ours = translated(found, theirs)
    answer = ours(x, t, cond)
    expected = found.call(theirs, x, t, cond)
    assert answer.shape == x.shape and float(expected.detach().std()) > 0.1
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)

    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) / x.numel() ** 0.5
    for output in (answer, expected):
        (output * weights).sum().backward()
    gradients = dict(theirs.state_dict())  # a buffer stands for itself
    for name, parameter in theirs.named_parameters():
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    wanted = to_ours(found.rules(ours), gradients, ours)
    for name, parameter in ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=f"gradient of {name}")

    back = to_theirs(found.rules(ours), ours)
    state = theirs.state_dict()
    assert back.keys() == state.keys()
    for name, tensor in back.items():
        assert torch.equal(tensor, state[name]) and tensor.shape == state[name].shape, name

    again = type(theirs).from_config(found.config(ours))
    again.load_state_dict(back, strict=True)
    assert found.config(found.build(found.config(ours))) == found.config(ours)
