"""Which of several processes this one is, as their launcher says: torchrun, srun or mpirun, or nobody."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

LAUNCHERS = (  # (rank, number of processes, rank on this machine)
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


@dataclass(frozen=True)
class Process:
    """One of ``world_size`` processes that share a work and need not talk to each other."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def this_process(environment: Mapping[str, str] = os.environ) -> Process:
    """As the first launcher of ``LAUNCHERS`` that is there says."""
    for names in LAUNCHERS:
        if all(name in environment for name in names):
            return Process(*(int(environment[name]) for name in names))
    return Process()
