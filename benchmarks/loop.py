"""What a training step costs beyond its mathematics: ours with all callbacks, bare Lightning, and a plain loop.

    python benchmarks/loop.py            a table, and another of what each of our parts takes
    python benchmarks/loop.py --chunks 5

The network is one small layer, so that the loop is what is measured. The plain loop does forward, backward and fused
AdamW and nothing else; ours clips, averages, counts, schedules the rate, listens for Ctrl-C, measures its speed, logs
and tells its progress besides. Chunks of a trainer and of the plain loop alternate on one thread, and what counts is
the process's own CPU time: other processes disturb it least. The figure is the median over chunks of the difference per
step.

What each part takes is measured in a training of its own, with a clock around each of its hooks, as the mean over all
steps: what is done only at some of them, such as logging at each 50th, is spread over all. "Lightning" is the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from ldm.commands.compose import compose
from ldm.data.pipeline import BatchLoader
from ldm.interfaces import Batch
from ldm.training.lean import STEP_HOOKS, make_lean
from ldm.training.logging import CSVLogger, quiet_lightning
from ldm.training.module import TrainingModule
from ldm.training.optim import AdamW, ConstantRate

BATCH = Batch(
    captions=["x"] * 4,
    images=torch.randn(4, 3, 8, 8),
    moments=None,
    keys=list("abcd"),
    visits=[0] * 4,
    slots=range(4),
    num_slots=4,
)
CHUNK = 200  # steps
LOOK = "PYTORCH_NVML_BASED_CUDA_CHECK"  # see ldm/training/lean.py


class Small(TrainingModule):
    """One layer under our training module."""

    def __init__(self) -> None:
        super().__init__(
            optimizer=AdamW(lr=1e-4),
            lr_schedule=ConstantRate(warmup_images=100),
            num_images=10**9,
            execution=None,
            seed=0,
        )
        self.network = nn.Conv2d(3, 3, 1)

    def parts(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = self.network(batch.images).square().mean()
        self.log_step({"train/loss": loss}, batch)
        self.count(batch)
        return loss


class Bare(L.LightningModule):
    """The same layer as Lightning's introduction has it, logging included."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 3, 1)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = self.network(batch.images).square().mean()
        self.log("train/loss", loss, batch_size=4)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


class Data(L.LightningDataModule):
    batch_size = 4

    def train_dataloader(self) -> BatchLoader:
        def endless() -> Iterator[Batch]:
            while True:
                yield BATCH

        return BatchLoader(endless)


class Parts:
    """CPU seconds inside some hooks, all steps together; what a hook calls counts for both where both are watched."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.steps = 0

    def watch(self, owner: Any, hook: str, name: str) -> None:
        inner = getattr(owner, hook)
        if inner is None:  # left out
            return

        def timed(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return inner(*args, **options)
            finally:
                self.seconds[name] += time.process_time() - start

        setattr(owner, hook, timed)

    def begin(self) -> None:
        """Anew: the first steps hold the start."""
        self.seconds.clear()
        self.steps = 0

    def milliseconds(self) -> dict[str, float]:
        """A step's, the largest first."""
        return {name: 1e3 * seconds / self.steps for name, seconds in self.seconds.most_common()}


class Chunks(L.Callback):
    """Times chunks of the trainer's steps, and a chunk of the plain loop after each."""

    def __init__(self, parts: Parts | None = None) -> None:
        self.parts = parts
        network = nn.Conv2d(3, 3, 1)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

        def plain() -> None:
            loss = network(BATCH.images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        self.plain_step = plain
        self.plain: list[float] = []
        self.trained: list[float] = []
        self.began = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % CHUNK:
            return
        self.trained.append((time.process_time() - self.began) / CHUNK)
        if self.parts is not None:
            self.parts.steps += CHUNK
            if len(self.trained) == 1:
                self.parts.begin()
        before = os.environ.get(LOOK, "")
        os.environ[LOOK] = "0"  # a loop without Lightning does not search for a library at every step
        start = time.process_time()
        for _ in range(CHUNK):
            self.plain_step()
        self.plain.append((time.process_time() - start) / CHUNK)
        os.environ[LOOK] = before
        self.began = time.process_time()


def measure(
    module: L.LightningModule,
    callbacks: list[L.Callback],
    folder: Path,
    chunks: int,
    *,
    parts: Parts | None = None,
) -> dict[str, float]:
    """Milliseconds a step, of the trainer, of the plain loop between its chunks, and of the difference."""
    os.environ[LOOK] = "1"  # as Lightning has it
    timer = Chunks(parts)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=CHUNK * (chunks + 1),
        max_epochs=-1,
        callbacks=[*callbacks, timer],
        logger=CSVLogger(folder=str(folder)),
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=bool(callbacks),
        enable_checkpointing=False if not callbacks else None,
        log_every_n_steps=50,
        use_distributed_sampler=False,
    )
    if callbacks:
        make_lean(trainer)
    if parts is not None:
        for callback in callbacks:
            for hook in STEP_HOOKS:
                parts.watch(callback, hook, type(callback).__name__)
        for hook in ("on_train_batch_start", "transfer_batch_to_device", "log_step", "count"):
            parts.watch(module, hook, "TrainingModule")
    trainer.fit(module, datamodule=Data())
    pairs = list(zip(timer.trained, timer.plain, strict=True))[1:]  # the first chunk holds the start
    return {
        "trainer_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "plain_ms": 1e3 * statistics.median(b for _, b in pairs),
        "overhead_ms": 1e3 * statistics.median(a - b for a, b in pairs),
    }


def ours() -> list[L.Callback]:
    """The default callbacks; what they do now and then is put off, since it is not of every step."""
    config = compose(
        "train", ["task=autoencoder", "callbacks=default", "run_id=x", "num_images=1000000000"]
    ).config
    far = 10**9
    config.callbacks.checkpoints.every_num_images = far
    config.callbacks.checkpoints.monitor = None
    config.callbacks.validate.num_images = far
    return [instantiate(entry, _convert_="all") for entry in config.callbacks.values() if entry is not None]


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--chunks", type=int, default=15, help=f"of {CHUNK} steps, for each of the two trainers"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/loop.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_lightning()
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "ours, all callbacks": measure(Small(), ours(), Path(folder, "ours"), options.chunks),
            "Lightning, no callbacks": measure(Bare(), [], Path(folder, "bare"), options.chunks),
        }
        watched = Parts()
        whole = measure(Small(), ours(), Path(folder, "parts"), options.chunks, parts=watched)
    print(f"{'':26}{'step':>9}{'plain loop':>12}{'overhead':>10}   (ms of CPU time)")
    for name, row in rows.items():
        print(f"{name:26}{row['trainer_ms']:9.3f}{row['plain_ms']:12.3f}{row['overhead_ms']:10.3f}")
    parts = watched.milliseconds()
    parts["Lightning"] = whole["overhead_ms"] - sum(parts.values())
    print("\nof which, with a clock around each hook:")
    for name, took in parts.items():
        print(f"{name:26}{took:9.3f}")
    report = {
        "torch": torch.__version__,
        "lightning": L.__version__,
        "cpu": platform.processor() or platform.machine(),
        "rows": rows,
        "parts_ms": parts,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
