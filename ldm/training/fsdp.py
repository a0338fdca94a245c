"""FSDP2: every process holds a share of each trained weight, its gradient, its optimizer state and its average.

Zhao et al. 2023, "PyTorch FSDP" (2304.11277); Rajbhandari et al. 2019, "ZeRO" (1910.02054), stage 3. Each block that a
network lists is gathered when its turn comes and let go after it. The text encoder and the codec are left whole where
they are frozen: they have no gradients and no optimizer state to share.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.optim import Optimizer

from ldm.nn.blocks import HasBlocks
from ldm.training.optim import Joined
from ldm.training.sharded import Stored, spread_like

METHODS = (
    "encode",
    "decode",
)  # of an autoencoder: called like forward, so weights must be gathered for them, too


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with the sharding and with checkpoints that say nothing of it.

    Of a checkpoint each process writes the shares that it holds (``pieces.py``). It loads on any number of processes
    and into any other strategy.

    Args:
        reshard_after_forward: Let a block's gathered weights go after its forward pass and gather them again for the
            backward pass. False needs the memory of all weights and sends a third less.
        replicas: Groups of processes that each hold the whole network between them; a multiple of the number of nodes
            keeps gathering inside a node, and only the gradients of the shards are sent between the groups.
        gather_bf16: Gather weights in bfloat16: half the traffic, for trainer.precision=bf16-mixed. Gradients are still
            summed and weights kept in float32.
        timeout_seconds: How long a process waits for the others before it gives up.
    """

    def __init__(
        self,
        *,
        reshard_after_forward: bool = True,
        replicas: int = 1,
        gather_bf16: bool = False,
        timeout_seconds: int = 1800,
    ) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timedelta(seconds=timeout_seconds))
        self.reshard_after_forward = reshard_after_forward
        self.replicas = replicas
        self.gather_bf16 = gather_bf16

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def mesh(self) -> DeviceMesh:
        """Of one dimension, or with replicas of two: FSDP shards over the last and sums over both.

        Raises:
            ValueError: The processes cannot be put into that many groups.
        """
        if self.replicas == 1:
            return self.device_mesh["data_parallel"]
        each, left = divmod(self.world_size, self.replicas)
        if left or each < 2:
            raise ValueError(
                f"trainer.strategy.replicas={self.replicas} does not divide {self.world_size} processes into groups "
                f"of two or more"
            )
        return init_device_mesh(
            self.root_device.type, (self.replicas, each), mesh_dim_names=("replicate", "shard")
        )

    def shard(self, parts: Mapping[str, nn.Module]) -> None:
        """Spread the trained parts, each block by itself; called by the module once it is built."""
        mesh = self.mesh()
        # Inputs are left as they are: times and positions would lose their places in bfloat16.
        policy = (
            MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
            if self.gather_bf16
            else MixedPrecisionPolicy()
        )
        for part in parts.values():
            if isinstance(part, FSDPModule):
                continue
            blocks = part.blocks_to_wrap() if isinstance(part, HasBlocks) else []
            for module in [*blocks, part]:
                fully_shard(
                    module, mesh=mesh, reshard_after_forward=self.reshard_after_forward, mp_policy=policy
                )
            for method in METHODS:
                if hasattr(part, method):
                    register_fsdp_forward_method(part, method)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        state = {
            name: spread_like(x, own[name]) if name in own else x
            for name, x in checkpoint["state_dict"].items()
        }
        module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return super(ModelParallelStrategy, self).optimizer_state(optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(spread_state(optimizer, state))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return super(ParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only=weights_only)


def spread_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's whole state as this process holds it: what has a weight's shape is spread as the weight is."""
    if isinstance(optimizer, Joined):
        pairs = zip(optimizer.optimizers, state["parts"], strict=True)
        return {"parts": [spread_state(part, own) for part, own in pairs]}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    places = dict(zip(numbers, parameters, strict=True))

    def spread(x: Any, weight: torch.Tensor) -> Any:
        if isinstance(x, torch.Tensor | Stored) and x.shape == weight.shape:
            return spread_like(x, weight)
        return x.whole() if isinstance(x, Stored) else x

    states = {
        number: {key: spread(x, places[number]) for key, x in entries.items()}
        for number, entries in state["state"].items()
    }
    return {**state, "state": states}
