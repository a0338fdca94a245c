"""Checkpoints that several processes write together, each its share, while the training goes on."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from ldm.training import stopping
from ldm.training.checkpoint import newest_checkpoint, read_checkpoint, read_run
from ldm.training.folders import DamagedCheckpoint, verify, whole_folders, write_checkpoint
from ldm.training.pieces import put_together, read_shares, taken_apart, write_shares
from ldm.training.sharded import Share, Stored, copy_to_host
from ldm.training.together import write_together
from tests.training.reliable import finish, kill_and_resume, last, start
from tests.training.test_saving import assert_same

IMAGES = 96


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, weights spread, saves in the background, nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start(folder, num_images=IMAGES, world_size=2, sharded=True)) == [0, 0]
    return folder


def test_each_process_writes_its_share_and_nobody_the_whole(whole: Path) -> None:
    place = newest_checkpoint(whole / "checkpoints")
    assert place is not None
    files = json.loads((place / "manifest.json").read_text())["files"]
    for group in ("weights", "averages", "optimizer"):
        assert sorted(name for name in files if name.startswith(group)) == [
            f"{group}/shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)
        ]
    shapes = [x.shape for x in last(whole)["state_dict"].values()]
    for x in read_shares(place / "weights").values():
        assert x.shape in shapes
        rows = [size[0] for _, size, _ in x.pieces]
        assert (len(rows) == 2 and sum(rows) == x.shape[0]) or x.name.startswith("state_dict/frozen")


def test_torch_reads_what_was_written(whole: Path) -> None:
    """It is a distributed checkpoint as torch has it, with nothing of ours in the way."""
    saved = last(whole)["state_dict"]
    read = {f"state_dict/{name}": torch.zeros_like(x) for name, x in saved.items()}
    dcp.load(
        read, storage_reader=HuggingFaceStorageReader(str(whole / "checkpoints/last/weights")), no_dist=True
    )
    assert_same({f"state_dict/{name}": x for name, x in saved.items()}, read)


@pytest.mark.slow
def test_spread_or_not_it_is_the_same_training(whole: Path, tmp_path: Path) -> None:
    """Also of one process that goes on with what two have saved, and of two with what one has."""
    assert finish(start(tmp_path / "alone", num_images=IMAGES)) == [0]
    turns = tmp_path / "turns"
    for images, others in (
        (32, {"world_size": 2, "sharded": True}),
        (64, {}),
        (IMAGES, {"world_size": 2, "sharded": True}),
    ):
        assert set(finish(start(turns, num_images=images, **others))) == {0}
    one = last(tmp_path / "alone")
    for folder in (whole, turns):
        other = last(folder)
        assert other["history"] == one["history"] and other["images_seen"] == IMAGES
        for key in ("state_dict", "ema", "optimizer_states"):
            torch.testing.assert_close(other[key], one[key], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [True, False])
def test_killed_while_it_saves_in_the_background(whole: Path, tmp_path: Path, sharded: bool) -> None:
    """Bit for bit the run that was never killed; ``kill_and_resume`` verifies what each kill leaves."""
    reference = whole
    if not sharded:
        reference = tmp_path / "whole"
        assert finish(start(reference, num_images=IMAGES)) == [0]
    kill_and_resume(
        tmp_path / "killed",
        kills=3,
        num_images=IMAGES,
        worlds=[2 if sharded else 1],
        random_=random.Random(1),
        sharded=sharded,
        background=True,
    )
    one, other = last(reference), last(tmp_path / "killed")
    for key in ("state_dict", "ema", "optimizer_states", "history", "global_step"):
        assert_same(one[key], other[key], key)
    assert not list((tmp_path / "killed/checkpoints").glob(".tmp-*"))


@pytest.mark.slow
def test_one_full_disk_is_everybodys_and_training_goes_on(tmp_path: Path) -> None:
    trial: dict[str, Any] = {"num_images": 80, "world_size": 2, "sharded": True, "every": 16}
    assert finish(start(tmp_path, **trial, full_disk=(1, 16, 20), pause=0.1)) == [0, 0]
    found = [path.name for path in whole_folders(tmp_path / "checkpoints")]
    assert found[0] == "images_000000080" and "images_000000016" not in found
    codes = finish(start(tmp_path, **{**trial, "num_images": 10_000}, full_disk=(1, 84, 10**6)))
    assert codes == [stopping.UNSAVED] * 2
    assert newest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints/images_000000080"
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def test_every_cut_and_flipped_bit_is_found(whole: Path, tmp_path: Path) -> None:
    place = newest_checkpoint(whole / "checkpoints")
    assert place is not None
    copy = tmp_path / place.name
    for name in verify(place)["files"]:
        for harm in (lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:], lambda _: None):
            shutil.copytree(place, copy)
            changed = harm((copy / name).read_bytes())
            (copy / name).unlink() if changed is None else (copy / name).write_bytes(changed)
            with pytest.raises(DamagedCheckpoint, match=name.rpartition("/")[2].replace(".", r"\.")):
                read_checkpoint(copy)
            shutil.rmtree(copy)


def test_what_is_sampled_from_is_read_without_the_optimizer(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "x" / "run"
    shutil.copytree(whole, run, symlinks=True)
    (run / "config.yaml").write_text("name: x\n")
    for file in (run / "checkpoints" / "last" / "optimizer").iterdir():
        file.unlink()
    with pytest.raises(DamagedCheckpoint, match="optimizer"):
        read_checkpoint(run / "checkpoints/last")
    content = read_run(run / "checkpoints/last").checkpoint
    assert "optimizer_states" not in content
    assert_same(content["ema"], last(whole)["ema"])


# ------------------------------------------------------------------------------------------------ without processes


def tree() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    moment = torch.randn(5, 3, generator=generator)
    return {
        "state_dict": {"a.b": torch.randn(5, 3, generator=generator), "n": torch.tensor(3)},
        "ema": {"network": {"a.b": torch.randn(5, 3, generator=generator).bfloat16()}},
        "optimizer_states": [{"state": {0: {"exp_avg": moment, "step": torch.tensor(7.0)}},
                              "param_groups": [{"params": [0], "betas": (0.9, 0.95), "lr": 1e-3}]}],
        "images_seen": 8,
        "empty": [],
    }  # fmt: skip


def test_a_process_alone_gets_back_what_it_wrote(tmp_path: Path) -> None:
    place = tmp_path / "images_000000008"
    write_together(tree(), place, about={}, group=None)
    assert_same(read_checkpoint(place), tree())
    write_checkpoint(tree(), tmp_path / "images_000000009", about={})
    assert_same(read_checkpoint(tmp_path / "images_000000009"), tree())


def test_taking_apart_and_putting_together_are_inverse() -> None:
    rest, tensors = taken_apart(tree())
    assert not any(isinstance(x, torch.Tensor) for x in torch.utils._pytree.tree_leaves(rest))
    assert_same(put_together(rest, tensors), tree())


def test_any_part_of_any_pieces(tmp_path: Path) -> None:
    """Rows as processes wrote them, rows as others ask for them."""
    x = torch.randn(7, 2, 3)
    pieces = []
    for first, end in ((0, 3), (3, 6), (6, 7)):
        folder = tmp_path / str(first)
        share = Share(x[first:end], x.shape, (first, 0, 0))
        write_shares({"x": Share.whole(share.held)}, folder, group=None)
        file = read_shares(folder)["x"].pieces[0][2]
        pieces.append(((first, 0, 0), tuple(share.held.shape), file))
    stored = Stored("x", x.shape, pieces)
    assert torch.equal(stored.whole(), x)
    for first in range(7):
        for rows in range(0, 8 - first):
            part = stored.part((first, 1, 0), (rows, 1, 3))
            assert torch.equal(part, x[first : first + rows, 1:2]) and part.dtype == x.dtype


def test_a_copy_in_the_host_stays_as_it_is() -> None:
    given = tree()
    copy = copy_to_host(given)
    given["state_dict"]["a.b"].zero_()
    given["empty"].append(1)
    assert copy["empty"] == [] and float(copy["state_dict"]["a.b"].abs().sum()) > 0
    assert copy["optimizer_states"][0]["param_groups"][0]["betas"] == (0.9, 0.95)
