"""Pictures that several processes look at together: what each found is added up or put in order once, at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Together:
    """This process among those that measure together.

    Args:
        rank: Its number, from 0.
        size: How many there are.
        device: Where tensors can be sent from.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """x of all processes, added up; on each of them, where x was."""
        if self.size == 1:
            return x
        sent = x.to(self.device, copy=True)
        dist.all_reduce(sent)
        return sent.to(x.device)

    def all(self, here: bool) -> bool:
        """Whether it is so on all of them."""
        return int(self.sum(torch.tensor(int(here)))) == self.size

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Rows (n, ...) of each process, n its own, in the order of the processes; on each of them, on the CPU."""
        if self.size == 1:
            return [rows.cpu()]
        num = torch.tensor([len(rows)], device=self.device)
        counts = [torch.empty_like(num) for _ in range(self.size)]
        dist.all_gather(counts, num)
        longest = int(torch.stack(counts).max())
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])]).to(self.device)
        received = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(received, padded)
        return [part[: int(count)].cpu() for part, count in zip(received, counts, strict=True)]

    def told(self, value: Any) -> Any:
        """What the first process says, on all of them."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0, device=self.device)
        return said[0]
