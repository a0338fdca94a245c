from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ldm.commands.shapes import shapes
from ldm.data.shapes import Scene, Thing
from ldm.data.shapes_captions import captions
from ldm.data.shapes_render import render

SMALL = {"num_train": 25, "num_val": 5, "samples_per_shard": 10, "num_workers": 1}


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_shards_hold_pictures_captions_and_the_exact_scene(tmp_path):
    shapes(out=str(tmp_path), seed=0, **SMALL)
    assert [path.name for path in sorted((tmp_path / "train").glob("*"))] == [
        f"0000{i}.tar" for i in range(3)
    ]
    files = members(tmp_path / "train" / "00002.tar")
    assert len(files) == 3 * 5  # the last shard holds what is left
    for key in {name.split(".")[0] for name in files}:
        meta = json.loads(files[f"{key}.json"])
        things = tuple(Thing(**thing) for thing in meta["scene"]["things"])
        scene = Scene(things, meta["scene"]["relation"])
        assert not scene.is_held_out
        assert meta["captions"] == captions(scene)
        assert files[f"{key}.txt"].decode() in meta["captions"]
        assert (np.array(Image.open(io.BytesIO(files[f"{key}.png"]))) == render(scene)).all()


def test_training_and_validation_differ_and_the_number_changes_nothing(tmp_path):
    shapes(out=str(tmp_path / "a"), seed=0, **SMALL)
    shapes(out=str(tmp_path / "b"), seed=0, **{**SMALL, "num_train": 12, "num_workers": 2})
    first = members(tmp_path / "a" / "train" / "00000.tar")
    assert first == members(tmp_path / "b" / "train" / "00000.tar")
    assert first["000000000.png"] != members(tmp_path / "a" / "val" / "00000.tar")["000000000.png"]


def test_an_interrupted_call_is_finished_and_a_finished_one_left_alone(tmp_path):
    shapes(out=str(tmp_path), seed=0, **SMALL)
    whole = members(tmp_path / "train" / "00001.tar")
    (tmp_path / "train" / "00001.tar").unlink()
    kept = (tmp_path / "train" / "00000.tar").stat().st_mtime_ns
    shapes(out=str(tmp_path), seed=0, **SMALL)
    assert members(tmp_path / "train" / "00001.tar") == whole
    assert (tmp_path / "train" / "00000.tar").stat().st_mtime_ns == kept


def test_other_arguments_are_not_mixed_into_the_same_folder(tmp_path):
    shapes(out=str(tmp_path), seed=0, **SMALL)
    with pytest.raises(FileExistsError, match="seed=0, not 1"):
        shapes(out=str(tmp_path), seed=1, **SMALL)


def test_training_can_show_hard_kinds_more_often_and_validation_stays(tmp_path):
    only_relations = {"single": 0.0, "count": 0.0, "relation": 1.0}
    shapes(out=str(tmp_path / "a"), seed=0, train_shares=only_relations, **SMALL)
    shapes(out=str(tmp_path / "b"), seed=0, **SMALL)

    def kinds(split, name):
        shards = sorted((tmp_path / name / split).glob("*.tar"))
        files = [file for shard in shards for file in sorted(members(shard).items())]
        return [json.loads(data)["kind"] for member, data in files if member.endswith(".json")]

    assert set(kinds("train", "a")) == {"relation"} and set(kinds("train", "b")) > {"relation"}
    assert kinds("val", "a") == kinds("val", "b")


@pytest.mark.parametrize(
    "shares",
    [
        {"single": 1.0},
        {"single": 0.5, "count": 0.5, "relation": 0.5},
        {"single": -1.0, "count": 1.0, "relation": 1.0},
    ],
)
def test_shares_that_are_none_are_refused(tmp_path, shares):
    with pytest.raises(ValueError, match="train_shares="):
        shapes(out=str(tmp_path), seed=0, train_shares=shares, **SMALL)
