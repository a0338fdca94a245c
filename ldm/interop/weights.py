"""Weights by other names: rules that carry a state dict from another project's layout to ours and back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and the tensors of theirs that make it up.

    Args:
        ours: Name of our parameter or buffer.
        theirs: Names of theirs; several are laid one behind the other along the first dimension (a fused q, k, v).
        sizes: How many rows each of theirs has; None for equal parts.
        order: Which of theirs comes first in ours: a permutation of equal chunks of a single tensor of theirs, as in
            modulations that name shift and scale the other way round. None to leave the order alone.
        their_shape: Of each of theirs, where it differs from ours by ones (a 1x1 convolution against a linear layer).
    """

    ours: str
    theirs: tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    their_shape: tuple[int, ...] | None = None


class DiffusersMap(Protocol):
    """One class of diffusers and its counterpart here."""

    class_name: str  # as ``_class_name`` in its config.json

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Our network for their config.

        Raises:
            ValueError: The config asks for something that ours has not; it is named.
        """
        ...

    def config(self, network: nn.Module) -> dict[str, Any]:
        """Their config for our network, all that ``from_config`` needs."""
        ...

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        """A rule for each tensor in the network's state dict."""
        ...


def to_ours(rules: Iterable[Rule], theirs: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Their state dict by our names, in the shapes of ``network``.

    Raises:
        ValueError: Tensors are missing, left over, or of another shape; up to five are named.
    """
    rules = list(rules)
    _complain("lacks", [name for rule in rules for name in rule.theirs if name not in theirs])
    used = {name for rule in rules for name in rule.theirs}
    _complain("has, with no place here,", [name for name in theirs if name not in used])
    wanted = network.state_dict()
    ours = {}
    for rule in rules:
        target = wanted[rule.ours]
        rows = _rows(rule, target)
        parts = [theirs[name] for name in rule.theirs]
        for name, part, n in zip(rule.theirs, parts, rows, strict=True):
            if part.numel() * target.shape[0] != target.numel() * n:
                raise ValueError(
                    f"{name} has shape {tuple(part.shape)}, which does not fit {rule.ours} {tuple(target.shape)}"
                )
        joined = torch.cat([part.reshape(n, *target.shape[1:]) for part, n in zip(parts, rows, strict=True)])
        if rule.order is not None:
            chunks = joined.chunk(len(rule.order))
            joined = torch.cat([chunks[i] for i in rule.order])
        ours[rule.ours] = joined
    _complain("gives nothing for our", [name for name in wanted if name not in ours])
    return ours


def to_theirs(rules: Iterable[Rule], network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict by their names and in their shapes: the reverse of ``to_ours``, bit for bit."""
    ours = network.state_dict()
    theirs = {}
    for rule in rules:
        x = ours[rule.ours]
        if rule.order is not None:
            chunks = x.chunk(len(rule.order))
            x = torch.cat([chunks[rule.order.index(i)] for i in range(len(rule.order))])
        for name, part in zip(rule.theirs, x.split(_rows(rule, x)), strict=True):
            theirs[name] = part.reshape(rule.their_shape or part.shape).clone()
    return theirs


def _rows(rule: Rule, ours: Tensor) -> list[int]:
    if rule.sizes is not None:
        return list(rule.sizes)
    if ours.ndim == 0:
        return [1]
    return [ours.shape[0] // len(rule.theirs)] * len(rule.theirs)


def _complain(how: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ValueError(f"the file {how} {shown}")
