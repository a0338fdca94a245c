"""What Lightning and torch would do at every step for nobody: left out.

Some of it reaches into Lightning, which has no way to say so; its version is pinned, and
``tests/training/test_lean.py`` holds that the steps, the numbers and the files stay the same.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from ldm.training.saving import Checkpoints

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
_NOTHING = nullcontext()


class Unprofiled(PassThroughProfiler):
    """Lightning wraps each call of a hook in a context of its profiler, a generator each: this one is made once."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return _NOTHING


def make_lean(trainer: Trainer) -> None:
    """Once, before ``trainer.fit``. Nothing that is computed changes, only how long the loop takes around it."""
    if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
        trainer.profiler = Unprofiled()  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for hook in STEP_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning calls what is callable
    _build_arguments_at_once(trainer)
    _collect_metrics_where_they_are_written(trainer)
    if any(isinstance(callback, Checkpoints) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        # Lightning's processes ask the first one at every step whether it has had a SIGTERM, and wait for the answer.
        # Checkpoints takes signals in its place, and agrees about them by itself.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    if not torch.cuda.is_available():
        # Lightning has torch look for GPUs by the driver's library, which does not open CUDA, and optimizers look at
        # every step: where there is no such library, each of them searches for it.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def _build_arguments_at_once(trainer: Trainer) -> None:
    """Lightning looks up each time whether ``training_step`` wants the batch's number, too. Ours do."""

    def build(arguments: OrderedDict[str, Any], batch: Any, batch_idx: int) -> OrderedDict[str, Any]:
        arguments["batch"], arguments["batch_idx"] = batch, batch_idx
        return arguments

    trainer.fit_loop.epoch_loop._build_kwargs = build  # type: ignore[method-assign,assignment]


def _collect_metrics_where_they_are_written(trainer: Trainer) -> None:
    """At the other steps nothing new was logged, or it is collected when somebody asks for it."""
    connector = trainer._logger_connector
    whole = connector.on_batch_end

    def on_batch_end() -> None:
        results = trainer._results
        if results is None or not results.training or connector.should_update_logs:
            whole()
        else:
            results.batch = results.batch_size = None

    connector.on_batch_end = on_batch_end  # type: ignore[method-assign]
