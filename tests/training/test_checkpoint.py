from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ldm.training.callbacks import StopAtImages
from ldm.training.checkpoint import (
    checkpoint_hash,
    foreign_entries,
    list_checkpoints,
    load_weights,
    newest_checkpoint,
    read_checkpoint,
    read_run,
)
from ldm.training.ema import EMA
from ldm.training.run import RunFolder, start_run
from ldm.training.saving import Checkpoints
from tests.training.tiny import TinyModule, fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    runs = tmp_path_factory.mktemp("runs")
    folder = start_run(runs / "tiny" / "a", config={"name": "tiny"}, command=["train.py"])
    fit(folder.path, [EMA(decay=0.9), StopAtImages(num_images=24), Checkpoints(every_num_images=8)])
    return folder


def test_it_is_plain_data_and_loads_with_weights_only(trained: RunFolder) -> None:
    checkpoint = read_checkpoint(trained.checkpoints / "last")
    assert not list(foreign_entries(checkpoint))
    assert {"state_dict", "optimizer_states", "loops", "callbacks", "ema", "images_seen"} <= checkpoint.keys()


def test_a_run_is_read_by_name_by_path_and_by_checkpoint(trained: RunFolder) -> None:
    newest = trained.checkpoints / "images_000000024"
    for where in ("tiny", "tiny/a", trained.path, trained.checkpoints / "last", newest):
        saved = read_run(where, runs=trained.path.parent.parent)
        assert saved.checkpoint_path.samefile(newest) and saved.config.name == "tiny"
        assert saved.checkpoint["images_seen"] == 24 and "optimizer_states" not in saved.checkpoint
    assert (
        saved.checkpoint_hash
        == checkpoint_hash(newest)
        != checkpoint_hash(newest.with_name("images_000000016"))
    )
    assert read_run(newest.with_name("images_000000016")).checkpoint["images_seen"] == 16


def test_files_of_earlier_versions_are_read(trained: RunFolder, tmp_path: Path) -> None:
    old = start_run(tmp_path / "tiny" / "b", config={"name": "tiny"}, command=["train.py"])
    old.checkpoints.mkdir()
    torch.save(read_checkpoint(trained.checkpoints / "last"), old.checkpoints / "last.ckpt")
    saved = read_run(old.path)
    assert saved.checkpoint_path == old.checkpoints / "last.ckpt" and saved.checkpoint["images_seen"] == 24
    assert saved.checkpoint_hash == hashlib.sha256(saved.checkpoint_path.read_bytes()).hexdigest()
    callbacks = [EMA(decay=0.9), StopAtImages(num_images=32), Checkpoints(every_num_images=8)]
    fit(old.path, callbacks, resume=old.checkpoints)
    assert newest_checkpoint(old.checkpoints) == old.checkpoints / "images_000000032"


def test_averaged_weights_are_loaded_unless_the_plain_ones_are_asked_for(trained: RunFolder) -> None:
    checkpoint = read_run(trained.path).checkpoint
    module = TinyModule()
    assert load_weights(module, checkpoint) == "ema"
    assert torch.equal(module.network[0].weight, checkpoint["ema"]["network"]["0.weight"])
    assert load_weights(module, checkpoint, weights="online") == "online"
    assert torch.equal(module.network[0].weight, checkpoint["state_dict"]["network.0.weight"])
    assert module.images_seen == 24
    assert load_weights(module, {k: v for k, v in checkpoint.items() if k != "ema"}) == "online"
    with pytest.raises(ValueError, match="weights='best'"):
        load_weights(module, checkpoint, weights="best")
    with pytest.raises(ValueError, match="own config"):
        load_weights(module, {**checkpoint, "ema": {"other": {}}})


def test_folders_are_newer_than_files_and_last_than_the_others(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "no") == [] and newest_checkpoint(tmp_path / "no") is None
    for age, name in enumerate(
        ["best.ckpt", "images_000000008.ckpt", "last.ckpt", ".last.ckpt.unfinished.ckpt"]
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    for name in (
        "images_000000016",
        "images_1000000000",
        ".tmp-images_000000032",
        "damaged-images_000000032",
    ):
        (tmp_path / name).mkdir()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == [
        "images_1000000000",
        "images_000000016",
        "last.ckpt",
        "best.ckpt",
        "images_000000008.ckpt",
    ]


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    start_run(tmp_path / "a", config={}, command=["train.py"])
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        read_run(tmp_path / "a")


def test_foreign_entries_are_named() -> None:
    good = {
        "a": [1, 2.0, "x", None, (True, b"y")],
        "b": OrderedDict(w=torch.zeros(1)),
        3: torch.nn.Parameter(torch.zeros(1)),
    }
    assert not list(foreign_entries(good))
    bad = {"a": [0, {"when": timedelta(1)}], "b": Path("x")}
    found = list(foreign_entries(bad))
    assert found[0] == "checkpoint['a'][1]['when'] is a datetime.timedelta" and "PosixPath" in found[1]
