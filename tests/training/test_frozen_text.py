"""A training with a pretrained text encoder: it stays out of checkpoints and gradients, and its contract is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from ldm.codecs.identity import IdentityCodec
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import Flow
from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.time_samplers import LogitNormal
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Conditioning
from ldm.sampling.grids import Uniform
from ldm.sampling.guidance import Unguided
from ldm.sampling.samplers import Euler
from ldm.text.clip import ClipArchitecture, ClipText
from ldm.text.learned import LearnedTextEncoder
from ldm.training.checkpoint import load_weights, read_checkpoint
from ldm.training.diffusion_module import DiffusionModule
from ldm.training.ema import EMA
from ldm.training.optim import AdamW, ConstantRate
from ldm.training.saving import Checkpoints
from tests.training.tiny import SIDE, fit


class Network(nn.Module):
    """Hears the caption by one number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        self.hear = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        return self.mix(x) + self.hear(cond.tokens.mean(1))[..., None, None]


def clip(**options: Any) -> ClipText:
    sizes = ClipArchitecture(width=16, heads=2, layers=2, projection=8)
    return ClipText(**{"architecture": sizes, "weights": None, "length": 3, **options})


def module(text_encoder: nn.Module) -> DiffusionModule:
    torch.manual_seed(0)
    return DiffusionModule(
        diffusion=Diffusion(
            schedule=RectifiedFlow(),
            parameterization=Flow(),
            time_sampler=LogitNormal(),
            weighting=Unweighted(),
        ),
        network=Network(text_encoder.width),
        text_encoder=text_encoder,
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DiffusionModule]:
    folder = tmp_path_factory.mktemp("run")
    callbacks = [EMA(decay=0.5), Checkpoints(every_num_images=4, monitor=None)]
    loggers = CSVLogger(folder, name="", version="")
    _, it = fit(folder, callbacks, module=module(clip()), loggers=loggers, max_steps=2)
    return folder, it


def test_checkpoints_hold_the_contract_and_no_weight_of_a_frozen_encoder(
    trained: tuple[Path, DiffusionModule],
) -> None:
    folder, it = trained
    checkpoint = read_checkpoint(folder / "checkpoints" / "last")
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"network"}
    assert set(checkpoint["ema"]) == {"network"} == set(it.parts())
    assert checkpoint["text_contract"] == clip().contract
    assert all(p.grad is None for p in it.text_encoder.parameters())


def test_training_goes_on_with_the_same_encoder(
    trained: tuple[Path, DiffusionModule], tmp_path: Path
) -> None:
    folder, it = trained
    last = folder / "checkpoints" / "last"
    again = module(clip())
    assert load_weights(again, read_checkpoint(last), weights="online") == "online"
    for name, x in it.state_dict().items():
        assert again.state_dict()[name].equal(x), name
    callbacks = [Checkpoints(every_num_images=4, monitor=None)]
    _, more = fit(tmp_path, callbacks, module=module(clip()), resume=last, max_steps=4)
    assert more.images_seen == 2 * it.images_seen


@pytest.mark.parametrize("change", [{"layer": -2}, {"length": 5}, {"padding": 0}], ids=str)
def test_another_encoder_is_refused_by_what_changed(
    trained: tuple[Path, DiffusionModule], change: dict[str, int]
) -> None:
    folder, _ = trained
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"this denoiser was made with another text encoder: {name} was"):
        load_weights(module(clip(**change)), read_checkpoint(folder / "checkpoints" / "last"))


def test_checkpoints_from_before_there_were_contracts_load(trained: tuple[Path, DiffusionModule]) -> None:
    folder, _ = trained
    checkpoint = dict(read_checkpoint(folder / "checkpoints" / "last"))
    del checkpoint["text_contract"]
    assert load_weights(module(clip(layer=-2)), checkpoint) == "ema"


def test_cut_captions_are_a_number_among_the_metrics(trained: tuple[Path, DiffusionModule]) -> None:
    folder, _ = trained
    metrics = pd.read_csv(folder / "metrics.csv")
    shares = metrics["train/captions_cut"].dropna()
    # "picture 0" is a word and a number between two more tokens: all are cut but the empty caption of a dropped one
    assert len(shares) == 2 and shares.between(0.5, 1).all()


def test_an_encoder_that_learns_stays_in_checkpoints() -> None:
    it = module(LearnedTextEncoder(width=16, num_heads=2, length=4, num_buckets=16))
    checkpoint: dict[str, Any] = {"state_dict": it.state_dict()}
    it.on_save_checkpoint(checkpoint)
    assert any(name.startswith("text_encoder.") for name in checkpoint["state_dict"])
    assert checkpoint["text_contract"]["encoder"] == "LearnedTextEncoder"
