"""How much a training step computes, and how much of what the device could do that is."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.nn.blocks import HasBlocks

# Dense matrix products in bfloat16 with float32 sums, FLOP/s, as NVIDIA's data sheets give them. More special names
# stand first.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


class StepCounter:
    """Counts the operations of matrix products, convolutions and attention in one pass, forward and back.

    Compiled blocks run as they are written while it counts: inside compiled code nothing can be counted.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._counter = FlopCounterMode(display=False)
        self._again = 0.0

    def begin(self) -> None:
        self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        self._stack.enter_context(self._counter)

    def forward_is_done(self, parts: Mapping[str, nn.Module], *, checkpointed: bool) -> None:
        """Note what checkpointed blocks will compute a second time: it is not the model's own work."""
        if not checkpointed:
            return
        counts = {name: sum(ops.values()) for name, ops in self._counter.get_flop_counts().items()}
        for part, module in parts.items():
            if isinstance(module, HasBlocks):
                blocks = {id(block) for block in module.blocks_to_wrap()}
                names = [name for name, child in module.named_modules() if id(child) in blocks]
                ends = tuple(f"{owner}.{name}" for name in names for owner in (part, type(module).__name__))
                self._again += sum(count for name, count in counts.items() if name.endswith(ends))

    def end(self) -> float:
        """Operations since ``begin``, each product of a and b counted as two, without what was computed again."""
        self._stack.close()
        return float(self._counter.get_total_flops()) - self._again


def peak_rate(device: torch.device, precision: str) -> float:
    """FLOP/s that the device can do at best: as its maker says in bfloat16, else as a large product here takes."""
    half = "16" in precision
    if device.type == "cuda" and half:
        name = torch.cuda.get_device_name(device)
        for known, rate in PEAKS.items():
            if known in name:
                return rate
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if half else torch.float32
    return matmul_rate(device, dtype)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of five."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first warms up
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def peak_memory(device: torch.device) -> float:
    """GiB at most so far: of the GPU's memory in tensors, on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
