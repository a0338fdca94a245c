"""Pictures made by several processes, and what is said when processes cannot find each other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from ldm.training.ranks import Ranks, check_launch, check_master, launched, make_together
from tests.processes import become, free_port

CPU = torch.device("cpu")


def rows_and_their_neighbours(rows: Sequence[int]) -> Tensor:
    """Row i is told its own number and the first one of its batch, so that other batches would show."""
    return torch.tensor([[row, rows[0]] for row in rows], dtype=torch.uint8)


def one_of_several(rank: int, size: int, port: int, folder: str) -> None:
    become(rank, world_size=size, port=port)
    with launched("cpu") as (ranks, place):
        made = [
            make_together(rows_and_their_neighbours, num, batch_size=3, ranks=ranks, device=place)
            for num in (1, 3, 7, 18, 19)
        ]
    torch.save(made, Path(folder, f"{rank}.pt"))


def test_several_processes_make_the_very_batches_of_one(tmp_path: Path) -> None:
    alone = [
        make_together(rows_and_their_neighbours, num, batch_size=3, ranks=Ranks(), device=CPU)
        for num in (1, 3, 7, 18, 19)
    ]
    assert [len(rows) for rows in alone] == [1, 3, 7, 18, 19]
    torch.multiprocessing.spawn(one_of_several, (3, free_port(), str(tmp_path)), nprocs=3)
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=0, atol=0)


def test_without_a_launcher_there_is_one_process() -> None:
    with launched("cpu") as (ranks, place):
        assert ranks == Ranks(rank=0, size=1) and ranks.is_main and place == CPU


def test_a_name_that_is_not_known_is_said_at_once() -> None:
    for is_main in (True, False):
        with pytest.raises(ValueError, match=r"MASTER_ADDR=no-such-host\.invalid .*not known here"):
            check_master("no-such-host.invalid", 29500, is_main=is_main)


def test_the_first_process_knows_its_own_machine() -> None:
    check_master("127.0.0.1", free_port(), is_main=True)
    with pytest.raises(ValueError, match="no address of the machine"):
        check_master("192.0.2.1", 29500, is_main=True)  # reserved for documentation (RFC 5737)


def test_a_machine_that_does_not_answer_is_said_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(*_: object, timeout: float) -> None:
        time.sleep(min(timeout, 0.05))
        raise TimeoutError("timed out")

    check_master(
        "127.0.0.1", free_port(), is_main=False
    )  # refuses: it is there, and its process is still starting
    monkeypatch.setattr("ldm.training.ranks.socket.create_connection", silence)
    began = time.monotonic()
    with pytest.raises(ValueError, match="nothing answered"):
        check_master("127.0.0.1", 29500, is_main=False, patience=0.3)
    assert time.monotonic() - began < 3


def test_another_number_of_processes_than_wanted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "4",
        "RANK": "0",
        "LOCAL_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun started 4 processes, but the trainer wants 2"):
        check_launch(processes=2, num_nodes=1)


def test_several_machines_without_a_launcher_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"num_nodes=2 needs all machines .* set MASTER_ADDR, MASTER_PORT, NODE_RANK"
    ):
        check_launch(processes=2, num_nodes=2)
