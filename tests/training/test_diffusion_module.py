from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.codecs.identity import IdentityCodec
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import Flow
from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.shifts import DimensionShift, Shifted
from ldm.diffusion.time_samplers import LogitNormal, LogNormalSigma, Stratified
from ldm.diffusion.training_noise import Immiscible, NoiseOffset
from ldm.diffusion.uncertainty import LearnedUncertainty
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Batch, Conditioning, EncodedText
from ldm.nn.unet import UNet
from ldm.sampling.grids import Uniform
from ldm.sampling.guidance import Unguided
from ldm.sampling.samplers import Euler
from ldm.training.checkpoint import load_weights, read_checkpoint
from ldm.training.diffusion_module import DiffusionModule
from ldm.training.ema import EMA
from ldm.training.optim import AdamW, ConstantRate
from ldm.training.run import RunFolder
from ldm.training.saving import Checkpoints
from tests.training.tiny import SIDE, batch_at, fit

ALL = torch.ones(4, dtype=torch.bool)  # captions kept


class Captions(nn.Module):
    width, pooled_width, length = 2, 2, 1

    def forward(self, captions: Sequence[str]) -> Conditioning:
        n = len(captions)
        mask = torch.ones(n, 1, dtype=torch.bool)
        return Conditioning(tokens=torch.zeros(n, 1, 2), mask=mask, pooled=torch.zeros(n, 2))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.asked.append((x.detach(), t.detach()))
        return self.mix(x)


def module(**parts: Any) -> DiffusionModule:
    defaults = Diffusion(
        schedule=RectifiedFlow(),
        parameterization=Flow(),
        time_sampler=Stratified(law=LogitNormal()),
        weighting=Unweighted(),
    )
    torch.manual_seed(0)
    return DiffusionModule(
        diffusion=replace(defaults, **parts),
        network=Network(),
        text_encoder=Captions(),
        codec=IdentityCodec(),
        optimizer=AdamW(lr=0.01),
        lr_schedule=ConstantRate(),
        sampler=Euler(),
        grid=Uniform(),
        guidance=Unguided(),
        num_steps=2,
        num_images=100,
        image_size=SIDE,
    )


def noises(it: DiffusionModule, batch: Batch) -> Tensor:
    """eps (B, 3, 8, 8) as a step uses it, read off what the network is shown."""
    u = torch.full((len(batch),), 0.9)
    it.losses(batch, ALL[: len(batch)], u, purpose="noise")
    x_t, t = it.network.asked[-1]
    t = t.reshape(-1, 1, 1, 1)
    assert batch.images is not None
    return (x_t - (1 - t) * batch.images) / t


def test_the_uncertainty_is_trained_averaged_saved_and_loaded(tmp_path: Path) -> None:
    it = module(uncertainty=LearnedUncertainty(num_features=8))
    assert set(it.parts()) == {"network", "uncertainty"}
    folder = RunFolder(tmp_path)
    fit(
        folder.path,
        [EMA(decay=0.5), Checkpoints(every_num_images=4)],
        module=it,
        max_steps=3,
    )
    weights = it.diffusion.uncertainty.weight
    assert (weights != 0).all(), "nothing was learned"
    checkpoint = read_checkpoint(folder.checkpoints / "last")
    assert torch.equal(checkpoint["state_dict"]["uncertainty.weight"], weights)
    averaged = checkpoint["ema"]["uncertainty"]["weight"]
    assert not torch.equal(averaged, weights)
    again = module(uncertainty=LearnedUncertainty(num_features=8))
    assert load_weights(again, checkpoint, weights="online") == "online"
    assert torch.equal(again.diffusion.uncertainty.weight, weights)
    assert load_weights(again, checkpoint) == "ema"
    assert torch.equal(again.diffusion.uncertainty.weight, averaged)


def test_without_weights_there_is_nothing_more_to_train() -> None:
    it = module()
    assert set(it.parts()) == {"network"}
    assert not [name for name in it.state_dict() if name.startswith("uncertainty")]


def test_the_uncertainty_does_not_change_the_network_s_first_weights() -> None:
    assert torch.equal(
        module().network.mix.weight, module(uncertainty=LearnedUncertainty()).network.mix.weight
    )


def test_the_noise_offset_is_tied_to_the_sample() -> None:
    plain, offset = module(), module(noise=NoiseOffset(strength=0.5))
    together = noises(offset, batch_at(0)) - noises(plain, batch_at(0))  # (4, 3, 8, 8)
    torch.testing.assert_close(together, together.mean((2, 3), keepdim=True).expand_as(together))
    alone = noises(offset, batch_at(2, size=1)) - noises(plain, batch_at(2, size=1))
    torch.testing.assert_close(alone[0], together[2])
    assert together[0].sub(together[1]).abs().min() > 1e-3
    # and it is no copy of the noise's own first numbers, which come from the same seed
    assert (together[:, 0, 0, 0] / 0.5 - noises(plain, batch_at(0))[:, 0, 0, 0]).abs().min() > 1e-3


def test_the_coupling_exchanges_noises_within_the_batch() -> None:
    batch = batch_at(0)
    plain, coupled = noises(module(), batch), noises(module(coupling=Immiscible()), batch)
    assert batch.images is not None
    torch.testing.assert_close(coupled, Immiscible()(batch.images, plain), atol=1e-5, rtol=1e-4)


def test_a_law_in_sigma_and_a_shift_by_shape_meet_in_the_step() -> None:
    """3 * 8 * 8 = 192 values against 48: a shift of 2; the network is told the moved time, whose sigma has the law."""
    it = module(
        schedule=Shifted(schedule=RectifiedFlow(), shift=DimensionShift(base_dim=48)),
        time_sampler=LogNormalSigma(mean=-1.2, std=1.2),
    )
    it.losses(batch_at(0), ALL, torch.full((4,), 0.5), purpose="noise")
    _, told = it.network.asked[-1]
    torch.testing.assert_close(told / (1 - told), torch.full((4,), -1.2).exp())


@pytest.mark.parametrize(
    "parts", [{}, {"coupling": Immiscible(), "noise": NoiseOffset()}], ids=["plain", "all"]
)
def test_a_step_can_be_repeated(parts: dict[str, Any]) -> None:
    u = torch.linspace(0.1, 0.9, 4)
    one, other = (module(**parts).losses(batch_at(4), ALL, u, purpose="noise")[0] for _ in range(2))
    assert torch.equal(one, other)


# --- what the network is told ----------------------------------------------------------------------------------------


def told(it: DiffusionModule, batch: Batch, kept: Tensor) -> Conditioning:
    seen: list[Conditioning] = []
    it.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2]))
    it.losses(batch, kept, torch.full((len(batch),), 0.5), purpose="noise")
    return seen[0]


def encoded(num: int, value: float) -> Conditioning:
    rows = torch.arange(num)[:, None, None] + value
    return Conditioning(
        tokens=rows.expand(num, 3, 2).half(),
        mask=torch.arange(3).expand(num, 3) <= torch.arange(num)[:, None],
        pooled=rows[:, 0].expand(num, 2).half(),
    )


def test_text_made_beforehand_is_told_in_place_of_captions_and_dropped_with_them() -> None:
    it = module()
    it.text_encoder = None  # nobody asks it
    cached = EncodedText(captions=encoded(4, 10.0), null=encoded(1, -5.0))
    cond = told(it, replace(batch_at(0), text=cached), torch.tensor([True, False, True, False]))
    assert cond.tokens.dtype == cond.pooled.dtype == torch.float32
    assert cond.tokens[:, 0, 0].tolist() == [10, -5, 12, -5] == cond.pooled[:, 0].tolist()
    assert cond.mask.sum(1).tolist() == [1, 1, 3, 1]


def test_the_network_is_told_how_pictures_were_cut_also_without_caption() -> None:
    sizes = torch.arange(24.0).reshape(4, 6)
    batch = replace(batch_at(0), sizes=sizes)
    for kept in (ALL, ~ALL):
        assert torch.equal(told(module(), batch, kept).sizes, sizes)
    cached = EncodedText(captions=encoded(4, 0.0), null=encoded(1, 0.0))
    assert torch.equal(told(module(), replace(batch, text=cached), ~ALL).sizes, sizes)
    assert told(module(), batch_at(0), ALL).sizes is None


def test_a_batch_moves_with_all_it_carries() -> None:
    cached = EncodedText(captions=encoded(4, 0.0), null=encoded(1, 0.0))
    moved = replace(batch_at(0), text=cached, sizes=torch.zeros(4, 6)).to("meta")
    assert moved.images.is_meta and moved.sizes.is_meta
    assert moved.text.captions.mask.is_meta and moved.text.null.tokens.is_meta
    assert moved.keys == batch_at(0).keys


def test_a_network_with_size_conditioning_trains_and_samples() -> None:
    it = module()
    it.network = UNet(
        in_channels=3,
        out_channels=3,
        channels=[8, 8],
        blocks_per_level=1,
        transformer_depth=[0, 1],
        middle_depth=1,
        num_heads=[1, 1],
        context_width=2,
        context_mask=False,
        pooled_width=2,
        size_features=4,
        num_classes=0,
        num_groups=2,
        conv_projections=False,
    )
    for parameter in it.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    u, small = torch.full((4,), 0.5), torch.tensor([[8.0, 8, 0, 0, 8, 8]] * 4)
    losses = [
        it.losses(replace(batch_at(0), sizes=sizes), ALL, u, purpose="noise")[0]
        for sizes in (small, small * 40)
    ]
    assert not torch.allclose(*losses)
    with pytest.raises(ValueError, match=r"Conditioning\.sizes"):
        it.losses(batch_at(0), ALL, u, purpose="noise")
    made = it.generation(2).images(["a", "b"], [0, 1], latent_size=(8, 8), batch_size=2)
    assert made.shape == (2, 3, 8, 8)
