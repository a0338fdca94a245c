"""Blocks measured once and replayed: the same sums as when every block runs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ldm.planning.autocast import PRECISIONS, AsOn
from ldm.planning.ledger import Ledger
from ldm.planning.replay import Replay
from tests.planning.networks import NETWORKS, inputs


def sums(network: nn.Module, *, replay: bool, checkpointed: bool = False, gpu: bool = True) -> list[int]:
    """Operations of a step and bytes at its stations."""
    network.zero_grad(set_to_none=True)
    ledger = Ledger()
    blocks = Replay(ledger, checkpointed=checkpointed).of([network]) if replay else nullcontext()
    x, t, cond = inputs(4, "meta")
    with AsOn(gpu=gpu, precision=PRECISIONS["bf16-mixed"]), blocks, ledger:
        loss = network(x, t, cond).float().square().mean()
        found = [ledger.flops, ledger.peak, ledger.live]
        ledger.peak = ledger.live
        loss.backward()
    return [*found, ledger.flops, ledger.peak, ledger.live]


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_replayed_sums_are_those_of_running_every_block(name: str, gpu: bool) -> None:
    with torch.device("meta"):
        network = NETWORKS[name]()
    played, run = sums(network, replay=True, gpu=gpu), sums(network, replay=False, gpu=gpu)
    assert [played[0], played[3]] == [run[0], run[3]]
    assert played == pytest.approx(run, rel=0.02)


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointed_blocks_keep_little_and_run_once_more(name: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[name]()
    forward, _, kept, whole, peak, left = sums(network, replay=True, checkpointed=True)
    plain_forward, _, plain_kept, plain_whole, plain_peak, plain_left = sums(network, replay=True)
    assert forward == plain_forward and left == plain_left
    assert kept < 0.6 * plain_kept and peak < plain_peak
    assert 0.8 * forward < whole - plain_whole <= forward
