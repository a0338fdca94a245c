"""A ledger against sums that can be done by hand, and against torch's own counter of operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm.planning.ledger import Ledger
from tests.planning.networks import NETWORKS, inputs


def test_memory_lives_from_the_operation_that_made_it_to_the_last_who_holds_it() -> None:
    x = torch.empty(256, device="meta")
    with Ledger() as ledger:
        a = x * 2
        b = a + 1
        view = b[:10]
        assert ledger.live == 2 * 1024
        del a, b
        assert ledger.live == 1024  # the view holds all of b
        x.mul_(3)
        assert ledger.live == 1024  # in place
        del view
    assert ledger.live == 0 and ledger.peak == 2 * 1024


def test_what_autograd_keeps_is_alive() -> None:
    x = torch.empty(8, 256, device="meta", requires_grad=True)
    with Ledger() as ledger:
        y = x.exp()  # keeps its result
        z = y.sin()  # keeps its input
        del y
        assert ledger.live == 2 * 8192
        z.sum().backward()
        del z
    assert x.grad is not None and ledger.live == 8192


@pytest.mark.parametrize("name", NETWORKS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    network = NETWORKS[name]()
    x, t, cond = inputs(2, "cpu")
    # The kernel that writes down all scores, which both counters know.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            network(x, t, cond).square().mean().backward()
        with Ledger() as ledger:
            network(x, t, cond).square().mean().backward()
    assert ledger.flops == counter.get_total_flops() > 0
