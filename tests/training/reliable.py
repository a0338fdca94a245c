"""Trainings in processes of their own, to be killed and signalled: what the tests and benchmarks/reliability.py share.

Each is a real ``Trainer`` with all that keeps a run: checkpoints, averages, bad steps, metrics. The parts are small,
and the processes are forked from a server that has imported torch already: a trial takes a second, not ten.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from ldm.interfaces import Batch
from ldm.training import stopping
from ldm.training.bad_steps import BadSteps
from ldm.training.callbacks import ClipGradients, StopAtImages, ValidateEvery
from ldm.training.checkpoint import list_checkpoints, read_checkpoint
from ldm.training.ema import EMA
from ldm.training.folders import verify, whole_folders
from ldm.training.fsdp import FullySharded
from ldm.training.logging import CSVLogger, quiet_lightning
from ldm.training.saving import Checkpoints, interruptible
from ldm.training.watching import ranks_watched
from tests.processes import become, free_port
from tests.training.tiny import TinyModule, batch_at

GLOBAL_BATCH = 4


@dataclass(frozen=True)
class Trial:
    """What one training shall be.

    Args:
        num_images: Where it ends.
        world_size: Processes.
        every: Pictures between two checkpoints.
        pause: Seconds that each step takes longer.
        spoilt: Process and images seen of a step whose picture is not a number; -8 is every step from 8 on.
        keep: Keep every checkpoint.
        sharded: Spread the weights over the processes (FSDP).
        background: See ``Checkpoints``.
        validation: Batches and seconds for each of them.
        full_disk: Process whose disk takes nothing, from one count of images to another.
    """

    num_images: int
    world_size: int = 1
    every: int = 8
    pause: float = 0.0
    spoilt: tuple[int, int] | None = None
    keep: bool = False
    sharded: bool = False
    background: bool | None = None
    validation: tuple[int, float] = (1, 0.0)
    full_disk: tuple[int, int, int] | None = None


class Shared(L.LightningDataModule):
    """An endless stream whose global batches are shared by the processes."""

    batch_size = GLOBAL_BATCH

    def train_dataloader(self) -> Any:
        trainer = self.trainer
        assert trainer is not None
        own = GLOBAL_BATCH // trainer.world_size
        seen = int(trainer.lightning_module.images_seen)  # type: ignore[arg-type]

        class Stream(torch.utils.data.IterableDataset[Batch]):
            def __iter__(self) -> Any:
                at = seen
                while True:
                    first = trainer.global_rank * own
                    batch = batch_at(at + first, own)
                    yield Batch(
                        **{**vars(batch), "slots": range(first, first + own), "num_slots": GLOBAL_BATCH}
                    )
                    at += GLOBAL_BATCH

        return torch.utils.data.DataLoader(Stream(), batch_size=None)

    def __init__(self, num_val_batches: int) -> None:
        super().__init__()
        self.num_val_batches = num_val_batches

    def val_dataloader(self) -> Any:
        batches = [batch_at(10**6 + i * GLOBAL_BATCH) for i in range(self.num_val_batches)]
        return torch.utils.data.DataLoader(batches, batch_size=None)


class Remembering(TinyModule):
    """Remembers every sample it was trained on, in its checkpoints: what was lost or repeated shows at the end."""

    def __init__(self, *, pause: float = 0.0, val_pause: float = 0.0) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.history: list[int] = []
        self.pause, self.val_pause = pause, val_pause

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.shard(self.parts())

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        Path(self.trainer.default_root_dir, f"validating-{self.images_seen}-{batch_index}").touch()
        time.sleep(self.val_pause)
        super().validation_step(batch, batch_index)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        time.sleep(self.pause)
        first = int(batch.keys[0]) - batch.slots[0]
        self.history += range(first, first + batch.num_slots)
        loss = (self.network(batch.images) - 0.5 * batch.images).square().mean()  # type: ignore[operator]
        self.images_seen += batch.num_slots
        self.log("train/loss", loss, sync_dist=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.history = checkpoint["history"]


class SpoilOneRank(Callback):
    """A picture of one process is not a number, in one step or in all from one on."""

    def __init__(self, rank: int, images: int) -> None:
        self.rank, self.images = rank, images

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        seen = pl_module.images_seen
        if trainer.global_rank == self.rank and (seen == self.images or seen >= -self.images > 0):
            batch.images[0, 0, 0, 0] = torch.nan


class FullDisk(Callback):
    """One process cannot write, for a while."""

    def __init__(self, rank: int, first: int, last: int) -> None:
        self.rank, self.first, self.last = rank, first, last

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        full = trainer.global_rank == self.rank and self.first <= pl_module.images_seen < self.last
        os.fsync = _no_space if full else _FSYNC


_FSYNC = os.fsync


def _no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def train(folder: str, trial: Trial) -> None:
    """One process's whole training, from the newest checkpoint in the folder, where there is one."""
    torch.set_num_threads(1)
    stopping.listen()
    quiet_lightning()
    run = Path(folder)
    run.mkdir(parents=True, exist_ok=True)
    (run / f"listening-{os.environ.get('RANK', 0)}").touch()
    together: Any = "ddp" if trial.world_size > 1 else "auto"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=trial.world_size,
        strategy=FullySharded(timeout_seconds=60) if trial.sharded else together,
        callbacks=[
            EMA(decay=0.9),
            StopAtImages(num_images=trial.num_images),
            ClipGradients(max_norm=1.0),
            BadSteps(),
            ValidateEvery(num_images=24),
            *([SpoilOneRank(*trial.spoilt)] if trial.spoilt else []),
            *([FullDisk(*trial.full_disk)] if trial.full_disk else []),
            Checkpoints(
                every_num_images=trial.every,
                keep_every_num_images=trial.every if trial.keep else None,
                background=trial.background,
            ),
        ],
        logger=CSVLogger(folder=folder),
        default_root_dir=folder,
        max_epochs=-1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    checkpoints = run / "checkpoints"
    path = str(checkpoints) if list_checkpoints(checkpoints) else None
    with interruptible(), ranks_watched(trainer):
        batches, pause = trial.validation
        module = Remembering(pause=trial.pause, val_pause=pause)
        trainer.fit(module, datamodule=Shared(batches), ckpt_path=path, weights_only=True)


def _process(
    rank: int, world_size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    if world_size > 1:  # as torchrun would start it
        become(rank, world_size=world_size, port=port)
        rank_zero_only.rank = rank  # Lightning looked when it was imported, in the server
    work(*arguments)


def server() -> Any:
    """Where trial processes come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.reliable"])
    return context


def start(folder: Path, *, num_images: int, **others: Any) -> list[Any]:
    """The processes of one training; for the arguments see ``Trial``."""
    trial = Trial(num_images=num_images, **others)
    return started(train, str(folder), trial, world_size=trial.world_size)


def started(work: Callable[..., None], *arguments: Any, world_size: int) -> list[Any]:
    """Processes that do the same work, each knowing its rank as torchrun tells it."""
    port = free_port()
    made = [
        server().Process(target=_process, args=(rank, world_size, port, work, arguments))
        for rank in range(world_size)
    ]
    for process in made:
        process.start()
    return made


def finish(processes: Sequence[Any], *, within: float = 120.0) -> list[int | None]:
    """Exit codes; None for a process that hung, which is killed."""
    until = time.monotonic() + within
    codes = []
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        codes.append(process.exitcode)
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def wait_for(condition: Callable[[], bool], processes: Sequence[Any], *, within: float = 120.0) -> bool:
    """Whether it came true before the processes ended."""
    until = time.monotonic() + within
    while time.monotonic() < until and all(process.is_alive() for process in processes):
        if condition():
            return True
        time.sleep(0.002)
    return condition()


def kill_now(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()


def kill_and_resume(
    folder: Path,
    *,
    kills: int,
    num_images: int,
    worlds: Sequence[int],
    random_: random.Random,
    pause: float = 0.01,
    **others: Any,
) -> int:
    """``survive`` of the training that ``start`` begins, with ``worlds`` processes in turn."""

    def begin(trial: int) -> list[Any]:
        slower = pause if trial < kills else 0.0
        world_size = worlds[trial % len(worlds)]
        return start(folder, num_images=num_images, world_size=world_size, pause=slower, **others)

    return survive(folder, kills=kills, random_=random_, begin=begin)


def survive(
    folder: Path,
    *,
    kills: int,
    random_: random.Random,
    begin: Callable[[int], list[Any]],
    longest: float = 0.15,
) -> int:
    """Train to the end through ``kills`` kills at random moments; how many of them met a running training.

    Args:
        folder: The run folder.
        begin: Number of the start, the last one being ``kills`` -> its processes.
        longest: Seconds that a training goes on at most after it has saved something new.
    """
    met = 0
    for trial in range(kills):
        before = newest(folder)
        processes = begin(trial)
        wait_for(lambda before=before: newest(folder) > before, processes)  # type: ignore[misc]
        time.sleep(random_.uniform(0, longest))
        met += all(process.is_alive() for process in processes)
        kill_now(processes)
        for whole in whole_folders(folder / "checkpoints"):
            verify(whole)
    codes = finish(begin(kills))
    assert set(codes) == {0}, codes
    return met


def newest(folder: Path) -> int:
    """The images seen in the newest checkpoint, -1 where there is none."""
    found = whole_folders(folder / "checkpoints")
    return int(found[0].name.removeprefix("images_")) if found else -1


def are_listening(folder: Path, world_size: int) -> bool:
    """Whether a signal finds all processes listening; one that comes earlier ends Python as it ends any program."""
    return all((folder / f"listening-{rank}").exists() for rank in range(world_size))


def last(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / "last")


if __name__ == "__main__":  # two processes, the second started by Lightning, until somebody ends them
    train(sys.argv[1], Trial(num_images=10**7, world_size=2, pause=0.01))
