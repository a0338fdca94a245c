"""Whether tensors are a network's own: said in words where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn


class HasShape(Protocol):
    """A tensor, or what stands for one that is on the disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def misfits(network: nn.Module, state: Mapping[str, HasShape], *, most: int = 3, names: bool = True) -> str:
    """How ``state`` differs from the state dict of ``network``; "" where it fits.

    Args:
        most: So many differences are named, the others counted.
        names: Compare which tensors there are; False looks at the shapes of those that both have.
    """
    own = network.state_dict()
    wrong = []
    if names:
        wrong += [f"it lacks {name}" for name in own if name not in state]
        wrong += [f"{name} has no place here" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)} and not {tuple(x.shape)}"
        for name, x in own.items()
        if name in state and tuple(state[name].shape) != tuple(x.shape)
    ]
    more = f" and {len(wrong) - most} more" if len(wrong) > most else ""
    return f"{'; '.join(wrong[:most])}{more}"
