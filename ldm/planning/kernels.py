"""Shape, strides and precision of what operators give on the meta device, for those that networks are made of.

torch finds them in Python, too, by way of the compiler's general rules, which take up to a millisecond a call: most of
the time of a plan. Here each operator has the few lines that its common case needs. Where they cannot tell exactly what
torch would give (another layout, mixed precisions, shapes that do not fit), they say None, and torch is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Kernel = Callable[..., Any]


def quick(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What ``func`` gives for meta tensors, without data; None where torch itself must be asked."""
    kernel = KERNELS.get(func)
    if kernel is None or kwargs.keys() - {"alpha", "approximate"}:
        return None
    tensors = [x for x in args if isinstance(x, Tensor)]
    if not all(x.is_meta and x.is_floating_point() for x in tensors):
        return None
    return kernel(*args)


def pointwise(*operands: Any) -> Tensor | None:
    """Operands are broadcast; numbers change nothing."""
    tensors = [x for x in operands if isinstance(x, Tensor)]
    first = tensors[0]
    if any(x.dtype != first.dtype for x in tensors) or not _real(operands):
        return None
    whole = [x for x in tensors if x.shape == first.shape]
    if len(whole) == len(tensors):
        same = all(x.stride() == first.stride() for x in tensors)
        return like(first) if same else None
    shape = _broadcast([x.shape for x in tensors])
    if shape is None or not all(x.is_contiguous() for x in tensors):
        return None
    return torch.empty(shape, dtype=first.dtype, device="meta")


def in_place(target: Tensor, *operands: Any) -> Tensor | None:
    """The first operand, changed."""
    others = [x.shape for x in operands if isinstance(x, Tensor)]
    fits = not others or _broadcast([target.shape, *others]) == target.shape
    return target if fits and _real(operands) else None


def matrix_product(a: Tensor, b: Tensor) -> Tensor | None:
    """(n, k), (k, m) -> (n, m), also for a batch of them."""
    if a.dtype != b.dtype or a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        return None
    return torch.empty(*a.shape[:-1], b.shape[-1], dtype=a.dtype, device="meta")


def biased_product(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    """bias (m,), (n, k), (k, m) -> (n, m)."""
    if bias.dtype != a.dtype or bias.shape != b.shape[1:]:
        return None
    return matrix_product(a, b)


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The result, and mean and 1 / deviation of each row in float32."""
    if not x.is_contiguous() or any(p is not None and p.dtype != x.dtype for p in (weight, bias)):
        return None
    rows = [*x.shape[: x.ndim - len(shape)], *(1 for _ in shape)]
    mean = torch.empty(rows, dtype=torch.promote_types(x.dtype, torch.float32), device="meta")
    return like(x), mean, like(mean)


def layer_norm_backward(
    gradient: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    parts = (x, weight, bias)
    if not x.is_contiguous() or any(p is not None and p.dtype != x.dtype for p in parts):
        return None
    return tuple(
        like(part) if part is not None and one else None for part, one in zip(parts, wanted, strict=True)
    )


def group_norm(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and mean and 1 / deviation of each group."""
    batch, groups = others[2], others[5]
    statistics = torch.empty(batch, groups, dtype=x.dtype, device="meta")
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def group_norm_backward(gradient: Tensor, x: Tensor, *others: Any) -> tuple[Tensor | None, ...] | None:
    _, _, weight, _, channels, _, _, wanted = others
    if not x.is_contiguous() or (weight is not None and weight.dtype != x.dtype):
        return None

    def parameter() -> Tensor:
        return torch.empty(channels, dtype=x.dtype, device="meta")

    return tuple(
        make() if one else None
        for make, one in zip((lambda: like(x), parameter, parameter), wanted, strict=True)
    )


def total(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> Tensor:
    """Sums over some dimensions, or over all."""
    gone = {dim % x.ndim for dim in dims} if dims else set(range(x.ndim))
    kept = [1 if dim in gone else size for dim, size in enumerate(x.shape) if keepdim or dim not in gone]
    return torch.empty(kept, dtype=x.dtype, device="meta")


def space_to_channels(x: Tensor, factor: int) -> Tensor | None:
    """(B, C, fH, fW) -> (B, f^2 C, H, W)."""
    if x.ndim != 4 or x.shape[2] % factor or x.shape[3] % factor:
        return None
    batch, channels, height, width = x.shape
    shape = batch, channels * factor**2, height // factor, width // factor
    return torch.empty(shape, dtype=x.dtype, device="meta")


def channels_to_space(x: Tensor, factor: int) -> Tensor | None:
    """(B, f^2 C, H, W) -> (B, C, fH, fW)."""
    if x.ndim != 4 or x.shape[1] % factor**2:
        return None
    batch, channels, height, width = x.shape
    shape = batch, channels // factor**2, height * factor, width * factor
    return torch.empty(shape, dtype=x.dtype, device="meta")


def like(x: Tensor) -> Tensor:
    """A new tensor of this shape, its elements in the same order where they lie without gaps, as torch does it."""
    if x.is_contiguous():
        return torch.empty(x.shape, dtype=x.dtype, device="meta")
    if _dense(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return torch.empty_like(x)


def _dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return expected == prod(x.shape)


def _broadcast(shapes: Sequence[torch.Size]) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None


def _real(operands: Sequence[Any]) -> bool:
    return not any(isinstance(x, complex) for x in operands)


KERNELS: dict[Any, Kernel] = {
    aten.native_group_norm.default: group_norm,
    aten.native_group_norm_backward.default: group_norm_backward,
    aten.native_layer_norm.default: layer_norm,
    aten.native_layer_norm_backward.default: layer_norm_backward,
    aten.mm.default: matrix_product,
    aten.bmm.default: matrix_product,
    aten.addmm.default: biased_product,
    aten.sum.dim_IntList: total,
    aten.pixel_unshuffle.default: space_to_channels,  # torch's own imports sympy
    aten.pixel_shuffle.default: channels_to_space,
    **dict.fromkeys(
        (
            *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor),
            *(aten.neg.default, aten.exp.default, aten.silu.default, aten.gelu.default),
            *(aten.silu_backward.default, aten.gelu_backward.default),
            *(aten.rsub.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.clamp.default),
            *(aten.pow.Tensor_Scalar, aten.rsqrt.default, aten.sigmoid.default, aten.tanh.default),
        ),
        pointwise,
    ),
    **dict.fromkeys(
        (aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor, aten.div_.Tensor, aten.add_.Scalar), in_place
    ),
}
