from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ldm.training.callbacks import StopAtImages
from ldm.training.checkpoint import file_hash, foreign_entries, load_weights, newest_checkpoint, read_run
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
    checkpoint = torch.load(trained.checkpoints / "last.ckpt", weights_only=True)
    assert not list(foreign_entries(checkpoint))
    assert {"state_dict", "optimizer_states", "loops", "callbacks", "ema", "images_seen"} <= checkpoint.keys()


def test_a_run_is_read_by_name_by_path_and_by_file(trained: RunFolder) -> None:
    last = trained.checkpoints / "last.ckpt"
    for where in ("tiny", "tiny/a", trained.path, last):
        saved = read_run(where, runs=trained.path.parent.parent)
        assert saved.checkpoint_path.samefile(last) and saved.config.name == "tiny"
        assert saved.checkpoint["images_seen"] == 24
    assert saved.checkpoint_hash == hashlib.sha256(last.read_bytes()).hexdigest() == file_hash(last)


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


def test_newest_is_last_else_by_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert newest_checkpoint(folder) is None
    folder.checkpoints.mkdir()
    for age, name in enumerate(["best.ckpt", "images_000000008.ckpt"]):
        (folder.checkpoints / name).touch()
        os.utime(folder.checkpoints / name, (1000 - age, 1000 - age))
    (folder.checkpoints / ".last.ckpt.unfinished").touch()
    assert newest_checkpoint(folder) == folder.checkpoints / "best.ckpt"
    (folder.checkpoints / "last.ckpt").touch()
    assert newest_checkpoint(folder) == folder.checkpoints / "last.ckpt"


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
