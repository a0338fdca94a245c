"""Memory of one device, by what it is for, however weights are shared out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ldm.nn.blocks import HasBlocks
from ldm.planning.autocast import Precision
from ldm.planning.ledger import count
from ldm.planning.step import StepCost
from ldm.planning.subjects import Subject
from ldm.training.optim import OptimizerRecipe


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How processes share the state of training.

    Attributes:
        processes: How many there are.
        sharded: Weights, gradients, optimizer and averages are split over them (FSDP), or each has all (DDP).
        buckets: Gradients are copied into buckets that are sent (DDP, unless they live in them).
    """

    processes: int
    sharded: bool = False
    buckets: bool = False


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device at the peak of a step, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    frozen: int
    buckets: int
    gathered: int  # blocks whose weights are brought together (FSDP)
    activations: int  # all else, at the peak: what the backward pass needs, and what is alive for a moment

    @property
    def total(self) -> int:
        return sum(amount for _, amount in self.parts())

    def parts(self) -> Iterator[tuple[str, int]]:
        yield from vars(self).items()


@dataclass(frozen=True, kw_only=True)
class State:
    """What a training keeps between steps, over all processes.

    Attributes:
        trained: Numbers that are trained.
        buffers: Bytes of their buffers.
        optimizer: Bytes the optimizer keeps.
        averages: Copies of the trained weights that are averaged.
        frozen: Bytes of parts that are not trained.
        largest_block: Numbers of the largest block.
    """

    trained: int
    buffers: int
    optimizer: int
    averages: int
    frozen: int
    largest_block: int


def memory_of(state: State, cost: StepCost, *, precision: Precision, sharing: Sharing) -> Memory:
    """The peak of a step that is not the first: gradients of the step before live until the loss is there."""
    share = sharing.processes if sharing.sharded else 1
    weights = state.trained * precision.weights // share
    gradients = weights
    gathered = (
        2 * state.largest_block * precision.weights if sharing.sharded else 0
    )  # one in use, one on its way
    forward = gradients + max(cost.forward_peak, cost.frozen_peak)
    if sharing.sharded:  # a block's whole gradients live only until they are reduced
        backward = gradients + cost.kept + cost.block_peak
    else:
        backward = cost.backward_peak
    return Memory(
        weights=weights + state.buffers,
        gradients=gradients,
        optimizer=state.optimizer // share,
        ema=state.averages * (state.trained * 4 // share + state.buffers),
        frozen=state.frozen,
        buckets=gradients if sharing.buckets and sharing.processes > 1 and not sharing.sharded else 0,
        gathered=gathered,
        activations=max(forward, backward) - gradients,
    )


def state_of(subject: Subject, *, optimizer: OptimizerRecipe, precision: Precision, averages: int) -> State:
    """What a training with this optimizer and so many averages keeps."""
    parts = subject.trained()
    trained = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    frozen = [x for part in subject.frozen().values() for x in (*part.parameters(), *part.buffers())]
    blocks = [
        count(block.parameters())
        for part in parts.values()
        if isinstance(part, HasBlocks)
        for block in part.blocks_to_wrap()
    ]
    return State(
        trained=count(iter(trained)),
        buffers=sum(x.numel() * x.element_size() for part in parts.values() for x in part.buffers()),
        optimizer=optimizer_bytes(optimizer, parts) * precision.weights // 4,
        averages=averages,
        frozen=sum(x.numel() * x.element_size() for x in frozen),
        largest_block=max(blocks, default=0),
    )


SIDE = 128  # of the layers an optimizer is tried on: 8-bit optimizers keep small tensors in full


def optimizer_bytes(recipe: OptimizerRecipe, parts: Mapping[str, nn.Module]) -> int:
    """Bytes an optimizer keeps for these parts, asked of it by one step on a small layer of each kind."""
    examples: dict[str, nn.Module] = {
        "linear": nn.Linear(SIDE, SIDE, bias=False),
        "kernel": nn.Conv2d(SIDE, SIDE, 1, bias=False),
        "other": nn.Embedding(SIDE, SIDE),
    }
    per_number = {}
    for kind, layer in examples.items():
        optimizer = recipe({kind: layer})
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        states = [optimizer, *getattr(optimizer, "optimizers", [])]
        kept = {
            id(x): x.numel() * x.element_size()
            for one in states
            for state in one.state.values()
            for x in state.values()
            if isinstance(x, torch.Tensor) and x.numel() > 1
        }
        per_number[kind] = sum(kept.values()) / SIDE**2
    linear = {id(m.weight) for part in parts.values() for m in part.modules() if isinstance(m, nn.Linear)}
    total = 0.0
    for parameter in (p for part in parts.values() for p in part.parameters() if p.requires_grad):
        kind = "linear" if id(parameter) in linear else "kernel" if parameter.ndim >= 4 else "other"
        total += per_number[kind] * parameter.numel()
    return int(total)
