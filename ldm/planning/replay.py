"""Blocks that are alike cost alike: each kind is measured once, and every other block of it only replays the result.

That makes a step of the largest network take a second or two on the meta device instead of half a minute. Two blocks
are of one kind where class, parameters and inputs agree in shape, precision and in what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ldm.nn.blocks import HasBlocks
from ldm.planning.ledger import Ledger, bytes_of


@dataclass(frozen=True)
class BlockCost:
    """What one call of a block holds and computes.

    Attributes:
        held: Bytes kept for the backward pass, beside inputs and outputs.
        inputs_kept: Which inputs the backward pass needs.
        forward_peak: The most bytes alive in the forward pass, beside inputs.
        backward_peak: The most bytes alive in the backward pass, beyond ``held``, inputs and outputs.
        gradients: Bytes of the parameters' gradients.
        forward_flops, backward_flops: Floating-point operations.
        outputs: Shape and precision of each output, or the number of the input that it is.
        spec: How outputs are arranged.
    """

    held: int
    inputs_kept: tuple[bool, ...]
    forward_peak: int
    backward_peak: int
    gradients: int
    forward_flops: int
    backward_flops: int
    outputs: tuple[tuple[torch.Size, torch.dtype] | int, ...]
    spec: TreeSpec


@dataclass
class Replay:
    """Counts the blocks of networks in a ledger.

    Args:
        ledger: Where to.
        checkpointed: Keep each block's inputs only and compute it again in the backward pass.
        costs: What is known of kinds of blocks; grows.
        used: The cost of each block that was called, in order.
    """

    ledger: Ledger
    checkpointed: bool = False
    costs: dict[Hashable, BlockCost] = field(default_factory=dict)
    used: list[BlockCost] = field(default_factory=list)

    @contextmanager
    def of(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        """The blocks of these networks replay their kind's cost; networks that list none run as they are."""
        blocks = [
            block
            for network in networks
            if isinstance(network, HasBlocks)
            for block in network.blocks_to_wrap()
        ]
        for block in blocks:
            block.forward = self._stand_in(block, block.forward)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def _stand_in(self, block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def replayed(*args: Any, **kwargs: Any) -> Any:
            flat, spec = tree_flatten((args, kwargs))
            kind = kind_of(block, flat)
            if kind not in self.costs:
                with self.ledger.paused():
                    self.costs[kind] = measured(block, forward, flat, spec)
            cost = self.costs[kind]
            self.used.append(cost)
            inputs = [x for x in flat if isinstance(x, Tensor)]
            anchor = torch.empty(
                0, device="meta", requires_grad=True
            )  # also where no input is trained, weights are
            made = iter(_Replayed.apply(self, cost, anchor, *inputs))
            outputs = [inputs[one] if isinstance(one, int) else next(made) for one in cost.outputs]
            return tree_unflatten(outputs, cost.spec)

        return replayed


def kind_of(block: nn.Module, flat: Sequence[Any]) -> Hashable:
    """What a block's cost depends on."""
    parameters = tuple((tuple(p.shape), p.dtype, p.requires_grad) for p in block.parameters())
    inputs = tuple(
        (tuple(x.shape), x.dtype, x.requires_grad) if isinstance(x, Tensor) else repr(x) for x in flat
    )
    return (type(block), repr(block), parameters, inputs, torch.is_grad_enabled())


def measured(block: nn.Module, forward: Callable[..., Any], flat: Sequence[Any], spec: TreeSpec) -> BlockCost:
    """Run a block on inputs like these: forward, and backward where there is anything to train."""
    copies = [
        torch.empty_like(x).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in flat
    ]
    inputs = [x for x in copies if isinstance(x, Tensor)]
    places = {x.untyped_storage()._cdata: i for i, x in enumerate(inputs)}
    kept: set[int] = set()

    def note(x: Tensor) -> Tensor:
        kept.add(x.untyped_storage()._cdata)
        return x

    ledger = Ledger()
    with ledger, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        args, kwargs = tree_unflatten(copies, spec)
        outputs, out_spec = tree_flatten(forward(*args, **kwargs))
        forward_peak, forward_flops = ledger.peak, ledger.flops
        made = [x for x in outputs if x.untyped_storage()._cdata not in places]
        held = ledger.live - bytes_of(iter(made))
        inputs_kept = tuple(x.untyped_storage()._cdata in kept for x in inputs)
        described = tuple(places.get(x.untyped_storage()._cdata, (x.shape, x.dtype)) for x in outputs)
        before = ledger.live
        ledger.peak = ledger.live
        trained = [x for x in made if x.requires_grad]
        if trained:
            torch.autograd.backward(trained, [torch.empty_like(x) for x in trained])
    parameters = [p.grad for p in block.parameters() if p.grad is not None]
    cost = BlockCost(
        held=max(0, held),
        inputs_kept=inputs_kept,
        forward_peak=forward_peak,
        backward_peak=max(0, ledger.peak - before),
        gradients=bytes_of(iter(parameters)),
        forward_flops=forward_flops,
        backward_flops=ledger.flops - forward_flops,
        outputs=described,
        spec=out_spec,
    )
    for parameter in block.parameters():
        parameter.grad = None
    return cost


class _Replayed(torch.autograd.Function):
    """Gives tensors like a block's and books its cost, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, replay: Replay, cost: BlockCost, anchor: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ledger = replay.ledger
        ledger.spike(cost.forward_peak)
        ledger.flops += cost.forward_flops
        outputs = [
            torch.empty(one[0], dtype=one[1], device="meta")
            for one in cost.outputs
            if not isinstance(one, int)
        ]
        ctx.replay, ctx.cost = replay, cost
        ctx.shapes = [(x.shape, x.dtype) if x.requires_grad else None for x in inputs]
        if replay.checkpointed:
            ctx.save_for_backward(*inputs)
        else:
            ctx.save_for_backward(*(x for x, kept in zip(inputs, cost.inputs_kept, strict=True) if kept))
            ledger.hold(cost.held)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        replay, cost = ctx.replay, ctx.cost
        ledger = replay.ledger
        if replay.checkpointed:
            ledger.spike(max(cost.forward_peak, cost.held + cost.backward_peak))
            ledger.flops += cost.forward_flops
        else:
            ledger.spike(cost.backward_peak)
            ledger.hold(-cost.held)
        ledger.flops += cost.backward_flops
        ledger.hold(cost.gradients)
        wanted = [
            None if one is None else torch.empty(one[0], dtype=one[1], device="meta") for one in ctx.shapes
        ]
        return (None, None, None, *wanted)
