from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from ldm.training.callbacks import (
    ClipGradients,
    EveryNumImages,
    LossPlots,
    StopAtImages,
    Throughput,
    ValidateEvery,
    crossed,
    evaluating,
    untimed,
)
from ldm.training.logging import CSVLogger
from ldm.training.plots import read_curves
from ldm.training.progress import ImageProgress
from ldm.training.saving import Checkpoints
from tests.training.tiny import TinyData, TinyModule, fit


@pytest.mark.parametrize("every", [1, 7, 64, 1000])
@pytest.mark.parametrize("batch", [1, 3, 64, 100, 2500])
def test_crossed_fires_once_for_each_multiple_that_batches_can_tell_apart(every: int, batch: int) -> None:
    counts = range(0, 10_000, batch)
    fired = [now for before, now in itertools.pairwise(counts) if crossed(before, now, every)]
    expected = {
        next(now for now in counts if now >= multiple) for multiple in range(every, counts[-1] + 1, every)
    }
    assert fired == sorted(expected)


def test_gradients_are_clipped_for_fused_optimizers_too(tmp_path: Path) -> None:
    class Fused(TinyModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=1.0, fused=True)

    before = [weight.clone() for weight in Fused().parameters()]
    parts = [ClipGradients(max_norm=1e-3), StopAtImages(num_images=4)]
    _, module = fit(tmp_path, parts, module=Fused(), precision="bf16-mixed")
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, module.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)  # the step is the clipped gradient


class Acts(EveryNumImages):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.at: list[int] = []

    def act(self, trainer, module):
        self.at.append(module.images_seen)


@pytest.mark.parametrize(("batch", "expected"), [(4, [12, 20, 32, 40, 44]), (16, [16, 32, 48])])
def test_acts_by_images_whatever_the_batch(tmp_path: Path, batch: int, expected: list[int]) -> None:
    acts = Acts(every_num_images=10)
    fit(tmp_path, [acts, StopAtImages(num_images=44)], data=TinyData(batch_size=batch))
    assert acts.at == expected


def test_a_resumed_run_acts_where_the_whole_one_would(tmp_path: Path) -> None:
    def parts(num: int) -> list[Callback]:
        return [
            Acts(every_num_images=10, at_end=False),
            StopAtImages(num_images=num),
            Checkpoints(every_num_images=99),
        ]

    first, second = parts(16), parts(44)
    fit(tmp_path, first)
    fit(tmp_path, second, resume=tmp_path / "checkpoints" / "last")
    assert first[0].at + second[0].at == [12, 20, 32, 40]  # type: ignore[attr-defined]


def test_null_acts_at_the_end_only_and_zero_is_refused(tmp_path: Path) -> None:
    acts = Acts(every_num_images=None)
    fit(tmp_path, [acts, StopAtImages(num_images=12)])
    assert acts.at == [12]
    with pytest.raises(ValueError, match="every_num_images=0"):
        Acts(every_num_images=0)


def test_validation_is_due_by_images(tmp_path: Path) -> None:
    class At(Callback):
        at: list[int] = []  # noqa: RUF012

        def on_validation_end(self, trainer, pl_module):
            self.at.append(pl_module.images_seen)

    watch = At()
    fit(tmp_path, [watch, ValidateEvery(num_images=13), StopAtImages(num_images=40)])
    assert watch.at == [12, 24, 36, 40]  # and a last one at the end


def test_throughput_is_exact_and_leaves_pauses_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    class SlowData(TinyData):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            passes(0.01)
            return batch

    class Work(Callback):
        def on_before_optimizer_step(self, *_):
            passes(0.04)

        def on_train_batch_end(self, trainer, *_):
            with untimed(trainer):  # a grid or a checkpoint
                passes(5.0)

        def on_validation_epoch_end(self, *_):
            passes(7.0)

    monkeypatch.setattr("ldm.training.callbacks.time", SimpleNamespace(perf_counter=lambda: now))
    logger = CSVLogger(folder=str(tmp_path))
    parts = [Throughput(window=5), Work(), ValidateEvery(num_images=12), StopAtImages(num_images=60)]
    fit(tmp_path, parts, data=SlowData(), loggers=logger)
    curves = {curve.name: curve.y for curve in read_curves(tmp_path / "metrics.csv")[0]}
    assert curves["throughput/samples_per_second"] == pytest.approx(4 / 0.05, rel=1e-4)
    assert curves["throughput/data_wait_ms"] == pytest.approx(10.0, rel=1e-4)


def test_evaluating_gives_each_submodule_its_mode_back() -> None:
    module = TinyModule().train()
    module.frozen.eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert module.training and module.network.training and not module.frozen.training


def test_plots_and_progress_lines(tmp_path: Path, capsys) -> None:
    parts = [
        LossPlots(),
        ImageProgress(num_images=24, line_every_seconds=0),
        ValidateEvery(num_images=12),
        StopAtImages(num_images=24),
    ]
    fit(tmp_path, parts, loggers=CSVLogger(folder=str(tmp_path)))
    assert (tmp_path / "plots" / "loss.png").stat().st_size > 5000
    lines = [line for line in capsys.readouterr().err.splitlines() if "images" in line]
    assert "100 %  24/24 images" in lines[-1] and "val/loss" in lines[-1]
