"""What operators give on the meta device, beside torch's own answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.planning.kernels import KERNELS, quick

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def last(*shape: int) -> Tensor:
    """(B, C, H, W) with channels last."""
    return meta(*shape).to(memory_format=torch.channels_last)


HALF = torch.bfloat16
X, PICTURE = (2, 5, 8), (2, 8, 4, 4)
IN_PLACE = (aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor, aten.div_.Tensor)
STATISTICS = (meta(2, 5, 1), meta(2, 5, 1))
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    *((op, (meta(*X), meta(*X))) for op in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)),
    *((op, (meta(*X), meta(2, 1, 8))) for op in (aten.add.Tensor, aten.mul.Tensor)),
    (aten.add.Tensor, (meta(2, 1, 8), meta(*X))),
    (aten.mul.Tensor, (meta(*X, dtype=HALF), 0.5)),
    (aten.mul.Tensor, (meta(2, 8, 5).transpose(1, 2), meta(2, 8, 5).transpose(1, 2))),
    (aten.add.Tensor, (last(*PICTURE), last(*PICTURE))),
    *((op, (meta(*X), 2.0)) for op in (aten.rsub.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.pow.Tensor_Scalar)),
    (aten.clamp.default, (meta(*X), 0.0, 1.0)),
    *(
        (op, (meta(*X),))
        for op in (aten.neg.default, aten.exp.default, aten.silu.default, aten.gelu.default, aten.rsqrt.default)
    ),
    *((op, (meta(*X, dtype=HALF),)) for op in (aten.sigmoid.default, aten.tanh.default)),
    *((op, (meta(*X), meta(*X))) for op in (aten.silu_backward.default, aten.gelu_backward.default)),
    *((op, (meta(*X), meta(2, 1, 8))) for op in IN_PLACE),
    (aten.add_.Scalar, (meta(*X), 1.0)),
    (aten.mm.default, (meta(3, 4), meta(4, 5))),
    (aten.bmm.default, (meta(2, 3, 4, dtype=HALF), meta(2, 4, 5, dtype=HALF))),
    (aten.addmm.default, (meta(5), meta(3, 4), meta(4, 5))),
    (aten.pixel_unshuffle.default, (meta(*PICTURE), 2)),
    (aten.pixel_shuffle.default, (meta(*PICTURE), 2)),
    (aten.sum.dim_IntList, (meta(*X), [0, -1])),
    (aten.sum.dim_IntList, (meta(*X), [1], True)),
    (aten.sum.dim_IntList, (meta(*X), None)),
    (aten.native_layer_norm.default, (meta(*X), [8], meta(8), meta(8), 1e-6)),
    (aten.native_layer_norm.default, (meta(*X, dtype=HALF), [8], None, None, 1e-6)),
    (
        aten.native_layer_norm_backward.default,
        (meta(*X), meta(*X), [8], *STATISTICS, meta(8), meta(8), [True, True, False]),
    ),
    (aten.native_group_norm.default, (meta(*PICTURE), meta(8), meta(8), 2, 8, 16, 4, 1e-6)),
    (
        aten.native_group_norm_backward.default,
        (meta(*PICTURE), meta(*PICTURE), meta(2, 4), meta(2, 4), meta(8), 2, 8, 16, 4, [True, True, True]),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("func", "args"), CALLS, ids=lambda x: str(x) if not isinstance(x, tuple) else "")
def test_an_operator_gives_what_torch_says(func: Any, args: tuple[Any, ...]) -> None:
    mine, theirs = quick(func, args, {}), func(*args)
    assert mine is not None
    mine, theirs = ((x,) if isinstance(x, Tensor) else x for x in (mine, theirs))
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
            assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()


def test_every_operator_that_is_known_is_called_above() -> None:
    assert set(KERNELS) == {func for func, _ in CALLS}


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.add.Tensor, (meta(*X), meta(*X, dtype=HALF))),  # gives float32
        (aten.add.Tensor, (meta(*X), meta(2, 4, 8))),  # an error, and torch's to tell
        (aten.mm.default, (meta(3, 4), meta(5, 4))),
        (aten.mul.Tensor, (meta(2, 8, 5).transpose(1, 2), meta(*X))),
        (aten.mul.Tensor, (torch.zeros(3), torch.zeros(3))),  # has data
        (aten.cos.default, (meta(3),)),
    ],
    ids=str,
)
def test_what_is_not_known_for_certain_is_left_to_torch(func: Any, args: tuple[Any, ...]) -> None:
    assert quick(func, args, {}) is None
