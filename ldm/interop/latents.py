"""An autoencoder whose latents are another's, scaled and shifted: folded into 1x1 convolutions, exact per channel.

Other tools know one scaling and one shift for all channels of a latent, or none that can be chosen. Our contracts have
a mean and a standard deviation for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.autoencoder_base import Autoencoder


def refolded(network: AutoencoderKL, *, factor: Sequence[float], offset: Sequence[float]) -> AutoencoderKL:
    """The autoencoder whose latents are ``factor * z + offset`` where ``network`` has z, for the same pictures.

    Log-variances are clipped to [-30, 20] after the change instead of before.
    """
    refuse_bottleneck(network)
    f = torch.tensor(factor, dtype=torch.float64)  # (C,)
    o = torch.tensor(offset, dtype=torch.float64)
    with torch.device("meta"):
        new = AutoencoderKL(**{**network.architecture, "quant_convs": True})
    weight, bias = _convolution(network.quant_conv, 2 * len(f))
    rows = torch.cat([f, torch.ones_like(f)])
    state = dict(network.state_dict())
    state |= _named("quant_conv", rows[:, None] * weight, rows * bias + torch.cat([o, 2 * f.log()]))
    weight, bias = _convolution(network.post_quant_conv, len(f))
    state |= _named("post_quant_conv", weight / f, bias - weight @ (o / f))
    new.load_state_dict(state, assign=True)
    return new.eval()


def refuse_bottleneck(network: Autoencoder) -> None:
    """
    Raises:
        ValueError: It has a bottleneck that other projects' autoencoders have not.
    """
    if bottleneck := network.architecture.get("bottleneck"):
        raise ValueError(
            f"this autoencoder has bottleneck={bottleneck['is']}, which no other layout here can hold: export with "
            f"format=safetensors, or train one without it"
        )


def _convolution(module: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Weight (channels, channels) and bias (channels,) of a 1x1 convolution, or of none, in float64."""
    if not isinstance(module, nn.Conv2d):
        return torch.eye(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    assert module.bias is not None
    return module.weight.detach().double().flatten(1).cpu(), module.bias.detach().double().cpu()


def _named(name: str, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    return {f"{name}.weight": weight.float()[:, :, None, None], f"{name}.bias": bias.float()}
