"""Mixed precision on the meta device, which torch.autocast does not know: which precision each operation runs in.

The lists are those of torch's documentation ("Autocast Op Reference" in torch.amp), as far as networks use them. CPUs
and GPUs differ where it matters for memory: on a GPU norms give float32, on a CPU they keep their input's precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

LOWER = frozenset(
    [
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "matmul",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "addbmm",
        "einsum",
        "scaled_dot_product_attention",
    ]
)
FLOAT32_ON_GPUS = frozenset(
    [
        "layer_norm",
        "group_norm",
        "rms_norm",
        "softmax",
        "log_softmax",
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "pow",
        "rsqrt",
        "reciprocal",
        "sum",
        "prod",
        "cumsum",
        "norm",
        "normalize",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "cross_entropy",
        "softplus",
        "cosine_similarity",
    ]
)
FLOAT32_ON_CPUS = frozenset(["mse_loss", "l1_loss", "smooth_l1_loss", "cosine_similarity"])


@dataclass(frozen=True)
class Precision:
    """What a trainer's ``precision`` means for the numbers that are kept and computed with.

    Attributes:
        weights: Bytes of each trained number, its gradient, and each of the optimizer's.
        compute: What matrix products run in.
        mixed: Whether ``compute`` is autocast's doing, with weights in float32.
    """

    weights: int
    compute: torch.dtype
    mixed: bool


PRECISIONS = {
    "32-true": Precision(4, torch.float32, False),
    "32": Precision(4, torch.float32, False),
    "bf16-mixed": Precision(4, torch.bfloat16, True),
    "16-mixed": Precision(4, torch.float16, True),
    "bf16-true": Precision(2, torch.bfloat16, True),
    "16-true": Precision(2, torch.float16, True),
}


class AsOn(TorchFunctionMode):
    """Operations in the precision, and by the kernels, that a device would use; for tensors on the meta device.

    Args:
        gpu: Whether the device is a GPU.
        precision: Of the trainer.
    """

    def __init__(self, *, gpu: bool, precision: Precision) -> None:
        super().__init__()
        self.gpu = gpu
        self.dtype = precision.compute if precision.mixed else None
        self.float32 = FLOAT32_ON_GPUS if gpu else FLOAT32_ON_CPUS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if self.dtype is not None and name in LOWER:
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        elif self.dtype is not None and name in self.float32:
            args, kwargs = tree_map(_in_float32, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return fused_attention(*args, **kwargs)
        if func is F.rms_norm and self.gpu:  # fused there; keeps and computes what a layer norm does
            return fused_rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _lowered(self, x: Any) -> Any:
        return x.to(self.dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x


def _in_float32(x: Any) -> Any:
    low = isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if low else x


def fused_rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """A layer norm, which keeps and computes the same but for a number for each row."""
    return F.layer_norm(input, normalized_shape, weight, None, eps or 1e-6)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attention that keeps queries, keys, values, its result and a sum for each query, as all fused kernels do.

    On the meta device torch would choose the one that writes down all scores.
    """
    if attn_mask is not None:
        # as F.scaled_dot_product_attention does it
        attn_mask = attn_mask.to(q.dtype) if attn_mask.dtype == torch.bool else attn_mask
        attn_mask = attn_mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=attn_mask)[0]
