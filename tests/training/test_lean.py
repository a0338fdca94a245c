"""A lean loop makes the same steps, and a step asks nothing of the device that is still at it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.interfaces import Batch
from ldm.training.bad_steps import BadSteps
from ldm.training.callbacks import ClipGradients, StopAtImages, Throughput
from ldm.training.ema import EMA
from ldm.training.lean import STEP_HOOKS, Unprofiled, make_lean
from ldm.training.logging import CSVLogger
from ldm.training.module import TrainingModule
from ldm.training.optim import AdamW, ConstantRate
from ldm.training.outcome import Step
from ldm.training.progress import ImageProgress
from ldm.training.saving import Checkpoints
from tests.training.test_saving import assert_same, read
from tests.training.tiny import TinyModule, fit


class Small(TrainingModule):
    """One layer."""

    def __init__(self) -> None:
        super().__init__(
            optimizer=AdamW(lr=1e-2),
            lr_schedule=ConstantRate(warmup_images=20),
            num_images=200,
            execution=None,
            seed=0,
        )
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def parts(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = (self.network(batch.images) - batch.images).square().mean()
        self.log_step({"train/loss": loss}, batch)
        self.count(batch)
        return loss


def every_callback(num_images: int = 200) -> list[Callback]:
    return [
        EMA(decay=0.9),
        StopAtImages(num_images=num_images),
        ClipGradients(max_norm=1.0),
        BadSteps(),
        Throughput(window=50),
        Checkpoints(every_num_images=100, monitor=None),
        ImageProgress(num_images=num_images),
    ]


def test_a_lean_loop_ends_with_the_same_weights_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    former = Trainer.fit

    def lean_fit(trainer: Trainer, *args: Any, **options: Any) -> None:
        make_lean(trainer)
        former(trainer, *args, **options)

    states, logs = [], []
    for name in ("as it comes", "lean"):
        if name == "lean":
            monkeypatch.setattr(Trainer, "fit", lean_fit)
        folder = tmp_path / name
        logger = CSVLogger(folder=str(folder))
        fit(
            folder, every_callback(), module=Small(), loggers=logger, limit_val_batches=0, log_every_n_steps=5
        )
        states.append(
            {part: read(folder)[part] for part in ("state_dict", "ema", "optimizer_states", "callbacks")}
        )
        rows = (folder / "metrics.csv").read_text().splitlines()
        logs.append([row.split(",")[:3] for row in rows])
    assert_same(*states)
    assert logs[0] == logs[1] and len(logs[0]) > 5
    if not torch.cuda.is_available():
        assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"


def test_only_hooks_that_do_nothing_are_left_out() -> None:
    class Counting(Callback):
        def __init__(self) -> None:
            self.calls: Counter[str] = Counter()

        def on_before_zero_grad(self, *_: Any) -> None:
            self.calls["on_before_zero_grad"] += 1

    class Inheriting(Counting):
        def on_train_batch_end(self, *_: Any) -> None:
            self.calls["on_train_batch_end"] += 1

    callbacks: list[Callback] = [Counting(), Inheriting()]
    trainer = Trainer(accelerator="cpu", callbacks=[*callbacks], logger=False, enable_checkpointing=False)
    make_lean(trainer)
    assert type(trainer.profiler) is Unprofiled
    done = [{hook for hook in STEP_HOOKS if getattr(callback, hook) is not None} for callback in callbacks]
    assert done == [{"on_before_zero_grad"}, {"on_before_zero_grad", "on_train_batch_end"}]


def test_a_profiler_that_was_asked_for_stays() -> None:
    asked = SimpleProfiler()
    trainer = Trainer(accelerator="cpu", profiler=asked, logger=False, enable_checkpointing=False)
    assert type(Trainer(accelerator="cpu", logger=False).profiler) is PassThroughProfiler
    make_lean(trainer)
    assert trainer.profiler is asked


class Reads(TorchDispatchMode):
    """Counts how often a number is fetched from a tensor; on a GPU each of these waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


class Passed:
    """Of a GPU's events."""

    def synchronize(self) -> None:
        """Nothing: it was passed at once."""


class First(Callback):
    def __init__(self, reads: Reads) -> None:
        self.reads = reads

    def on_train_batch_start(self, *_: Any) -> None:
        self.reads.__enter__()


class Last(First):
    """Notes how many reads each step made."""

    def __init__(self, reads: Reads) -> None:
        super().__init__(reads)
        self.each: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Nothing: the first one has begun."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.reads.__exit__(None, None, None)
        self.each.append(self.reads.count)
        self.reads.count = 0


def test_a_step_reads_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All callbacks on, as on a GPU, where what became of a step is not known when it is over."""
    asked = Counter()
    here = Step._read

    def counted(self: Step) -> list[float]:
        asked["outcome"] += 1
        return here(self)

    def __post_init__(self: Step) -> None:
        object.__setattr__(self, "_sent", (torch.stack([self.norm, *self.losses]), Passed()))

    monkeypatch.setattr(Step, "__post_init__", __post_init__)
    monkeypatch.setattr(Step, "_read", counted)
    reads = Reads()
    last = Last(reads)
    fit(
        tmp_path,
        [First(reads), *every_callback(num_images=120), last],
        module=Small(),
        limit_val_batches=0,
        log_every_n_steps=1000,
    )
    assert len(last.each) == 30 and sum(last.each[1:]) == 0
    assert asked["outcome"] == 2 * 30, "once whether it was bad and once its loss: one step later"


def test_what_is_counted_here_would_be_seen(tmp_path: Path) -> None:
    class Curious(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            float(pl_module.network[0].weight.grad.norm())

    reads = Reads()
    last = Last(reads)
    fit(
        tmp_path,
        [First(reads), Curious(), StopAtImages(num_images=12), last],
        module=TinyModule(),
        limit_val_batches=0,
        log_every_n_steps=1000,
    )
    assert all(count >= 1 for count in last.each)
