"""Weights by other names: rules that carry a state dict from another project's layout to ours and back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning


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
        copies: Further names under which theirs keep the same tensor again (``theirs`` has one name then).
    """

    ours: str
    theirs: tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    their_shape: tuple[int, ...] | None = None
    copies: tuple[str, ...] = ()


class DiffusersMap(Protocol):
    """One class of diffusers and its counterpart here. Found by listing ``ldm/interop``: see ``catalogue.py``."""

    @property
    def class_name(self) -> str:
        """Theirs, as ``_class_name`` in its config.json."""
        ...

    @property
    def network(self) -> type[nn.Module]:
        """Ours."""
        ...

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Our network for their config; what the config leaves out is their default.

        Raises:
            ValueError: The config asks for something that ours has not; it is named.
        """
        ...

    def config(self, network: nn.Module) -> dict[str, Any]:
        """Their config for our network, all that ``from_config`` needs.

        Raises:
            ValueError: The network has something that theirs has not; it is named.
        """
        ...

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        """A rule for each tensor in the network's state dict."""
        ...


class NetworkMap(DiffusersMap, Protocol):
    """A map of a denoising network."""

    def call(self, theirs: Callable[..., Any], x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Their network's answer to our arguments, asked as their pipeline asks it: (B, C, H, W)."""
        ...


class AutoencoderMap(DiffusersMap, Protocol):
    """A map of an autoencoder."""

    def latent_scale(self, config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each latent channel, as their config states them."""
        ...

    def present_names(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their state dict by the names of today, where published files still have elder ones."""
        ...


class SingleFileMap(Protocol):
    """One network of ours in the layout of the original, single-file checkpoints."""

    @property
    def layout(self) -> str:
        """What the layout is called."""
        ...

    @property
    def network(self) -> type[nn.Module]:
        """Ours."""
        ...

    @property
    def prefix(self) -> str:
        """What all of the network's names begin with."""
        ...

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        """A rule for each tensor in the network's state dict, names with their prefix.

        Raises:
            ValueError: The layout has no place for something in this network; it is named.
        """
        ...


def linear(
    ours: str, *theirs: str, sizes: tuple[int, ...] | None = None, order: tuple[int, ...] | None = None
) -> list[Rule]:
    """Rules for weight and bias of a layer."""
    return [
        Rule(f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs), sizes, order)
        for part in ("weight", "bias")
    ]


def to_ours(rules: Iterable[Rule], theirs: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Their state dict by our names, in the shapes of ``network``.

    Raises:
        ValueError: Tensors are missing, left over, or of another shape, or copies of one tensor differ; up to five are
            named.
    """
    rules = list(rules)
    used = [name for rule in rules for name in (*rule.theirs, *rule.copies)]
    _complain("lacks", [name for name in used if name not in theirs])
    known = set(used)
    _complain("has, with no place here,", [name for name in theirs if name not in known])
    copies = [(name, rule.theirs[0]) for rule in rules for name in rule.copies]
    differing = [name for name, first in copies if not torch.equal(theirs[name], theirs[first])]
    _complain("has, where ours has one tensor for all blocks, different ones:", differing)
    wanted = network.state_dict()
    ours = {}
    for rule in rules:
        target = wanted[rule.ours]
        rows = _rows(rule, target)
        parts = [theirs[name] for name in rule.theirs]
        for name, part, n in zip(rule.theirs, parts, rows, strict=True):
            wanted_shape = rule.their_shape or (n, *target.shape[1:])
            if tuple(part.shape) != wanted_shape and target.ndim > 0:
                raise ValueError(
                    f"{name} has shape {tuple(part.shape)}, {wanted_shape} is needed for {rule.ours}"
                )
        joined = torch.cat([part.reshape(n, *target.shape[1:]) for part, n in zip(parts, rows, strict=True)])
        if rule.order is not None:
            chunks = joined.chunk(len(rule.order))
            joined = torch.cat([chunks[i] for i in rule.order])
        ours[rule.ours] = joined.reshape(target.shape)
    _complain("gives nothing for our", [name for name in wanted if name not in ours])
    return ours


def to_theirs(rules: Iterable[Rule], network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict by their names and in their shapes: the reverse of ``to_ours``, bit for bit.

    Raises:
        ValueError: The network has tensors that theirs has no place for; up to five are named.
    """
    rules = list(rules)
    ours = network.state_dict()
    placed = {rule.ours for rule in rules}
    if left := [name for name in ours if name not in placed]:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise ValueError(
            f"this format has no place for {', '.join(left[:5])}{more} of the network: format=safetensors keeps all"
        )
    theirs = {}
    for rule in rules:
        x = ours[rule.ours]
        if rule.order is not None:
            chunks = x.chunk(len(rule.order))
            x = torch.cat([chunks[rule.order.index(i)] for i in range(len(rule.order))])
        for name, part in zip(rule.theirs, x.split(_rows(rule, x)), strict=True):
            shaped = part.reshape(rule.their_shape or part.shape)
            theirs[name] = shaped.clone(memory_format=torch.contiguous_format)
        for name in rule.copies:
            theirs[name] = theirs[rule.theirs[0]].clone()
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
