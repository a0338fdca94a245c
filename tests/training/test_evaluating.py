"""Metrics measured within a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from ldm.codecs.pooled import PooledCodec
from ldm.data.pipeline import ShardDataset
from ldm.evaluation.distribution import Frechet
from ldm.evaluation.features import OwnEncoder, Pixels
from ldm.evaluation.inception import Inception
from ldm.evaluation.scores import read_scores
from ldm.needs import MissingNeeds
from ldm.sampling.grids import Uniform
from ldm.sampling.guidance import Unguided
from ldm.sampling.samplers import Euler
from ldm.training.callbacks import StopAtImages
from ldm.training.ema import EMA
from ldm.training.evaluating import Evaluation
from tests.commands.scored import make_shards
from tests.training.tiny import TinyData, TinyModule, fit


@dataclass(frozen=True)
class Drawing:
    """Plain grey pictures, the brighter the larger the weight that was in the module."""

    weight: Tensor
    sampler: Euler = field(default_factory=Euler)
    grid: Uniform = field(default_factory=Uniform)
    guidance: Unguided = field(default_factory=Unguided)
    num_steps: int = 3

    def images(self, prompts: list[str], seeds: list[int], *, latent_size: Any, batch_size: int) -> Tensor:
        noise = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return (torch.stack(noise) * 100 + 50 * torch.sigmoid(self.weight.sum())).to(torch.uint8)


class Module(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        self.codec = PooledCodec(channels=3, downsample=8)

    def generation(self, num_steps: int | None = None) -> Any:
        assert not self.network.training
        return Drawing(self.network[0].weight.detach().clone(), num_steps=num_steps or 3)


class Data(TinyData):
    shards: Path

    def measured(self, split: str) -> ShardDataset:
        return ShardDataset(shards=str(self.shards / split), image_size=64, caption_field="captions")


class NumberLogger(Logger):
    name, version = "numbers", ""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.told += [value for name, value in metrics.items() if name == "eval/frechet_pixels"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    made = Data()
    made.shards = make_shards(tmp_path_factory.mktemp("shapes"), num_train=32, num_val=16)
    return made


def metrics() -> dict[str, Any]:
    return {"frechet": Frechet(features=Pixels(size=2), num_samples=16), "left out": None}


def test_scores_are_measured_by_images_recorded_and_logged(tmp_path: Path, data: Data) -> None:
    logger = NumberLogger()
    evaluation = Evaluation(metrics=metrics(), every_num_images=10, batch_size=8)
    parts = [EMA(decay=0.5), evaluation, StopAtImages(num_images=24)]
    fit(tmp_path / "tiny" / "one", parts, loggers=logger, module=Module(), data=data)
    scores = read_scores(tmp_path / "tiny" / "one")
    assert [score.images_seen for score in scores] == [12, 20, 24]
    assert [score.value for score in scores] == logger.told
    assert len({score.value for score in scores}) == 3, "the weights moved"
    assert {score.run for score in scores} == {"tiny/one"}
    assert {score.protocol.weights for score in scores} == {"ema"}


def test_measuring_changes_nothing_in_the_training(tmp_path: Path, data: Data) -> None:
    evaluation = Evaluation(metrics=metrics(), every_num_images=4, batch_size=8)
    _, measured = fit(
        tmp_path / "a", [EMA(), evaluation, StopAtImages(num_images=24)], module=Module(), data=data
    )
    _, plain = fit(tmp_path / "b", [EMA(), StopAtImages(num_images=24)], module=Module(), data=data)
    assert torch.equal(measured.network[0].weight, plain.network[0].weight)
    assert torch.equal(measured.network[1].running_mean, plain.network[1].running_mean)


def test_own_features_are_those_of_the_trainings_codec(tmp_path: Path, data: Data) -> None:
    own = {"frechet": Frechet(features=OwnEncoder(), num_samples=16)}
    evaluation = Evaluation(
        metrics=own, every_num_images=None, batch_size=8, references=str(tmp_path / "kept")
    )
    fit(tmp_path / "a", [evaluation, StopAtImages(num_images=8)], module=Module(), data=data)
    (score,) = read_scores(tmp_path / "a")
    assert score.metric == "frechet_own" and score.images_seen == 8
    assert score.protocol.weights == "online"
    assert list((tmp_path / "kept").rglob("moments.safetensors"))


def test_missing_weights_are_told_before_the_training_begins(tmp_path: Path) -> None:
    fid = {"fid": Frechet(features=Inception(path=str(tmp_path / "x.pth")))}
    with pytest.raises(MissingNeeds, match=r"callbacks\.evaluation\.metrics\.fid\.features\.path"):
        Evaluation(metrics=fid, every_num_images=None)
