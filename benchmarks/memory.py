"""Memory as planned and as measured: trains as the overrides say, on the CPU, and prints both in MiB.

    python benchmarks/memory.py experiment=shapes_dit num_images=192

Measured is the peak of resident memory (VmHWM of /proc/self/status) from the second step on, less what was resident
before, in the second of two trainings in one process: the first loads what is loaded once. malloc is told to give large
blocks back at once (MALLOC_MMAP_THRESHOLD_), for resident memory to be memory in use: without, glibc keeps up to half
as much again. Printed are what was planned, what the first step took, and what the others took.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

THRESHOLD = "MALLOC_MMAP_THRESHOLD_"


def main(overrides: list[str]) -> None:
    if THRESHOLD not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, THRESHOLD: "65536"})
    from ldm.commands import launch, plan, train
    from ldm.planning.hardware import Hardware
    from ldm.training.module import TrainingModule

    overrides = [*overrides, "trainer=cpu"]
    config = launch.checked(overrides)
    cpu = Hardware(title="CPU", memory_gib=None, reserved_gib=0.0, tflops=1.0, tflops_float32=1.0, gpu=False)
    planned = plan.reckoned(config, hardware=cpu, mfu=1.0, num_pictures=None).chosen.total
    # the first training loads what is loaded once: libraries, torch's compiler
    train.train(launch.checked([*overrides, "name=first"]))
    gc.collect()
    before = resident("VmRSS")
    peaks: list[int] = []
    begin_step = TrainingModule.on_train_batch_start

    def noted(self: TrainingModule, batch: Any, index: int) -> None:
        peaks.append(resident("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        begin_step(self, batch, index)

    TrainingModule.on_train_batch_start = noted  # type: ignore[method-assign]
    train.train(config)
    peaks.append(resident("VmHWM"))
    numbers = [planned, peaks[1] - before, max(peaks[2:]) - before]
    print("planned, first step, other steps, MiB:", *(f"{number / 2**20:.0f}" for number in numbers))


def resident(name: str) -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(sys.argv[1:])
