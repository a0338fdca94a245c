"""How much a training step computes, and how much of what the device could do that is."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from ldm.nn.blocks import HasBlocks

aten = torch.ops.aten

# Dense matrix products in bfloat16 with float32 sums, FLOP/s. More special names stand first. NVIDIA's data sheets
# often give the rate with sparse weights only, which is twice this.
PEAKS = {
    "H100 PCIe": 756e12,  # H100 data sheet: 1,513 with sparsity
    "H100 NVL": 835e12,  # 1,671
    "H100": 989e12,  # SXM: 1,979
    "GH200": 989e12,  # GH200 data sheet: 1,979
    "H200": 989e12,  # H200 data sheet: 1,979
    "B200": 2250e12,  # HGX B200: 36 PFLOPS of eight, with sparsity
    "A100": 312e12,  # A100 data sheet: 312, 624 with sparsity
    "A800": 312e12,
    "L40S": 362e12,  # L40S data sheet: 362.05, 733 with sparsity
    "L40": 181e12,  # L40 data sheet: 181.05, 362.1 with sparsity
    "L4": 121e12,  # L4 data sheet: 242 with sparsity
    "RTX 4090": 165e12,  # Ada GPU architecture whitepaper, appendix A: 165.2, 330.4 with sparsity
    "RTX 3090": 71e12,  # GA102 whitepaper, appendix A: 71, 142 with sparsity
}


SLOW = 5e9  # FLOP/s of a small product: no unit of any CPU core in use is so slow, emulation is


class StepCounter:
    """Counts the operations of matrix products, convolutions and attention in one pass, forward and back.

    Compiled blocks run as they are written while it counts: inside compiled code nothing can be counted.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._counter = _Counting()
        self._again = 0.0

    def begin(self) -> None:
        self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        self._stack.enter_context(self._counter)

    def forward_is_done(self, parts: Mapping[str, nn.Module], *, checkpointed: bool) -> None:
        """Note what checkpointed blocks will compute a second time: it is not the model's own work."""
        if not checkpointed:
            return
        counts = dict(self._counter.counts)
        for part, module in parts.items():
            if isinstance(module, HasBlocks):
                blocks = {id(block) for block in module.blocks_to_wrap()}
                names = [name for name, child in module.named_modules() if id(child) in blocks]
                ends = tuple(f"{owner}.{name}" for name in names for owner in (part, type(module).__name__))
                self._again += sum(count for name, count in counts.items() if name.endswith(ends))

    def end(self) -> float:
        """Operations since ``begin``, each product of a and b counted as two, without what was computed again."""
        self._stack.close()
        return float(self._counter.counts["Global"]) - self._again


class _Counting(TorchDispatchMode):
    """Operations by module, "Global" being all. What runs inside gives the same bits as outside.

    torch's FlopCounterMode does not leave them alone: it takes operators apart that it has no count for, and a SiLU's
    gradient then rounds otherwise. The first step after a restart, which is the one that is counted, would differ.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._tracker = ModuleTracker()

    def __enter__(self) -> _Counting:
        self._tracker.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._tracker.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if done := flops_of(func, args, kwargs or {}, out):
            self.counts.update(dict.fromkeys(self._tracker.parents, done))
        return out


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Floating-point operations of one call of an operator; 0 for what is not worth counting."""
    packet = func._overloadpacket
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    if packet in CPU_ATTENTION:
        return CPU_ATTENTION[packet](*[tuple(x.shape) if isinstance(x, Tensor) else x for x in args])
    return 0


def _forward(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _backward(
    grad: tuple[int, ...], q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: Any
) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


# The fused attention for CPUs is missing in torch's registry; it is the one that also runs on the meta device.
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


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


def matmul_rate(
    device: torch.device,
    dtype: torch.dtype,
    *,
    size: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of a large square matrix product, the best of five; of a small one where large ones would take seconds.

    Args:
        device: Where.
        dtype: Of both factors; a CPU without units for it is hundreds of times slower than in float32.
        size: Rows of the large one; 1024 on a CPU, 8192 elsewhere.
        clock: Seconds.
    """

    def rate(n: int, repeats: int) -> float:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        best = float("inf")
        for _ in range(repeats + 1):  # the first warms up
            _wait(device)
            start = clock()
            a @ b
            _wait(device)
            best = min(best, clock() - start)
        return 2 * n**3 / best

    if (small := rate(256, 2)) < SLOW:
        return small
    return rate(size or (1024 if device.type == "cpu" else 8192), 5)


def peak_memory(device: torch.device) -> float:
    """GiB at most so far: of the GPU's memory in tensors, on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
