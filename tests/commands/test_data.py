"""``ldm data``: a report, and two pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.commands.data import data
from ldm.data.buckets import Buckets
from ldm.data.shards import ShardWriter
from tests.data.made import encoded, smooth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with ShardWriter(folder, samples_per_shard=10) as writer:
        for i in range(24):
            height, width = ((32, 32), (24, 40), (40, 24), (10, 60))[i % 4]
            picture = encoded(smooth(width, height, seed=4 if i == 8 else i), "PNG")
            writer.write(
                picture[: 50 if i == 7 else None], "png", "" if i == 5 else f"picture no. {i} [x]", {}
            )
    return folder


def test_the_report_and_its_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buckets = Buckets(multiple_of=8, slack=0.1, max_cut=0.5)
    data(shards=str(folder), out=str(tmp_path), image_size=32, buckets=buckets, num_pictures=9, num_workers=0)
    said = json.loads((tmp_path / "report.json").read_text())
    assert (said["samples"], said["shards"], said["formats"]) == (24, 3, {"png": 24})
    assert said["pictures"]["width"]["most"] == 60 and said["captions"]["samples without"] == 1
    assert said["damaged"]["count"] == 1 and "000000007" in said["damaged"]["first"][0]
    assert said["duplicates"]["same bytes"] == {
        "groups": 1, "samples": 2, "largest": [["00000/000000004", "00000/000000008"]],
    }  # fmt: skip
    assert sum(said["buckets"]["held"].values()) + sum(said["buckets"]["left out"].values()) == 24
    assert said["buckets"]["held"]["32x32"] == 6 and sum(said["buckets"]["left out"].values()) == 6
    printed = capsys.readouterr().out
    for text in (
        "24 samples in 3 shards",
        "without caption: 1",
        "damaged pictures: 1",
        "left out: 6",
        "picture (23)",
    ):
        assert text in printed
    for name in ("contact_sheet.png", "buckets.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 200 and pixels.std() > 10  # something is drawn


def test_it_can_be_done_quickly_and_without_buckets(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data(shards=str(folder), out=str(tmp_path), image_size=32, decode=False, num_pictures=2, num_workers=1)
    said = json.loads((tmp_path / "report.json").read_text())
    assert said["damaged"] is None and said["duplicates"]["look alike"] is None
    assert said["buckets"]["held"] == {"32x32": 24}
    assert "buckets=aspect" in capsys.readouterr().out
