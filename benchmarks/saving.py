"""How long a training stands still for a checkpoint: put together and written by one process, or in shares.

python benchmarks/saving.py millions=30

Two processes share a network of so many million parameters (FSDP2 over gloo, on the CPU), with AdamW's moments and an
average: 16 bytes a parameter. Each way is taken three times, in turn; printed are the medians in seconds and what the
first process held besides at the most.

- together: every tensor is brought to the first process, which writes them all; the others wait.
- shares: each process writes what it holds.
- background: the training goes on after a copy in the host's memory; what is printed is the copy.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.training.averages import Average
from ldm.training.folders import folder_name, remove, write_checkpoint
from ldm.training.sharded import copy_to_host, full_state
from ldm.training.together import write_together
from tests.training.reliable import finish, started

WIDTH = 1024


def main(arguments: list[str]) -> int:
    given = {"millions": "30"} | dict(item.split("=", 1) for item in arguments)
    with tempfile.TemporaryDirectory() as folder:
        codes = finish(started(measure, folder, int(given["millions"]), world_size=2), within=600)
        assert codes == [0, 0], codes
        for way, told in json.loads(Path(folder, "told.json").read_text()).items():
            print(f"{way:<12} {told['seconds']:6.2f} s   {told['mib']:6.0f} MiB", flush=True)
    return 0


def measure(folder: str, millions: int) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = dist.new_group(backend="gloo")
    mesh = init_device_mesh("cpu", (2,))
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(max(1, millions * 10**6 // WIDTH**2))]
    model = nn.Sequential(*layers)
    for module in [*layers, model]:
        fully_shard(module, mesh=mesh)
    average = Average({"network": model})
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, WIDTH)).square().mean().backward()
    optimizer.step()
    place = Path(folder, folder_name(1))
    first = dist.get_rank() == 0

    def state() -> dict[str, Any]:
        optimizers = [optimizer.state_dict()]
        return {"state_dict": model.state_dict(), "optimizer_states": optimizers, "ema": average.shares()}

    def together() -> None:
        whole = full_state(state() | {"ema": {}}, keep=first) | {"ema": average.state(keep=first)}
        if first:
            write_checkpoint(whole, place, about={})
        dist.barrier()

    def shares() -> None:
        write_together(copy_to_host(state()), place, about={}, group=group)

    kept: list[Any] = []
    ways = {"together": together, "shares": shares, "background": lambda: kept.append(copy_to_host(state()))}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    held: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(3):
        for way, save in ways.items():
            dist.barrier()
            took, most = watched(save)
            seconds[way].append(took)
            held[way].append(most)
            kept.clear()
            dist.barrier()
            if first:
                remove(place)
    if first:
        told = {way: {"seconds": median(seconds[way]), "mib": max(held[way])} for way in ways}
        Path(folder, "told.json").write_text(json.dumps(told))
    dist.barrier()


def watched(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and by how many MiB the process grew at the most."""
    before, most, done = resident(), [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], resident() - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    done.set()
    watcher.join()
    return took, most[0]


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
