"""What a training writes to disk: amounts against sums by hand, and the room for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.commands import checkup_disk, launch
from ldm.commands.checkup_disk import disk, reckoned
from ldm.commands.disk import Amount
from ldm.commands.findings import FAIL, OK, WARN, Finding
from ldm.commands.shapes import shapes
from ldm.data.shard_index import load_headers
from ldm.data.shards import find_shards

NUM_PICTURES = 8
TRAINING = ["experiment=shapes_dit", "trainer=cpu", "data.val_shards=null", "num_images=1000000"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    out = str(folder / "data/shapes")
    shapes(out=out, num_train=NUM_PICTURES, num_val=0, seed=0, samples_per_shard=4, num_workers=1)
    load_headers(find_shards(f"{out}/train"))  # writes the indices
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def amounts(*overrides: str) -> dict[str, Amount]:
    return {one.what: one for one in reckoned(launch.checked([*TRAINING, *overrides]))}


def findings(*overrides: str) -> dict[str, Finding]:
    return {one.what: one for one in disk(launch.checked([*TRAINING, *overrides]))}


def test_latents_and_text_are_counted_by_the_pictures_that_are_there(place: Path) -> None:
    found = amounts("text_encoder=clip_vit_l", "data.text_folder=data/text")
    shards = list((place / "data/shapes/train").glob("*.tar"))
    assert found["shards, as they are"].size == sum(shard.stat().st_size for shard in shards)
    # mean and log variance of 4 x 8 x 8 latents in float16; 77 tokens of width 768, a byte of mask each
    assert found["latents"].size == NUM_PICTURES * 2 * (4 * 8 * 8) * 2
    text = found["text, 1 captions a picture"]
    assert text.size == NUM_PICTURES * (77 * 768 * 2 + 77)
    assert (found["latents"].place, text.place) == (Path("data/latents"), Path("data/text"))


def test_shards_without_an_index_make_caches_unknown(tmp_path: Path, place: Path) -> None:
    for shard in (place / "data/shapes/train").glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    found = findings(f"data.train_shards={tmp_path}")
    assert found["disk: latents"].level == WARN and found["disk: latents"].remedy == "ldm index"


def test_checkpoints_averages_and_pictures_are_counted_as_they_are_kept() -> None:
    plain = amounts(
        "callbacks.checkpoints.keep_every_num_images=250000", "callbacks.samples.every_num_images=100000"
    )
    trained = 0
    for one in plain.values():
        if one.what == "7 checkpoints":  # four for good, the two newest, the best
            trained = (one.size or 0) // 7 // 16  # float32 weights, one average, two moments
    assert trained > 1e6
    assert plain["samples"].size == 10 * 8 * 64 * 64 * 3  # ten grids of eight prompts
    power = amounts(
        "callbacks/ema=power", "~callbacks.ema.decay", "callbacks.ema.snapshot_every_num_images=100000"
    )
    # two widths in float16, and one snapshot at the end
    assert power["11 snapshots of averages"].size == 11 * 2 * trained * 2
    host = amounts("callbacks/ema=power", "~callbacks.ema.decay", "callbacks.ema.on_cpu=true")
    assert host["3 checkpoints"].size == 3 * trained * 4 * 5  # averages are saved wherever they lie


def test_logs_grow_with_the_steps() -> None:
    seldom, often = amounts("trainer.log_every_n_steps=100"), amounts("trainer.log_every_n_steps=1")
    assert 0 < (seldom["logs"].size or 0) < (often["logs"].size or 0) / 50


def test_each_disk_is_compared_with_all_that_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings()
    assert found["disk"].level == OK
    assert {"disk: latents", "disk: samples", "disk: logs", "disk: 3 checkpoints"} <= set(found)
    usage = type(
        "Usage", (), {"free": sum(one.size or 0 for one in reckoned(launch.checked(TRAINING)) if one.place)}
    )
    monkeypatch.setattr(checkup_disk.shutil, "disk_usage", lambda _: usage)
    assert findings()["disk"].level == OK
    usage.free -= 1
    assert findings()["disk"].level == FAIL


def test_what_is_cached_already_is_not_counted_again(place: Path) -> None:
    cached = place / "data/latents/abc/part.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(bytes(1000))
    try:
        assert "there already" in findings()["disk: latents"].found
    finally:
        cached.unlink()
