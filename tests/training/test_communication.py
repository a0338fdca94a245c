"""What processes send each other, by arithmetic; against what they really send: benchmarks/communication.py."""

from __future__ import annotations

import pytest

from ldm.training.communication import Cluster, data_parallel, fully_sharded

P = 1e9  # parameters
NODE = Cluster(gpus=8)


def test_sharding_sends_half_as_much_again_as_an_all_reduce() -> None:
    """ZeRO (1910.02054), section 7: three volumes of the parameters against two."""
    assert fully_sharded(P, NODE).sent == pytest.approx(1.5 * data_parallel(P, NODE).sent)
    assert fully_sharded(P, NODE, reshard=False).sent == pytest.approx(data_parallel(P, NODE).sent)
    assert fully_sharded(P, NODE, weight_bytes=2).sent == pytest.approx(data_parallel(P, NODE).sent)


def test_one_process_sends_nothing() -> None:
    alone = Cluster(gpus=1)
    assert data_parallel(P, alone).sent == fully_sharded(P, alone).sent == 0


def test_replicas_keep_gathers_inside_a_machine() -> None:
    many = Cluster(gpus=64)
    flat, grouped = fully_sharded(P, many), fully_sharded(P, many, replicas=8)
    assert grouped.held == pytest.approx(8 * flat.held)
    # Inside: as on one machine. Between: an all-reduce of an eighth.
    assert grouped.sent == pytest.approx(fully_sharded(P, NODE).sent + 2 * 7 / 8 * 4 * P / 8)


def test_waiting_for_messages_grows_with_the_ring_and_not_with_the_tree() -> None:
    """The smaller a network and the more machines, the more a step waits for messages instead of bytes."""
    few, many = Cluster(gpus=64), Cluster(gpus=512)
    small = 1e8
    assert fully_sharded(small, many).seconds > 4 * fully_sharded(small, few).seconds
    assert data_parallel(small, many).seconds < 2 * data_parallel(small, few).seconds
    assert fully_sharded(small, many, replicas=64).seconds < fully_sharded(small, many).seconds / 4


def test_what_is_held_decides_what_fits() -> None:
    assert data_parallel(1e9, NODE).fits and not data_parallel(4e9, NODE).fits
    assert fully_sharded(4e9, NODE).fits
