"""Inputs that a network is told late: at the start it answers as if it were not told, and then it hears them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ldm.interfaces import Conditioning
from ldm.nn.dit import DiT
from ldm.nn.flux import Flux
from ldm.nn.mmdit import MMDiT
from ldm.nn.pixart import PixArt
from ldm.nn.unet import UNet

TEXT = {"context_width": 16, "pooled_width": 8}
PATCHES = {"in_channels": 4, "patch_size": 2, "width": 24, "num_heads": 2}


def dit(**told: Any) -> nn.Module:
    return DiT(**PATCHES, **TEXT, depth=2, **told)


def pixart(**told: Any) -> nn.Module:
    return PixArt(**PATCHES, context_width=16, depth=2, **told)


def mmdit(**told: Any) -> nn.Module:
    return MMDiT(**PATCHES, **TEXT, depth=2, max_size=4, base_size=4, **told)


def flux(**told: Any) -> nn.Module:
    return Flux(**PATCHES, **TEXT, num_double_blocks=1, num_single_blocks=1, rotary_widths=[4, 4, 4], **told)


def unet(**told: Any) -> nn.Module:
    return UNet(
        in_channels=4,
        out_channels=4,
        channels=[8, 16],
        blocks_per_level=1,
        transformer_depth=[0, 1],
        middle_depth=1,
        num_heads=[1, 2],
        num_groups=4,
        **TEXT,
        **told,
    )


NETWORKS = pytest.mark.parametrize("build", [dit, pixart, mmdit, flux, unet])


def conditioning() -> Conditioning:
    generator = torch.Generator().manual_seed(1)
    return Conditioning(
        tokens=torch.randn(3, 5, 16, generator=generator),
        mask=torch.ones(3, 5, dtype=torch.bool),
        pooled=torch.randn(3, 8, generator=generator),
    )


def awake(network: nn.Module) -> nn.Module:
    """Every weight away from 0, but those of late inputs."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if not name.startswith("late."):
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return network


def answer(network: nn.Module, **told: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, 8, 8, generator=generator)
    return network(x, torch.tensor([0.2, 0.5, 1.0]), replace(conditioning(), **told))


@NETWORKS
def test_a_network_told_late_begins_as_the_one_that_is_not(build: Any) -> None:
    guidance = {} if build is flux else {"guidance": 2.0}  # Flux has its own, as published
    plain, told = awake(build()), build(average=True, **guidance)
    missing, unexpected = told.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == [] and missing and all(name.startswith("late.") for name in missing)
    for numbers in ({}, {"guidance": torch.tensor([1.0, 3.0, 9.0])}, {"span": torch.tensor([0.0, 0.4, 1.0])}):
        assert torch.equal(answer(told, **numbers), answer(plain))


@NETWORKS
def test_and_hears_each_of_them_once_it_has_learned(build: Any) -> None:
    told = awake(build(guidance=2.0, average=True))
    first = answer(told, guidance=torch.full((3,), 2.0), span=torch.zeros(3)).square().sum()
    first.backward()
    silent = [
        name for name, x in told.named_parameters() if name.startswith("late.") and name.endswith("2.weight")
    ]
    assert silent
    for name in silent:
        parameter = told.get_parameter(name)
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, f"{name} can never learn"
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(4))
    base = answer(told, guidance=torch.full((3,), 2.0), span=torch.zeros(3))
    assert torch.equal(base, answer(told)), "what nobody names is the network's own scale, and no span"
    assert (base - answer(told, guidance=torch.full((3,), 4.0))).abs().max() > 1e-4
    assert (base - answer(told, span=torch.full((3,), 0.5))).abs().max() > 1e-4


@NETWORKS
def test_without_late_inputs_there_are_no_weights_for_them(build: Any) -> None:
    assert not [name for name in build().state_dict() if name.startswith("late.")]
