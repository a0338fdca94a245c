"""Tensors that are spread over processes (DTensor, under FSDP) and plain ones, handled alike.

torch.distributed.tensor and torch.distributed.fsdp take two seconds to import. Where nobody has imported them no tensor
is spread, so they are asked for only where they are there already: optimizers need this file, and a plan needs those.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def spread(x: Any) -> TypeGuard[DTensor]:
    """Whether ``x`` is a tensor that is spread over processes."""
    home = sys.modules.get("torch.distributed.tensor")
    return home is not None and isinstance(x, home.DTensor)


@dataclass(frozen=True)
class Share:
    """What one process holds of a tensor, and where in the whole that belongs.

    Args:
        held: The tensor here.
        shape: Of the whole.
        offsets: Where ``held`` begins in it.
    """

    held: Tensor
    shape: torch.Size
    offsets: tuple[int, ...]

    @classmethod
    def whole(cls, x: Tensor) -> Share:
        return cls(x, x.shape, (0,) * x.ndim)


@dataclass(frozen=True)
class Stored:
    """A tensor on the disk, in the pieces in which it was written.

    Args:
        name: In its files.
        shape: Of the whole.
        pieces: Where in the whole each begins, how large it is, and the open file that has it.
    """

    name: str
    shape: torch.Size
    pieces: Sequence[tuple[tuple[int, ...], tuple[int, ...], Any]]

    def whole(self) -> Tensor:
        return self.part((0,) * len(self.shape), self.shape)

    def part(self, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The box that begins at ``offsets``; only its bytes are read."""
        made: Tensor | None = None
        for begin, size, file in self.pieces:
            if tuple(offsets) == begin and tuple(sizes) == size:
                return file.get_tensor(self.name)
            low = [max(a, b) for a, b in zip(offsets, begin, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, begin, size, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            there = tuple(slice(a - b, c - b) for a, b, c in zip(low, begin, high, strict=True))
            here = tuple(slice(a - b, c - b) for a, b, c in zip(low, offsets, high, strict=True))
            found = file.get_slice(self.name)[there]
            if made is None:
                made = torch.empty(tuple(sizes), dtype=found.dtype)
            made[here] = found
        if made is None:  # of a tensor with fewer rows than processes
            first = self.pieces[0][2].get_slice(self.name)
            return first[tuple(slice(0, 0) for _ in self.shape)].new_empty(tuple(sizes))
        return made


def share_of(held: Tensor, like: Tensor) -> Tensor | Share:
    """A tensor of which each process holds what it holds of ``like``; nothing is sent."""
    return Share(held, like.shape, _box(like)[1]) if spread(like) else held


def _box(x: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Size of this process's share of ``x`` and where it begins."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    size, offsets = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    return tuple(size), tuple(offsets)


def local(x: Tensor) -> Tensor:
    """What this process holds of ``x``: a view, so that writing into it writes into ``x``."""
    return x.to_local() if spread(x) else x


def full(x: Tensor) -> Tensor:
    """The whole of ``x``; where it is spread, all processes must ask together."""
    return x.full_tensor() if spread(x) else x


def full_of(held: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor of which each process holds what it holds of ``like``; all must ask together."""
    if not spread(like):
        return held
    return _spread(held, like).full_tensor()


def _spread(held: Tensor, like: DTensor) -> DTensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        held.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def spread_like(x: Tensor | Stored, like: Tensor) -> Tensor:
    """``x``, whole and the same on all processes, spread as ``like`` is; nothing is sent.

    Of what is on the disk only this process's share is read.
    """
    if isinstance(x, Stored):
        if not spread(like):
            return x.whole()
        size, offsets = _box(like)
        return _spread(x.part(offsets, size).to(dtype=like.dtype), like)
    if not spread(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    x = x.to(like.device, like.dtype)
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)


def full_state(x: Any, *, keep: bool) -> Any:
    """``x`` with its tensors whole and on the CPU where they were spread; all processes must ask together.

    Args:
        x: Dictionaries and lists of tensors and other values.
        keep: False gives None in place of spread tensors: for processes that take part and write nothing.
    """
    if spread(x):
        whole = full(x.detach())
        return whole.cpu() if keep else None
    if isinstance(x, Mapping):
        return {key: full_state(value, keep=keep) for key, value in x.items()}
    if isinstance(x, list):
        return [full_state(value, keep=keep) for value in x]
    return x


def copy_to_host(x: Any) -> Any:
    """A copy of ``x`` that stays as it is, with its tensors in the host's memory; of spread ones this process's share.

    Args:
        x: Dictionaries, lists and tuples of tensors and other plain values.
    """
    if spread(x):
        return copy_to_host(share_of(local(x.detach()), x))
    if isinstance(x, Share):
        return Share(copy_to_host(x.held), x.shape, x.offsets)
    if isinstance(x, Tensor):
        return torch.empty_like(x, device="cpu", memory_format=torch.contiguous_format).copy_(x.detach())
    if isinstance(x, dict):
        return {key: copy_to_host(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)([copy_to_host(value) for value in x])
    return x


def changed(module: nn.Module) -> None:
    """Tell FSDP that weights were written into, so that no gathered copy of the former ones is used again."""
    home = sys.modules.get("torch.distributed.fsdp")
    if home is None:
        return
    for part in module.modules():
        if isinstance(part, home.FSDPModule):
            part.reshard()


def plain_name(name: str) -> str:
    """A parameter's name in the network as it was built, without the words that wrappers put into it."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def is_spread(module: nn.Module) -> bool:
    return any(spread(p) for p in module.parameters())


def no_gradient_copy(x: Tensor, *, device: torch.device | None = None) -> Tensor:
    """A copy of what this process holds, in float32 or better: an average of bfloat16 weights would stand still."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return local(x.detach()).to(device=device, dtype=dtype, copy=True)
