"""What FSDP can be combined with, as two real processes over gloo: the same steps as one process makes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from ldm.nn.blocks import Execution
from ldm.training.fsdp import FullySharded
from ldm.training.optim import AdamW
from ldm.training.sharded import full_state, is_spread
from tests.processes import free_port
from tests.training.test_fsdp import BATCH, loss_of, network

SIZE = 2  # processes
STEPS = 3
PLAIN = Execution()


@dataclass(frozen=True)
class Case:
    """What is combined, and by how much its steps may be off."""

    execution: Execution = PLAIN
    gather_bf16: bool = False
    reshard: bool = True
    tolerance: float = 1e-5


CASES = {
    "checkpointed": Case(Execution(checkpoint_blocks=True)),
    "compiled": Case(Execution(compile=True)),
    "checkpointed and compiled": Case(Execution(checkpoint_blocks=True, compile=True)),
    "kept until the backward pass": Case(Execution(checkpoint_blocks=True), reshard=False),
    # Under autocast matrices are rounded to bfloat16 either way; norms and tables only where they are gathered so.
    "gathered in bfloat16": Case(gather_bf16=True, tolerance=2e-2),
    "all of it": Case(
        Execution(checkpoint_blocks=True, compile=True), gather_bf16=True, reshard=False, tolerance=2e-2
    ),
}


def train(case: Case, rows: slice, strategy: FullySharded | None) -> dict[str, Any]:
    """A few steps on some rows of each batch: the losses, the norms and the weights afterwards."""
    model = network()
    case.execution(model)  # as TrainingModule does it: before the weights are spread
    if strategy is not None:
        strategy.shard({"network": model})
        assert is_spread(model)
    optimizer = AdamW(lr=0.01, weight_decay=0.1)({"network": model})
    seen = []
    for number in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if case.gather_bf16 else nullcontext():
            loss = loss_of(model, number, rows)
        loss.backward()
        loss = loss.detach().float()
        if strategy is not None:
            assert all(p.dtype == torch.float32 for p in model.parameters()), "weights stay in float32"
            dist.all_reduce(loss, op=dist.ReduceOp.SUM)
            loss /= SIZE
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        seen.append(loss)
    return {"losses": torch.stack(seen), "weights": full_state(model.state_dict(), keep=True)}


def one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=SIZE)
    share = BATCH // SIZE
    for name, case in CASES.items():
        strategy = FullySharded(gather_bf16=case.gather_bf16, reshard_after_forward=case.reshard)
        strategy._device_mesh = init_device_mesh(
            "cpu", (SIZE, 1), mesh_dim_names=("data_parallel", "tensor_parallel")
        )
        torch._dynamo.reset()
        made = train(case, slice(rank * share, (rank + 1) * share), strategy)
        if rank == 0:
            torch.save(made, Path(folder, f"{name}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What two processes make of each case."""
    folder = tmp_path_factory.mktemp("fsdp")
    port = free_port()
    torch.multiprocessing.spawn(one_of_two, (port, str(folder)), nprocs=SIZE)
    return lambda name: torch.load(folder / f"{name}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_step_like_one(made: Callable[[str], dict[str, Any]], name: str) -> None:
    case = CASES[name]
    plainly = Case(gather_bf16=case.gather_bf16)  # one process, nothing compiled, nothing computed again
    alone, spread = train(plainly, slice(0, BATCH), None), made(name)
    assert alone["losses"][-1] < alone["losses"][0], "it learns, so that steps left out would show"
    torch.testing.assert_close(spread["losses"], alone["losses"], rtol=case.tolerance, atol=case.tolerance)
    assert spread["weights"].keys() == alone["weights"].keys(), "names as in the network that was built"
    # Adam's first steps are of size lr whatever the gradient: where that is almost zero, rounding decides the sign.
    for key, weight in alone["weights"].items():
        far = (spread["weights"][key] - weight).abs()
        assert float(far.mean()) < 50 * case.tolerance * 0.01 + 1e-6, key
