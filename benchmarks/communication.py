"""What two processes really send in a training step, against what ``ldm/training/communication.py`` says.

    python benchmarks/communication.py            measure (Linux, root: in a network of its own) and print the plan
    python benchmarks/communication.py --plan     print the plan only

Two processes train a small DiT over gloo in a network namespace of their own, and the bytes are read from its loopback
device: what was sent, not what was asked for. A few steps more or less give the bytes of a step. Gloo makes a
reduce-scatter of an all-reduce, which sends twice as much; the figures expected for FSDP have that in.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ldm.commands.blueprint import built
from ldm.commands.compose import compose
from ldm.interfaces import Conditioning
from ldm.nn.dit import DiT
from ldm.training.communication import GRADIENT, Cluster, data_parallel, fully_sharded, share

INSIDE = "LDM_OWN_NETWORK"
NETWORKS = ("dit_xl_2", "sd3_medium", "sd35_medium", "flux")  # of configs/network


def size_of(name: str) -> tuple[int, int]:
    """Parameters and blocks of a network that a config describes, counted where it needs no memory."""
    with torch.device("meta"):
        made = built(compose("train", [f"network={name}", "run_id=x"]).config.network)
    return sum(p.numel() for p in made.parameters()), len(made.blocks_to_wrap())


def network() -> DiT:
    torch.manual_seed(0)
    return DiT(in_channels=4, patch_size=2, width=256, depth=4, num_heads=4)


def wrapped(strategy: str) -> nn.Module:
    model: nn.Module = network()
    if strategy == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (2,))
    for module in [*model.blocks_to_wrap(), model]:  # type: ignore[operator]
        fully_shard(module, mesh=mesh, reshard_after_forward=strategy == "fsdp")
    return model


def worker(rank: int, strategy: str, port: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = wrapped(strategy)
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    cond = Conditioning(torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def steps(num: int) -> float:
        dist.barrier()
        before = received()
        for _ in range(num):
            optimizer.zero_grad()
            model(x, t, cond).square().mean().backward()
            optimizer.step()
        dist.barrier()
        return received() - before

    steps(2)  # buckets are laid out anew after the first
    few, many = steps(1), steps(6)
    if rank == 0:
        Path(out).write_text(json.dumps((many - few) / 5 / 2))  # a step's, of each of the two
    dist.destroy_process_group()


def received() -> float:
    line = next(
        line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")
    )
    return float(line.split(":")[1].split()[0])


def lo_up() -> None:
    """Switch the loopback device of a new network on (SIOCSIFFLAGS: up and running)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))


def measure() -> list[dict[str, float | str]]:
    parameters = sum(p.numel() for p in network().parameters())
    two = Cluster(gpus=2)
    said = {
        "ddp": data_parallel(parameters, two).sent,
        "fsdp": fully_sharded(parameters, two).sent,
        "fsdp, no reshard": fully_sharded(parameters, two, reshard=False).sent,
    }
    for strategy in ("fsdp", "fsdp, no reshard"):
        said[strategy] += share(2) * GRADIENT * parameters  # gloo's
    rows: list[dict[str, float | str]] = []
    for i, (strategy, expected) in enumerate(said.items()):
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/bytes"
            torch.multiprocessing.spawn(worker, (strategy, 29500 + i, out), nprocs=2)
            sent = float(json.loads(Path(out).read_text()))
        rows.append({"strategy": strategy, "parameters": parameters, "said": expected, "sent": sent})
        print(
            f"{strategy:18} said {expected / 1e6:8.2f} MB   sent {sent / 1e6:8.2f} MB   {sent / expected:5.2f}",
            flush=True,
        )
    return rows


def plan() -> list[dict[str, float | str | bool]]:
    rows: list[dict[str, float | str | bool]] = []
    print(f"\n{'GPUs':>5}  {'strategy':34}{'sent GB':>8}{'ms':>8}{'held GB':>9}")
    for name in NETWORKS:
        parameters, blocks = size_of(name)
        print(f"{name}: {parameters:,} parameters in {blocks} blocks and what is around them")
        for gpus in (8, 64, 512):
            cluster = Cluster(gpus=gpus)
            nodes = gpus // cluster.per_node
            costs = {
                "ddp": data_parallel(parameters, cluster),
                "fsdp": fully_sharded(parameters, cluster, blocks=blocks),
                "fsdp gather_bf16": fully_sharded(parameters, cluster, blocks=blocks, weight_bytes=2),
            }
            if nodes > 1:
                costs[f"fsdp gather_bf16 replicas={nodes}"] = fully_sharded(
                    parameters, cluster, blocks=blocks, weight_bytes=2, replicas=nodes
                )
            for strategy, cost in costs.items():
                mark = "" if cost.fits else "  does not fit"
                print(
                    f"{gpus:5}  {strategy:34}{cost.sent / 1e9:8.2f}{1e3 * cost.seconds:8.0f}"
                    f"{cost.held / 1e9:9.2f}{mark}"
                )
                rows.append(
                    {"network": name, "parameters": parameters, "gpus": gpus, "strategy": strategy}
                    | vars(cost)
                )
    return rows


def main() -> None:
    """Measure in a network of its own where that can be had, print the plan, write both as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", help="nothing is measured")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/communication.json"))
    options = parser.parse_args()
    if not options.plan and INSIDE not in os.environ:
        if os.geteuid() or shutil.which("unshare") is None:
            print("measuring needs root and unshare, for a network of its own: the plan only")
            options.plan = True
        else:
            os.environ[INSIDE] = "1"
            sys.exit(subprocess.run(["unshare", "-n", sys.executable, *sys.argv]).returncode)
    measured = []
    if not options.plan:
        lo_up()
        measured = measure()
    options.out.write_text(json.dumps({"measured": measured, "plan": plan()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
