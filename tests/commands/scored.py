"""A run that draws what a function says, over a few real shards, for the tests of ``ldm evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm.codecs.pooled import PooledCodec
from ldm.commands import evaluate as command
from ldm.commands.load import LoadedRun
from ldm.commands.shapes import shapes
from ldm.data.pipeline import ShardDataset, in_order
from ldm.evaluation.scores import Score
from ldm.sampling.from_run import FromRun, GuidanceFromRun
from ldm.sampling.generate import to_uint8
from ldm.sampling.grids import Uniform
from ldm.sampling.guidance import ClassifierFree
from ldm.sampling.samplers import Euler
from ldm.training.folders import MANIFEST, folder_name
from ldm.training.run import RunFolder

OWN = {"sampler": FromRun(), "grid": FromRun(), "guidance": GuidanceFromRun()}
Draw = Callable[[Sequence[str], Sequence[int]], Tensor]
"""Prompts and seeds, one of each per picture -> (N, 3, 64, 64) uint8."""


@dataclass(frozen=True)
class Drawing:
    """What stands for a ``Generation``; what it was asked for is kept."""

    draw: Draw
    asked: list[str]
    sampler: object = field(default_factory=Euler)
    grid: object = field(default_factory=Uniform)
    guidance: object = field(default_factory=lambda: ClassifierFree(scale=2.0))
    num_steps: int = 7

    def images(
        self, prompts: Sequence[str], seeds: Sequence[int], *, latent_size: tuple[int, int], batch_size: int
    ) -> Tensor:
        assert latent_size == (8, 8) and len(prompts) == len(seeds) <= batch_size
        made = self.draw(prompts, seeds)
        self.asked.extend(prompts)
        return made


class Module(torch.nn.Module):
    latent_size = (8, 8)
    caption_dropout = 0.1

    def __init__(self, draw: Draw, asked: list[str]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.codec = PooledCodec(channels=3, downsample=8)
        self.drawing = Drawing(draw, asked)

    def generation(self) -> Any:
        return self.drawing


@dataclass
class Run:
    """The folder, what was asked of it so far, and how it draws now."""

    path: Path
    draw: Draw
    asked: list[str] = field(default_factory=list)
    loaded: list[Path] = field(default_factory=list)

    def evaluate(self, metrics: dict[str, Any], **given: Any) -> list[Score]:
        defaults = {**OWN, "run": str(self.path), "metrics": metrics, "device": "cpu", "batch_size": 16}
        return command.evaluate(**{**defaults, **given})

    def value(self, metrics: dict[str, Any], **given: Any) -> dict[str, float]:
        return {one.metric: one.value for one in self.evaluate(metrics, **given)}

    def checkpoint(self, images: int) -> Path:
        """One more, which holds nothing but its name."""
        place = self.path / "checkpoints" / folder_name(images)
        place.mkdir(parents=True)
        (place / MANIFEST).write_text(f"{images}")
        return place


def noise(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Pictures of nothing, each from its own seed."""
    rows = [
        torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return torch.stack(rows).to(torch.uint8)


def make_shards(folder: Path, *, num_train: int = 96, num_val: int = 48) -> Path:
    """Shards of coloured shapes in ``folder``/train and ``folder``/val."""
    shapes(out=str(folder), num_train=num_train, num_val=num_val, seed=0, samples_per_shard=64, num_workers=1)
    return folder


def pictures_of(shards: Path) -> Tensor:
    """All of a split, (N, 3, 64, 64) uint8."""
    dataset = ShardDataset(shards=str(shards), image_size=64)
    return torch.cat([to_uint8(batch.images) for batch in in_order(dataset, batch_size=32)])


def make_run(
    tmp_path: Path,
    shards: Path,
    draw: Draw,
    monkeypatch: pytest.MonkeyPatch,
    *,
    caption_field: str = "captions",
) -> Run:
    """A run over these shards whose loading is cut short."""
    path = tmp_path / "runs" / "shapes_dit" / "one"
    path.mkdir(parents=True, exist_ok=True)  # several processes make the same
    data = {
        "_target_": "ldm.training.datamodule.ImageDataModule",
        "train_shards": str(shards / "train"),
        "val_shards": str(shards / "val"),
        "image_size": 64,
        "batch_size": 8,
        "caption_field": caption_field,
    }
    config = OmegaConf.create({"data": data, "callbacks": {"ema": {"decay": 0.99}}})
    OmegaConf.save(config, path / "config.yaml")
    run = Run(path, draw)

    def load(where: str | Path, *, weights: str, runs: str) -> LoadedRun:
        checkpoint = (
            Path(where) if Path(where).parent.name == "checkpoints" else path / "checkpoints" / "last"
        )
        run.loaded.append(checkpoint)
        seen = checkpoint.name.rpartition("_")[2]
        return LoadedRun(
            folder=RunFolder(path),
            config=config,
            module=Module(run.draw, run.asked),
            checkpoint_path=checkpoint,
            checkpoint_hash=f"{int(seen) if seen.isdecimal() else 1000:064d}",
            weights=weights,
            images_seen=int(seen) if seen.isdecimal() else 1000,
        )

    monkeypatch.setattr(command, "load_run", load)
    return run
