"""What a device can do, as its maker says: one file in configs/hardware for each."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device.

    Args:
        title: Its name in print.
        memory_gib: Its memory; None for a CPU's, that of this machine.
        reserved_gib: Of it not for tensors: the driver's context, libraries' workspaces, gaps between tensors.
        tflops: Peak of matrix products in 16 bits, without sparsity.
        tflops_float32: The same in float32.
        gpu: Whether it is a GPU.

    Raises:
        ValueError: A number that cannot be.
    """

    title: str
    memory_gib: float | None
    reserved_gib: float
    tflops: float
    tflops_float32: float
    gpu: bool

    def __post_init__(self) -> None:
        if self.memory_gib is None and self.gpu:
            raise ValueError(f"{self.title}: a GPU needs memory_gib")
        if min(self.tflops, self.tflops_float32, self.memory_gib or 1.0) <= 0:
            raise ValueError(f"{self.title}: tflops and memory_gib must be positive")

    @property
    def usable(self) -> int:
        """Bytes for tensors."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        whole = self.memory_gib * GIB if self.memory_gib is not None else total
        return int(whole - self.reserved_gib * GIB)

    def peak(self, compute: torch.dtype) -> float:
        """Floating-point operations a second."""
        return 1e12 * (self.tflops_float32 if compute == torch.float32 else self.tflops)
