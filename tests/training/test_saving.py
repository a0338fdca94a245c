from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from ldm.training.callbacks import StopAtImages, ValidateEvery
from ldm.training.ema import EMA
from ldm.training.logging import CSVLogger
from ldm.training.saving import Checkpoints, Interrupted, interruptible
from tests.training.tiny import BATCH, TinyModule, fit


class InterruptAt(Callback):
    """Presses Ctrl-C in the middle of a step."""

    def __init__(self, images: int, *, times: int = 1) -> None:
        self.images, self.times = images, times

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if pl_module.images_seen == self.images:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def callbacks(num_images: int, *more: Callback) -> list[Callback]:
    return [
        EMA(decay=0.9),
        StopAtImages(num_images=num_images),
        ValidateEvery(num_images=24),
        *more,
        Checkpoints(every_num_images=1000),
    ]


def assert_same(first: object, second: object, where: str = "") -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert first == second, where


def read(folder: Path, name: str = "last.ckpt") -> dict:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


@pytest.mark.parametrize("stop_at", [20, 24, 28])  # 24 is where validation falls due
def test_stop_and_resume_equals_uninterrupted(tmp_path: Path, stop_at: int, capsys) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, uninterrupted = fit(whole, callbacks(72), loggers=CSVLogger(folder=str(whole)))
    with pytest.raises(Interrupted) as leaving:
        fit(parts, callbacks(72, InterruptAt(stop_at)), loggers=CSVLogger(folder=str(parts)))
    assert leaving.value.code == 130
    last = parts / "checkpoints" / "last.ckpt"
    assert read(parts)["images_seen"] == stop_at
    assert f"python train.py resume={parts}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    _, resumed = fit(parts, callbacks(72), resume=last, loggers=CSVLogger(folder=str(parts)))
    assert resumed.seen_keys == uninterrupted.seen_keys[stop_at:]
    first, second = read(whole), read(parts)
    for key in ("state_dict", "optimizer_states", "ema", "images_seen", "global_step"):
        assert_same(first[key], second[key], key)
    assert_same(read(whole, "best.ckpt")["ema"], read(parts, "best.ckpt")["ema"])
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()


def test_a_finished_run_goes_on_when_given_more_images(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, callbacks(48))
    fit(parts, callbacks(36))
    _, resumed = fit(parts, callbacks(48), resume=parts / "checkpoints" / "last.ckpt")
    assert resumed.images_seen == 48
    for key in ("state_dict", "optimizer_states", "ema"):
        assert_same(read(whole)[key], read(parts)[key], key)


def test_resuming_what_is_done_trains_nothing(tmp_path: Path) -> None:
    fit(tmp_path, callbacks(16))
    _, module = fit(tmp_path, callbacks(16), resume=tmp_path / "checkpoints" / "last.ckpt")
    assert module.images_seen == 16


def test_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit(tmp_path, callbacks(72, InterruptAt(20, times=2)))
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_best_is_by_the_monitored_metric_and_copies_are_kept(tmp_path: Path) -> None:
    class Worse(TinyModule):
        """Validates best at 16 images."""

        def validation_step(self, batch, batch_index):
            self.log("val/loss", abs(self.images_seen - 16.0), batch_size=len(batch))

    saver = Checkpoints(every_num_images=8, keep_every_num_images=15)
    fit(tmp_path, [saver, StopAtImages(num_images=40), ValidateEvery(num_images=8)], module=Worse())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "images_000000016.ckpt", "images_000000032.ckpt", "last.ckpt"]
    assert read(tmp_path, "best.ckpt")["images_seen"] == 16
    assert (
        read(tmp_path, "images_000000016.ckpt")["images_seen"] == 16
    )  # replaced last.ckpt did not change the copy
    assert read(tmp_path)["images_seen"] == 40
    assert saver.best_value == 0.0


def test_a_metric_that_is_not_logged_is_named(tmp_path: Path) -> None:
    saver = Checkpoints(every_num_images=8, monitor="val/lossy")
    with pytest.raises(ValueError, match="val/lossy"):
        fit(tmp_path, [saver, StopAtImages(num_images=8), ValidateEvery(num_images=8)])


def test_foreign_objects_are_refused_by_name(tmp_path: Path) -> None:
    class Foreign(Callback):
        def state_dict(self):
            return {"where": tmp_path}

    with pytest.raises(TypeError, match=r"callbacks.*where.*PosixPath"):
        fit(tmp_path, [Foreign(), Checkpoints(every_num_images=4), StopAtImages(num_images=4)])


def test_a_module_that_counts_too_late_is_told(tmp_path: Path) -> None:
    class Late(TinyModule):
        def training_step(self, batch, batch_index):
            loss = super().training_step(batch, batch_index)
            self.images_seen -= BATCH
            return loss

        def on_train_batch_end(self, *_):
            self.images_seen += BATCH

    with pytest.raises(RuntimeError, match="count the batch in training_step"):
        fit(tmp_path, [Checkpoints(every_num_images=4)], module=Late())


def test_lightnings_exit_code_after_an_early_interrupt_is_130() -> None:
    with pytest.raises(Interrupted), interruptible():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    with pytest.raises(SystemExit) as leaving, interruptible():
        sys.exit(3)
    assert leaving.value.code == 3
