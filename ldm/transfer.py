"""Tensors on their way from the CPU to where they are computed with."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """``x`` on ``device``; the CPU does not wait.

    A GPU can fetch by itself only what lies in pinned memory. For anything else torch waits until the GPU has done all
    that it was given so far: the CPU would lose its head start at every step.
    """
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
