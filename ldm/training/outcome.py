"""What became of a step, told without making the CPU wait for a GPU that is still at it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ldm.interfaces import Batch


@dataclass(frozen=True)
class Step:
    """A step between its backward pass and the optimizer's.

    Args:
        norm: Of all gradients together, on their device.
        losses: Of its pieces, on their device.
        pieces: Its batch on this process.
        images_seen: With its own.
        global_step: Lightning's number of it.
    """

    norm: Tensor
    losses: Sequence[Tensor]
    pieces: Sequence[Batch]
    images_seen: int
    global_step: int
    _sent: tuple[Tensor, torch.cuda.Event] | None = field(
        init=False, default=None
    )  # (1 + losses,); when they are here

    def __post_init__(self) -> None:
        if self.norm.is_cuda:
            numbers = torch.stack([x.float() for x in (self.norm, *self.losses)])
            here = torch.empty_like(numbers, device="cpu", pin_memory=True)
            event = torch.cuda.Event()
            here.copy_(numbers, non_blocking=True)
            event.record()
            object.__setattr__(self, "_sent", (here, event))

    @property
    def is_known(self) -> bool:
        """Whether asking costs no waiting."""
        return self._sent is None

    @property
    def bad_there(self) -> Tensor:
        """() bool on the device: whether the step must not be made."""
        return ~torch.isfinite(self.norm)

    def is_bad(self) -> bool:
        """The same here; waits for the backward pass."""
        return not math.isfinite(self._read()[0])

    def loss(self) -> float:
        """The mean over the pieces; waits for the backward pass."""
        losses = self._read()[1:]
        return sum(losses) / max(1, len(losses))

    def _read(self) -> list[float]:
        if self._sent is None:
            return [float(x) for x in (self.norm, *self.losses)]
        here, event = self._sent
        event.synchronize()
        return here.tolist()


def leaves_out(optimizer: Optimizer, step: Step) -> None:
    """Have the next ``optimizer.step()`` change nothing if the step is bad, decided on the device.

    torch's fused optimizers take a number for it, ``found_inf``, made for the scaling of float16 gradients: where it is
    1 neither weights nor moments nor the count of steps move.
    """
    optimizer.found_inf = step.bad_there.float()  # type: ignore[attr-defined]


def can_leave_out(optimizer: Optimizer, trainer: Trainer, module: LightningModule) -> bool:
    """Whether the optimizer has that, and nobody else (a gradient scaler) needs it or cannot go with it (FSDP)."""
    return (
        getattr(optimizer, "_step_supports_amp_scaling", False)
        and module.automatic_optimization
        and trainer.precision_plugin.precision != "16-mixed"
        and not isinstance(optimizer.param_groups[0]["params"][0], DTensor)
    )
