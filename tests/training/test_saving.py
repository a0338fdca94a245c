from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from ldm.training import folders, stopping
from ldm.training.callbacks import StopAtImages, ValidateEvery
from ldm.training.checkpoint import newest_checkpoint, read_checkpoint
from ldm.training.ema import EMA
from ldm.training.folders import DamagedCheckpoint
from ldm.training.grids import SampleGrid
from ldm.training.logging import CSVLogger
from ldm.training.saving import Checkpoints, interruptible
from ldm.training.stopping import Interrupted, Preempted, Unsaved
from tests.training.tiny import BATCH, TinyModule, fit


class InterruptAt(Callback):
    """Sends a signal in the middle of a step; Ctrl-C unless told otherwise."""

    def __init__(self, images: int, *, times: int = 1, number: int = signal.SIGINT) -> None:
        self.images, self.times, self.number = images, times, number

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if pl_module.images_seen == self.images:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


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


def read(folder: Path, name: str = "last") -> dict:
    return read_checkpoint(folder / "checkpoints" / name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("stop_at", [20, 24, 28])  # 24 is where validation falls due
def test_stop_and_resume_equals_uninterrupted(tmp_path: Path, stop_at: int, capsys) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, uninterrupted = fit(whole, callbacks(72), loggers=CSVLogger(folder=str(whole)))
    with pytest.raises(Interrupted) as leaving:
        fit(parts, callbacks(72, InterruptAt(stop_at)), loggers=CSVLogger(folder=str(parts)))
    assert leaving.value.code == 130
    last = parts / "checkpoints" / "last"
    assert read(parts)["images_seen"] == stop_at
    assert f"python train.py resume={parts}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    _, resumed = fit(parts, callbacks(72), resume=last, loggers=CSVLogger(folder=str(parts)))
    assert resumed.seen_keys == uninterrupted.seen_keys[stop_at:]
    first, second = read(whole), read(parts)
    for key in ("state_dict", "optimizer_states", "ema", "images_seen", "global_step"):
        assert_same(first[key], second[key], key)
    assert_same(read(whole, "best")["ema"], read(parts, "best")["ema"])
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_saves_and_leaves_with_75(tmp_path: Path, number: int, capsys) -> None:
    before = [signal.getsignal(one) for one in (*stopping.SIGNALS, signal.SIGINT)]
    with pytest.raises(Preempted) as leaving:
        fit(tmp_path, callbacks(72, InterruptAt(20, number=number)))
    assert leaving.value.code == 75
    assert names(tmp_path) == ["images_000000020", "last"]
    assert f"resume={tmp_path}" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in (*stopping.SIGNALS, signal.SIGINT)] == before


def test_a_signal_before_the_first_step_is_not_lost(tmp_path: Path) -> None:
    """Asked while torch was being imported: the run begins, saves what it has, and goes on from there."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stopping.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted):
            fit(parts, callbacks(48))
    finally:
        stopping.stop_listening()
    assert names(parts) == ["images_000000000", "last"]
    fit(whole, callbacks(48), loggers=CSVLogger(folder=str(whole)))
    fit(parts, callbacks(48), resume=parts / "checkpoints", loggers=CSVLogger(folder=str(parts)))
    for key in ("state_dict", "optimizer_states", "ema", "loops"):
        assert_same(read(whole)[key], read(parts)[key], key)
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()


class Leaves(Callback):
    """Asks to leave in the middle of the validation at so many images."""

    def __init__(self, images: int) -> None:
        self.images = images

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if pl_module.images_seen == self.images and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("images", [24, 72])  # 72 is the end
def test_a_validation_is_left_and_made_again(tmp_path: Path, images: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, uninterrupted = fit(whole, callbacks(72), loggers=CSVLogger(folder=str(whole)))
    with pytest.raises(Preempted):
        fit(parts, callbacks(72, Leaves(images)), loggers=CSVLogger(folder=str(parts)))
    saved = read(parts)
    assert saved["images_seen"] == images and saved["callbacks"]["Checkpoints"]["validation_left"]
    assert "val/loss" not in (parts / "metrics.csv").read_text() or images > 24
    _, resumed = fit(parts, callbacks(72), resume=parts / "checkpoints", loggers=CSVLogger(folder=str(parts)))
    assert resumed.seen_keys == uninterrupted.seen_keys[images:]
    assert not read(parts)["callbacks"]["Checkpoints"]["validation_left"]
    for key in ("state_dict", "optimizer_states", "ema", "images_seen", "global_step"):
        assert_same(read(whole)[key], read(parts)[key], key)
    assert_same(read(whole, "best")["ema"], read(parts, "best")["ema"])
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()


class LeavesGrid(SampleGrid):
    """Is asked to leave before the first sampling step of the grid at so many images."""

    def __init__(self, images: int | None) -> None:
        super().__init__(prompts=["a", "b"], every_num_images=20)
        self.images = images

    def act(self, trainer, module):
        if module.images_seen == self.images:
            os.kill(os.getpid(), signal.SIGUSR1)
        super().act(trainer, module)


@pytest.mark.parametrize("images", [20, 40, 48])  # 48 is the end
def test_a_grid_of_samples_is_left_and_made_again(tmp_path: Path, images: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, callbacks(48, LeavesGrid(None)))
    pictures = [f"{seen:09d}.png" for seen in (20, 40, 48)]
    assert sorted(path.name for path in (whole / "samples").iterdir()) == pictures
    with pytest.raises(Preempted):
        fit(parts, callbacks(48, LeavesGrid(images)))
    assert read(parts)["images_seen"] == images
    assert not (parts / f"samples/{images:09d}.png").exists()
    fit(parts, callbacks(48, LeavesGrid(None)), resume=parts / "checkpoints")
    for name in pictures:
        assert (whole / "samples" / name).read_bytes() == (parts / "samples" / name).read_bytes()
    assert_same(read(whole)["state_dict"], read(parts)["state_dict"])


class BrokenDisk(Callback):
    """Nothing can be written from one count of images to another."""

    def __init__(self, patch: pytest.MonkeyPatch, first: int, last: int) -> None:
        self.patch, self.first, self.last = patch, first, last

    def on_train_batch_end(self, trainer, pl_module, *_):
        if pl_module.images_seen == self.first:
            self.patch.setattr(folders, "put", self.fail)
        if pl_module.images_seen == self.last:
            self.patch.undo()

    def fail(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_training_goes_on_while_the_disk_is_full(tmp_path: Path, monkeypatch, caplog) -> None:
    saver = Checkpoints(every_num_images=16)
    fit(tmp_path, [BrokenDisk(monkeypatch, 12, 20), saver, StopAtImages(num_images=40), EMA(decay=0.9)])
    assert [name for name in names(tmp_path) if name[0] == "i"] == ["images_000000032", "images_000000040"]
    assert caplog.text.count("No space left") == 1 and "images_000000024" not in names(tmp_path)
    caplog.clear()
    with pytest.raises(Unsaved) as leaving:
        fit(tmp_path, [BrokenDisk(monkeypatch, 44, 999), Checkpoints(every_num_images=16), EMA(decay=0.9)],
            resume=tmp_path / "checkpoints")  # fmt: skip
    assert leaving.value.code == 74 and caplog.text.count("No space left") == 3
    assert newest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints/images_000000040"
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


def test_going_on_from_before_sets_aside_what_came_after(tmp_path: Path) -> None:
    saver = Checkpoints(every_num_images=8, keep_every_num_images=8)
    fit(tmp_path, [saver, StopAtImages(num_images=24), EMA(decay=0.9)])
    again = Checkpoints(every_num_images=8)
    named = tmp_path / "checkpoints" / "images_000000008"
    with pytest.raises(Preempted):
        fit(tmp_path, [again, EMA(decay=0.9), InterruptAt(12, number=signal.SIGTERM)], resume=named)
    whole = [name for name in names(tmp_path) if name.startswith("images")]
    assert whole == ["images_000000008", "images_000000012"], "a next start must not take 24"
    assert len([name for name in names(tmp_path) if name.startswith("undone-images_0000000")]) == 2


def test_one_that_was_named_is_never_replaced(tmp_path: Path) -> None:
    fit(tmp_path, [Checkpoints(every_num_images=8), StopAtImages(num_images=16)])
    named = tmp_path / "checkpoints" / "images_000000016"
    (named / "weights.pt").write_bytes(b"damaged")
    with pytest.raises(DamagedCheckpoint, match=r"weights\.pt"):
        fit(tmp_path, [Checkpoints(every_num_images=8)], resume=named)
    _, module = fit(tmp_path, [Checkpoints(every_num_images=8)], resume=tmp_path / "checkpoints", max_steps=3)
    assert module.seen_keys[0] == "8", "from the one before it"


def test_a_finished_run_goes_on_when_given_more_images(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, callbacks(48))
    fit(parts, callbacks(36))
    _, resumed = fit(parts, callbacks(48), resume=parts / "checkpoints" / "last")
    assert resumed.images_seen == 48
    for key in ("state_dict", "optimizer_states", "ema"):
        assert_same(read(whole)[key], read(parts)[key], key)


def test_resuming_what_is_done_trains_nothing(tmp_path: Path) -> None:
    fit(tmp_path, callbacks(16))
    _, module = fit(tmp_path, callbacks(16), resume=tmp_path / "checkpoints" / "last")
    assert module.images_seen == 16


def test_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit(tmp_path, callbacks(72, InterruptAt(20, times=2)))
    assert not (tmp_path / "checkpoints" / "last").exists()


def test_best_is_by_the_monitored_metric_and_copies_are_kept(tmp_path: Path) -> None:
    class Worse(TinyModule):
        """Validates best at 16 images."""

        def validation_step(self, batch, batch_index):
            self.log("val/loss", abs(self.images_seen - 16.0), batch_size=len(batch))

    saver = Checkpoints(every_num_images=8, keep_every_num_images=15)
    fit(tmp_path, [saver, StopAtImages(num_images=48), ValidateEvery(num_images=8)], module=Worse())
    # 16 is best and kept, 32 is kept, 40 and 48 are the two newest
    assert names(tmp_path) == ["best", *(f"images_0000000{n}" for n in (16, 32, 40, 48)), "last"]
    assert read(tmp_path, "best")["images_seen"] == 16
    assert read(tmp_path)["images_seen"] == 48
    assert saver.best_value == 0.0

    again = Checkpoints(every_num_images=8, keep_every_num_images=15)
    steps = [again, StopAtImages(num_images=56), ValidateEvery(num_images=8)]
    fit(tmp_path, steps, module=Worse(), resume=tmp_path / "checkpoints")
    assert names(tmp_path) == ["best", *(f"images_0000000{n}" for n in (16, 32, 48, 56)), "last"]
    assert (again.best_value, again.best_at, again.kept) == (0.0, 16, [16, 32, 48])


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
