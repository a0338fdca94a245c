"""One training step on the meta device: what it computes, and what it holds while it does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch

from ldm.planning.autocast import AsOn, Precision
from ldm.planning.ledger import Ledger
from ldm.planning.replay import BlockCost, Replay
from ldm.planning.subjects import Subject


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """A step on one device.

    Attributes:
        forward_flops: Of the trained parts' forward pass.
        backward_flops: Of their backward pass, with what is computed again in it.
        frozen_flops: Of frozen parts by name: the autoencoder where pictures come in, a frozen text encoder.
        forward_peak: The most bytes alive in the forward pass, beside weights.
        kept: Bytes alive when it ends: what the backward pass needs.
        backward_peak: The most bytes alive in the backward pass, gradients of weights included.
        block_peak: The most that one block adds for a moment, in the backward pass.
        frozen_peak: The most bytes alive while frozen parts run.
    """

    forward_flops: int
    backward_flops: int
    frozen_flops: Mapping[str, int]
    forward_peak: int
    kept: int
    backward_peak: int
    block_peak: int
    frozen_peak: int

    @property
    def flops(self) -> int:
        return self.forward_flops + self.backward_flops + sum(self.frozen_flops.values())


@dataclass(frozen=True, kw_only=True)
class FrozenCost:
    """What runs in each step without being trained, for one picture; it grows with their number.

    Attributes:
        flops: By name.
        peak: The most bytes alive.
    """

    flops: Mapping[str, int]
    peak: int


def frozen_cost(subject: Subject, *, gpu: bool, precision: Precision) -> FrozenCost:
    """Trace the frozen parts.

    Args:
        subject: What is trained, on the meta device.
        gpu: Whether the device is a GPU.
        precision: Of the trainer.
    """
    flops, peak = {}, 0
    for name, run in subject.running_frozen().items():
        ledger = Ledger()
        blocks = Replay(ledger).of([subject.frozen()[name]])
        with AsOn(gpu=gpu, precision=precision), blocks, ledger, torch.no_grad():
            run()
        flops[name], peak = ledger.flops, max(peak, ledger.peak)
    return FrozenCost(flops=flops, peak=peak)


def step_cost(
    subject: Subject,
    *,
    batch_size: int,
    gpu: bool,
    precision: Precision,
    checkpointed: bool,
    frozen: FrozenCost,
    blocks: dict[Hashable, BlockCost] | None = None,
) -> StepCost:
    """Trace a step.

    Args:
        subject: What is trained, on the meta device.
        batch_size: Pictures on one device at a time.
        gpu: Whether the device is a GPU.
        precision: Of the trainer.
        checkpointed: Whether each block keeps its input only.
        frozen: What runs beside it.
        blocks: Costs of blocks that were measured before, on the same device in the same precision; new ones are added.

    """
    parts = list(subject.trained().values())
    with AsOn(gpu=gpu, precision=precision):
        ledger = Ledger()
        replay = Replay(ledger, checkpointed=checkpointed, costs={} if blocks is None else blocks)
        with replay.of(parts), ledger:
            loss = subject.loss(batch_size)
            forward_flops, forward_peak, kept = ledger.flops, ledger.peak, ledger.live
            ledger.peak = ledger.live
            loss.backward()
    cost = StepCost(
        forward_flops=forward_flops,
        backward_flops=ledger.flops - forward_flops,
        frozen_flops={name: batch_size * each for name, each in frozen.flops.items()},
        forward_peak=forward_peak,
        kept=kept,
        backward_peak=ledger.peak,
        block_peak=max((one.backward_peak for one in replay.used), default=0),
        frozen_peak=batch_size * frozen.peak,
    )
    for part in parts:
        part.zero_grad(set_to_none=True)
    return cost
