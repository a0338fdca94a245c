"""What was taken of each source and what was bad stands in the log, and a run's position is checked when it goes on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.bad_samples import BadSamples
from ldm.data.shards import ShardWriter
from tests.training.test_datamodule import Recorder, fit, images


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for name, num in (("a", 9), ("b", 5)):
        with ShardWriter(folder / name) as writer:
            for i in range(num):
                out = io.BytesIO()
                Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(out, "PNG")
                writer.write(out.getvalue() if i else b"<html>", "png", f"{name} {i}", {"number": i})
    return folder


def test_sources_keep_their_proportions_and_are_counted_over_a_restart(shards: Path, tmp_path: Path) -> None:
    options = {
        "train_shards": None,
        "val_shards": None,
        "sources": [
            {"shards": str(shards / "a"), "name": "a"},
            {"shards": str(shards / "b"), "weight": 2, "name": "b"},
        ],
        "bad_samples": BadSamples(stop_above=1.0),
    }
    whole, first, second = Recorder(), Recorder(), Recorder()
    data = images(shards, **options)
    fit(whole, data, tmp_path / "whole", steps=20)
    keys = [key for batch in whole.train_batches for key in batch.keys]
    counts = data.counts()
    assert counts["data/from_a"] + counts["data/from_b"] == len(keys) == 120
    assert (
        counts["data/from_a"] == sum(key.startswith("a/") for key in keys) and 25 < counts["data/from_a"] < 55
    )
    assert (
        counts["data/bad_samples"] > 0 and (tmp_path / "whole" / "skipped.jsonl").read_text().count("\n") == 2
    )
    fit(first, images(shards, **options), tmp_path, steps=7).save_checkpoint(tmp_path / "a.ckpt")
    fit(second, images(shards, **options), tmp_path, steps=20, ckpt_path=tmp_path / "a.ckpt")
    assert [key for batch in first.train_batches + second.train_batches for key in batch.keys] == keys


def test_a_run_does_not_go_on_with_other_data_unless_told_to(shards: Path, tmp_path: Path) -> None:
    options = {
        "train_shards": str(shards / "a"),
        "val_shards": None,
        "bad_samples": BadSamples(stop_above=1.0),
    }
    fit(Recorder(), images(shards, **options), tmp_path, steps=2).save_checkpoint(tmp_path / "a.ckpt")
    for changed, message in (
        ({"filters": ["number > 2"]}, "the shards or filters have changed"),
        ({"train_shards": str(shards / "b")}, "the shards or filters have changed"),
        ({"seed": 5}, r"data\.seed has changed"),
    ):
        other = options | changed
        with pytest.raises(ValueError, match=message + r".*data\.accept_change=true"):
            fit(Recorder(), images(shards, **other), tmp_path, steps=4, ckpt_path=tmp_path / "a.ckpt")
        fit(
            Recorder(),
            images(shards, **other, accept_change=True),
            tmp_path,
            steps=4,
            ckpt_path=tmp_path / "a.ckpt",
        )
