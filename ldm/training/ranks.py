"""Pictures made by all processes together, and processes that a launcher started for a command.

Each process makes whole batches, the very ones that one process would make one after another, so a picture does not
depend on how many there are: its noise is its own and its neighbours in the batch are the same.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import Tensor

from ldm.training.logging import quiet_lightning

PATIENCE = 10.0  # seconds to find the first process's machine


@dataclass(frozen=True)
class Ranks:
    """This process among those that do the same thing.

    Args:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0


def make_together(
    make: Callable[[Sequence[int]], Tensor],
    num: int,
    *,
    batch_size: int,
    ranks: Ranks,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Rows made in batches by all processes; the same on each of them as one process would make.

    All processes make the same number of batches, some again what others make: networks that are spread over the
    processes need all of them at each step.

    Args:
        make: Numbers of rows, at most ``batch_size`` of them -> those rows, (len, ...) on the CPU.
        num: Rows in all.
        batch_size: Rows at a time.
        ranks: This process among the others.
        device: Where tensors can be sent from.
        on_batch: Called with the number of rows done by all, after each batch.
    """
    batches = [range(first, min(first + batch_size, num)) for first in range(0, num, batch_size)]
    rounds = -(-len(batches) // ranks.size)
    own = []
    for i in range(rounds):
        place = min(i * ranks.size + ranks.rank, len(batches) - 1)
        own.append(make(batches[place]))
        if on_batch is not None:
            on_batch(min((i + 1) * ranks.size * batch_size, num))
    if ranks.size == 1:
        return torch.cat(own)
    full = [torch.cat([rows, rows[-1:].expand(batch_size - len(rows), *rows.shape[1:])]) for rows in own]
    sent = torch.stack(full).to(device)  # (rounds, batch_size, ...)
    received = [torch.empty_like(sent) for _ in range(ranks.size)]
    dist.all_gather(received, sent)
    by_turn = torch.stack(received, dim=1).flatten(
        0, 2
    )  # (rounds * size * batch_size, ...), in the rows' order
    return by_turn[:num].cpu()


@contextmanager
def launched(device: str = "auto") -> Iterator[tuple[Ranks, torch.device]]:
    """The processes that torchrun or srun started for this command, joined; one alone where none did.

    Args:
        device: "auto" is the process's own GPU if there are any, else the CPU; other names as torch knows them.

    Raises:
        ValueError: The first process's machine cannot be found.
    """
    environment = launcher()
    local_rank = environment.local_rank() if environment else 0
    if device == "auto":
        device = f"cuda:{local_rank}" if torch.cuda.is_available() and environment else _one_device()
    place = torch.device(device)
    if environment is None or environment.world_size() == 1:
        yield Ranks(), place
        return
    ranks = Ranks(environment.global_rank(), environment.world_size(), local_rank)
    address, port = environment.main_address, environment.main_port
    check_master(address, port, is_main=ranks.is_main)
    dist.init_process_group(
        "nccl" if place.type == "cuda" else "gloo",
        init_method=f"tcp://{address}:{port}" if isinstance(environment, SLURMEnvironment) else "env://",
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=timedelta(minutes=30),
    )
    try:
        yield ranks, place
    finally:
        dist.destroy_process_group()


def launcher() -> ClusterEnvironment | None:
    """What started this process beside others, if anything did."""
    quiet_lightning()  # to ask whether it was srun prints a hint wherever Slurm is installed
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None


def environment() -> dict[str, Any]:
    """What a trainer must be told of the launcher: that Slurm's signals are not Lightning's to answer."""
    found = launcher()
    return {"plugins": [found]} if isinstance(found, SLURMEnvironment) else {}


def check_launch(*, processes: int, num_nodes: int) -> None:
    """Whether what started this process started as many as the training wants, and whether they can find each other.

    Raises:
        ValueError: Another number of processes, no launcher for several machines, or the first one is not to be found.
    """
    environment = launcher()
    if environment is not None:
        started = environment.world_size()
        if started != processes:
            name = "srun" if isinstance(environment, SLURMEnvironment) else "torchrun"
            raise ValueError(
                f"{name} started {started} processes, but the trainer wants {processes}: give "
                f"trainer.devices=<processes per machine> trainer.num_nodes=<machines> as they were started"
            )
        if started > 1:
            check_master(
                environment.main_address, environment.main_port, is_main=environment.global_rank() == 0
            )
    elif num_nodes > 1:
        lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if lacking:
            raise ValueError(
                f"trainer.num_nodes={num_nodes} needs all machines to be told of each other: start by srun (see "
                f"slurm/train.sbatch) or torchrun, or set {', '.join(lacking)} on each of them"
            )
        first = os.environ["NODE_RANK"] == "0" and os.environ.get("LOCAL_RANK", "0") == "0"
        check_master(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_main=first)


def check_master(address: str, port: int, *, is_main: bool, patience: float = PATIENCE) -> None:
    """Find the machine of the first process, in seconds instead of torch's half hour.

    A refused connection is an answer: the machine is there and its first process is still starting.

    Raises:
        ValueError: Its name is not known, nothing answers, or (asked by the first process) it is another machine.
    """
    where = f"MASTER_ADDR={address} MASTER_PORT={port}"
    hint = "it is the machine of the first process (rank 0), as the others reach it"
    try:
        family, *_, sockaddr = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(
            f"{where}: this name is not known here ({error.strerror or error}); {hint}"
        ) from error
    if is_main:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((sockaddr[0], 0))
            except OSError as error:
                raise ValueError(
                    f"{where}: this is no address of the machine that the first process is on; {hint}"
                ) from error
        return
    until = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection((address, port), timeout=max(0.1, until - time.monotonic())):
                return
        except ConnectionRefusedError:
            return
        except OSError as error:
            if time.monotonic() >= until:
                raise ValueError(
                    f"{where}: nothing answered in {patience:.0f} s ({error.strerror or error}); {hint}"
                ) from error
            time.sleep(0.2)


def _one_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
