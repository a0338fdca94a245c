"""Blocks measured once and replayed: the same sums as when every block runs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ldm.planning.autocast import PRECISIONS, AsOn
from ldm.planning.ledger import Ledger
from ldm.planning.replay import Replay
from ldm.planning.standins_text import PlannedJoined, planned_clip
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


@pytest.mark.parametrize("num_run", [None, 2])
def test_replayed_blocks_of_a_frozen_encoder_are_those_of_running_each(num_run: int | None) -> None:
    with torch.device("meta"):
        encoders = [
            planned_clip(
                width=width,
                heads=2,
                layers=4,
                projection=32,
                vocab_size=100,
                context_length=9,
                pooled_width=0,
                length=9,
                num_run=num_run,
                dtype=torch.float32,
            )
            for width in (32, 48)
        ]
    joined = PlannedJoined(encoders, width=80, pooled_width=0, length=9)
    found = []
    for replay in (True, False):
        ledger = Ledger()
        blocks = Replay(ledger).of([joined]) if replay else nullcontext()
        with AsOn(gpu=True, precision=PRECISIONS["bf16-mixed"]), blocks, ledger, torch.no_grad():
            joined(["a", "b"])
        found.append((ledger.flops, ledger.peak))
    assert found[0] == found[1]
    assert found[0][0] > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointed_blocks_keep_little_and_run_once_more(name: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[name]()
    forward, _, kept, whole, peak, left = sums(network, replay=True, checkpointed=True)
    plain_forward, _, plain_kept, plain_whole, plain_peak, plain_left = sums(network, replay=True)
    assert forward == plain_forward and left == plain_left
    assert kept < 0.6 * plain_kept and peak < plain_peak
    assert 0.8 * forward < whole - plain_whole <= forward
