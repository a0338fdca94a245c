"""One moving average of a training's weights: the numbers, where they are kept, and how they change places.

Under FSDP each process averages the shards it holds: nothing is sent until the whole is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.training.sharded import (
    Share,
    Stored,
    changed,
    full,
    full_of,
    local,
    no_gradient_copy,
    plain_name,
    share_of,
    spread_like,
)

State = dict[str, dict[str, Tensor]]  # part -> name -> tensor


class Average:
    """A running mean of the parameters of some parts; buffers are not averaged, they are the network's own.

    Args:
        parts: The trained parts by name.
        on_cpu: Keep it in the host's memory. A GPU then holds one copy of the weights less, and every step copies the
            weights over.
    """

    def __init__(self, parts: Mapping[str, nn.Module], *, on_cpu: bool = False) -> None:
        self.parts = dict(parts)
        every = {id(p): p for part in self.parts.values() for p in part.parameters()}
        self.weights = [p for p in every.values() if p.is_floating_point()]
        home = torch.device("cpu") if on_cpu else None
        self.values = [no_gradient_copy(p, device=home) for p in self.weights]

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move by ``share`` of the way from the average to the weights as they are now; 1 takes them over."""
        weights = [
            w if w.device == v.device and w.dtype == v.dtype else w.to(v.device, v.dtype)
            for w, v in zip(map(local, self.weights), self.values, strict=True)
        ]
        torch._foreach_lerp_(self.values, weights, share)

    @torch.no_grad()
    def exchange(self) -> None:
        """The average goes into the network and the network's weights come here; twice is as before, bit for bit.

        By copying one tensor after another: FSDP has views into its storages, so they cannot be swapped.
        """
        for i, weight in enumerate(map(local, self.weights)):
            kept = weight.detach().clone()
            weight.copy_(self.values[i])
            self.values[i] = kept.to(self.values[i].device)
        for part in self.parts.values():
            changed(part)

    def state(self, *, keep: bool = True) -> State:
        """State dicts of the parts with averaged parameters, by plain names; all processes must ask together.

        Args:
            keep: False for processes that only take part and write nothing: their entries are empty.
        """
        averages = {id(weight): value for weight, value in zip(self.weights, self.values, strict=True)}
        found: State = {}
        for part, module in self.parts.items():
            found[part] = {}
            for name, x in module.state_dict(keep_vars=True).items():
                whole = full_of(averages[id(x)], x) if id(x) in averages else full(x.detach())
                if keep:
                    found[part][plain_name(name)] = whole
        return found

    def shares(self) -> dict[str, dict[str, Tensor | Share]]:
        """What ``state`` gives, of spread tensors what this process holds; nothing is sent."""
        averages = {id(weight): value for weight, value in zip(self.weights, self.values, strict=True)}
        return {
            part: {
                plain_name(name): share_of(averages.get(id(x), local(x.detach())), x)
                for name, x in module.state_dict(keep_vars=True).items()
            }
            for part, module in self.parts.items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor | Stored]]) -> None:
        """Take over what ``state`` or ``shares`` gave, on any number of processes.

        Raises:
            ValueError: It is of other parts.
        """
        if state.keys() != self.parts.keys():
            raise ValueError(
                f"an average of {sorted(state)} was saved, and {sorted(self.parts)} are trained: "
                f"was the module built from the run's own config?"
            )
        places = {id(weight): i for i, weight in enumerate(self.weights)}
        for part, module in self.parts.items():
            for name, x in module.state_dict(keep_vars=True).items():
                if id(x) in places:
                    whole = state[part][plain_name(name)]
                    self.values[places[id(x)]].copy_(local(spread_like(whole, x)))
