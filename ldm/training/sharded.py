"""Tensors that are spread over processes (DTensor, under FSDP) and plain ones, handled alike.

torch.distributed.tensor and torch.distributed.fsdp take two seconds to import. Where nobody has imported them no tensor
is spread, so they are asked for only where they are there already: optimizers need this file, and a plan needs those.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def spread(x: Any) -> TypeGuard[DTensor]:
    """Whether ``x`` is a tensor that is spread over processes."""
    home = sys.modules.get("torch.distributed.tensor")
    return home is not None and isinstance(x, home.DTensor)


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
    from torch.distributed.tensor import DTensor

    mesh = like.device_mesh
    shared = DTensor.from_local(
        held.to(like.device), mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return shared.full_tensor()


def spread_like(x: Tensor, like: Tensor) -> Tensor:
    """``x``, whole and the same on all processes, spread as ``like`` is; nothing is sent."""
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


def changed(module: nn.Module) -> None:
    """Tell FSDP that weights were written into, so that no gathered copy of the former ones is used again."""
    home = sys.modules.get("torch.distributed.fsdp")
    for part in module.modules() if home is not None else ():
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
