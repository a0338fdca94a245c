"""``ldm evaluate`` in two processes finds what one finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.evaluation.distribution import Frechet, KernelDistance, Manifold
from ldm.evaluation.features import OwnEncoder, Pixels
from ldm.evaluation.reconstruction import Reconstruction
from ldm.evaluation.scores import read_scores
from tests.commands.scored import make_run, make_shards, noise
from tests.processes import become, free_port


def metrics() -> dict[str, object]:
    given = {"features": Pixels(size=4), "num_samples": 37}  # the last batch of 8 is short
    return {
        "frechet": Frechet(**given),
        "own": Frechet(features=OwnEncoder(), num_samples=20),
        "kernel": KernelDistance(**given),
        "manifold": Manifold(**given),
        "reconstruction": Reconstruction(),
    }


def evaluate(folder: Path, shards: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        make_run(folder, shards, noise, patch).evaluate(
            metrics(), batch_size=8, references=str(folder / "kept"), num_seeds=2
        )


def one_of_two(rank: int, port: int, folder: str, shards: str) -> None:
    become(rank, world_size=2, port=port)
    evaluate(Path(folder), Path(shards))


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shapes")
    evaluate(tmp_path / "alone", shards)
    torch.multiprocessing.spawn(one_of_two, (free_port(), str(tmp_path / "together"), str(shards)), nprocs=2)
    alone, together = (
        {one.metric: one for one in read_scores(tmp_path / name / "runs" / "shapes_dit" / "one")}
        for name in ("alone", "together")
    )
    assert alone.keys() == together.keys() and len(alone) == 9
    for name, score in alone.items():
        assert together[name].protocol.hash == score.protocol.hash
        assert together[name].value == pytest.approx(score.value, rel=1e-9, abs=1e-12)
        assert together[name].per_seed == pytest.approx(score.per_seed, rel=1e-9, abs=1e-12)
