"""How a network's blocks are run: compiled, checkpointed, convolutions channels-last. What they compute stays.

Everything happens in place and no parameter changes its name, so checkpoints, averages and exports do not notice. A
network lists its blocks, the parts that repeat, by ``blocks_to_wrap``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@runtime_checkable
class HasBlocks(Protocol):
    def blocks_to_wrap(self) -> list[nn.Module]:
        """The blocks to compile, checkpoint and shard one by one, in the order in which they run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How blocks are run in training.

    Args:
        compile: Compile each block. Blocks of one kind share their code, so this takes much less time than compiling
            the network as a whole, and is as fast within a few per cent.
        checkpoint_blocks: Keep only each block's input for the backward pass and compute the rest again: memory of one
            block instead of all, for one more forward pass.
        channels_last: Lay convolutions' weights and with them all pictures out with channels last, which tensor cores
            want. On CPUs without compilation it is slower.
    """

    compile: bool = False
    checkpoint_blocks: bool = False
    channels_last: bool = False

    def __call__(self, network: nn.Module) -> None:
        """Prepare ``network``, in place.

        Raises:
            ValueError: Its blocks are wanted and it does not list them.
        """
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.checkpoint_blocks:
            checkpoint_blocks(network)
        if self.compile:  # after checkpointing, so that what is computed again is compiled too
            compile_blocks(network)


def checkpoint_blocks(network: nn.Module) -> None:
    """Let each block of ``network`` forget what its backward pass can compute again (1604.06174). Idempotent."""
    for block in blocks_of(network):
        if "forward" not in vars(block):
            # Blocks draw no random numbers, so no generator's state has to be kept for the second time.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compile_blocks(network: nn.Module, *, backend: str = "inductor") -> None:
    """Compile each block of ``network`` when it is first called, and again for each new shape."""
    # A U-Net has more kinds of blocks than torch would compile by default before it gives up and runs them as they are.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks_of(network):
        block.compile(backend=backend)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    if not isinstance(network, HasBlocks):
        raise ValueError(
            f"{type(network).__name__} does not list its blocks (blocks_to_wrap), so they cannot be compiled or "
            f"checkpointed one by one: use task.execution.compile=false and task.execution.checkpoint_blocks=false"
        )
    return network.blocks_to_wrap()
