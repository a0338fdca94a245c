"""Walks over pictures: one process and several see the same, and an interrupted walk goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ldm.evaluation.features import Features
from ldm.evaluation.looking import WHOLE, add_up, forget, look
from ldm.evaluation.together import Together
from tests.processes import free_port


@dataclass
class Numbered:
    """Picture i is all i; of batches that are asked for a list is kept."""

    num: int = 11
    batch: int = 3
    fail_at: int | None = None
    asked: list[int] = field(default_factory=list)
    title: str = "numbered"
    content_hash: str = "0"

    @property
    def sizes(self) -> list[int]:
        return [min(self.batch, self.num - first) for first in range(0, self.num, self.batch)]

    @property
    def keys(self) -> list[str]:
        return [str(i) for i in range(self.num)]

    def batches(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        for number in numbers:
            if number == self.fail_at:
                raise KeyboardInterrupt
            self.asked.append(number)
            first = number * self.batch
            values = torch.arange(first, first + self.sizes[number], dtype=torch.uint8)
            yield values.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


MEAN = Features(
    "mean", "none", lambda x: torch.stack([x.float().mean((1, 2, 3)), x[:, 0, 0, 0] ** 2.0], dim=1)
)
RAW = Features("raw", "none", lambda x: x)
BOTH = {"mean": MEAN, "raw": RAW}


def test_every_network_sees_every_picture_once_and_in_order() -> None:
    pictures = Numbered()
    told: list[tuple[int, int]] = []
    found = look(pictures, BOTH, together=Together(), on_batch=lambda *done: told.append(done))
    assert found["mean"][:, 0].tolist() == list(range(11))
    assert found["raw"].dtype == torch.uint8 and found["raw"].shape == (11, 3, 2, 2)
    assert pictures.asked == [0, 1, 2, 3] and told == [(3, 11), (6, 11), (9, 11), (11, 11)]


def test_an_interrupted_walk_goes_on_where_it_was(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        look(Numbered(fail_at=2), BOTH, together=Together(), keep=keep)
    again = Numbered()
    told: list[tuple[int, int]] = []
    found = look(again, BOTH, together=Together(), keep=keep, on_batch=lambda *done: told.append(done))
    assert again.asked == [2, 3] and told == [(9, 11), (11, 11)]
    alone = look(Numbered(), BOTH, together=Together())
    assert all(torch.equal(found[name], alone[name]) for name in BOTH)
    assert [file.name for file in keep.iterdir()] == [WHOLE]
    third = Numbered()
    assert torch.equal(look(third, {"mean": MEAN}, together=Together(), keep=keep)["mean"], alone["mean"])
    assert not third.asked
    forget(keep)
    assert not keep.exists()


def test_what_another_network_left_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    look(Numbered(), {"mean": MEAN}, together=Together(), keep=tmp_path)
    pictures = Numbered()
    look(pictures, BOTH, together=Together(), keep=tmp_path)
    assert pictures.asked == [0, 1, 2, 3]


def one_of_several(rank: int, size: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    together = Together(rank, size)
    kept = Path(folder, "kept")  # where a former walk of one process has left two of four batches
    found = [look(Numbered(num), BOTH, together=together) for num in (1, 2, 11)]
    found.append(look(Numbered(), BOTH, together=together, keep=kept))
    sums = [add_up(Numbered(num), MEAN, together=together).packed() for num in (1, 11)]
    torch.save((found, sums), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        look(Numbered(fail_at=2), BOTH, together=Together(), keep=tmp_path / "kept")
    torch.multiprocessing.spawn(one_of_several, (2, free_port(), str(tmp_path)), nprocs=2)
    alone = [look(Numbered(num), BOTH, together=Together()) for num in (1, 2, 11, 11)]
    sums = [add_up(Numbered(num), MEAN, together=Together()).packed() for num in (1, 11)]
    for rank in range(2):
        found, added = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, alone, rtol=0, atol=0)
        torch.testing.assert_close(added, sums, rtol=1e-12, atol=0)
