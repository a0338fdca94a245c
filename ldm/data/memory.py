"""Memory that batches lie in, used again.

The operating system hands out fresh memory page by page, each cleared first. For a batch of pictures that costs several
times what filling it does, step after step, where the allocator gives large blocks back at once.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor

_sample = [np.empty(1, np.uint8)]
_HELD_HERE = sys.getrefcount(_sample[0])  # of an array that only a list holds, asked in this way


class Memory:
    """Tensors whose memory is used again, once nobody holds them or a view of them any more.

    A tensor made here holds a reference to its block for as long as its storage lives, through every view of it. So
    a block with no reference but our own is free, and a batch that somebody keeps is never written over.

    Args:
        most: blocks that are kept.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._blocks: list[np.ndarray] = []

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU with whatever stands in its memory."""
        size = math.prod(shape) * dtype.itemsize
        block = self._block(size)
        return torch.from_numpy(block)[:size].view(dtype).view(shape)

    def _block(self, size: int) -> np.ndarray:
        idle = None
        for place in range(len(self._blocks)):  # no loop over the blocks themselves: it would hold one
            if sys.getrefcount(self._blocks[place]) == _HELD_HERE:
                if size <= self._blocks[place].nbytes <= 2 * size:
                    return self._blocks[place]
                idle = place
        if len(self._blocks) == self.most:
            if idle is None:
                return np.empty(size, np.uint8)  # somebody collects batches: theirs to keep
            del self._blocks[idle]
        self._blocks.append(np.empty(size, np.uint8))
        return self._blocks[-1]

    def __getstate__(self) -> dict[str, object]:  # nothing of it travels to another process
        return {"most": self.most, "_blocks": []}
