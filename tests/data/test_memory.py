"""Memory that is used again, and never while somebody looks at it."""

from __future__ import annotations

import pickle

import pytest
import torch

from ldm.data.memory import Memory


def test_a_block_is_used_again_once_nobody_holds_it() -> None:
    memory = Memory()
    first = memory.empty(2, 3, dtype=torch.float32)
    assert first.shape == (2, 3) and first.dtype == torch.float32
    where = first.data_ptr()
    del first
    assert memory.empty(3, 2, dtype=torch.float32).data_ptr() == where


@pytest.mark.parametrize(
    "kept",
    [
        lambda x: x,
        lambda x: x[1:],
        lambda x: x.T,
        lambda x: x.detach(),
        lambda x: x.numpy(),
        lambda x: x.view(torch.uint8),
        lambda x: torch.nn.Parameter(x),
        lambda x: (x * torch.ones(4, requires_grad=True)).grad_fn,  # autograd keeps x for the backward pass
    ],
)
def test_what_somebody_holds_is_never_written_over(kept: object) -> None:
    memory = Memory()
    x = memory.empty(4, 4, dtype=torch.float32).fill_(7)
    where = x.data_ptr()
    held = kept(x)  # type: ignore[operator]
    del x
    others = [memory.empty(4, 4, dtype=torch.float32).fill_(i) for i in range(9)]  # more than are kept
    assert where not in [other.data_ptr() for other in others]
    assert [float(other.mean()) for other in others] == list(range(9))
    del held
    assert memory.empty(4, 4, dtype=torch.float32).data_ptr() == where


def test_sizes_may_change_and_blocks_stay_few() -> None:
    memory = Memory(most=2)
    for side in (1, 8, 64, 8, 512, 3):
        x = memory.empty(side, side, dtype=torch.uint8)
        assert x.shape == (side, side)
        del x
        assert len(memory._blocks) <= 2


def test_nothing_of_it_travels_to_another_process() -> None:
    memory = Memory(most=3)
    memory.empty(1000, dtype=torch.float32)
    copied = pickle.loads(pickle.dumps(memory))
    assert copied.most == 3 and copied._blocks == []
