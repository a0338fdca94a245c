from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from ldm.commands import sample as sample_command
from ldm.sampling.from_run import GuidanceFromRun
from ldm.sampling.guidance import ClassifierFree, Unguided
from ldm.sampling.recipe import read_recipe
from ldm.sampling.samplers import DDIM
from ldm.training.checkpoint import file_hash
from ldm.training.run import RunFolder
from tests.commands.sampling import make_run, no_network, pictures, sample


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


def test_pictures_of_every_prompt_and_seed_with_recipes_and_one_grid(run: Path) -> None:
    sample(run, prompts=["a red circle", "two rings"], num_images=3, num_steps=2)
    files = pictures(run / "pictures")
    assert len(files) == 6
    assert len(list((run / "pictures").glob("grid-*.png"))) == 1
    recipes = [read_recipe(file) for file in files]
    assert {(recipe.prompt, recipe.seed) for recipe in recipes} == {
        (prompt, seed) for prompt in ("a red circle", "two rings") for seed in (0, 1, 2)
    }
    for recipe in recipes:
        assert recipe.num_steps == 2
        assert recipe.checkpoint_hash == file_hash(run / "checkpoints" / "last.ckpt")
        assert (recipe.weights, recipe.latent_size, recipe.batch_size) == ("ema", (4, 6), 4)
        assert recipe.guidance["scale"] == 3.0
    with Image.open(files[0]) as picture:
        assert picture.size == (12, 8)


def test_every_picture_can_be_made_again_bit_for_bit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(
        run,
        prompts=["a red circle", "two rings"],
        seeds=[5, 6, 7],
        sampler=DDIM(eta=1.0),
        guidance=ClassifierFree(scale=2.0),
        image_size=[8, 16],
        original_size=[100, 200],
        crop=[3, 4],
        out=str(tmp_path / "first"),
    )
    for file in pictures(tmp_path / "first"):
        sample(None, from_image=str(file), device="auto", out=str(tmp_path / "second"))
        (made,) = pictures(tmp_path / "second")
        with Image.open(file) as one, Image.open(made) as other:
            assert (np.array(one) == np.array(other)).all()
        assert read_recipe(made) == read_recipe(file)
        assert read_recipe(made).request().original_size == (100, 200)
        assert read_recipe(made).request().crop == (3, 4)
        made.unlink()
    assert capsys.readouterr().out.count("bit for bit") == 6


def test_the_same_request_twice_writes_the_same_files(run: Path) -> None:
    for _ in range(2):
        sample(run, prompts=["a red circle"])
    assert len(pictures(run / "pictures")) == 1
    sample(run, prompts=["a red circle"], guidance=GuidanceFromRun(scale=5.0))
    assert len(pictures(run / "pictures")) == 2  # another recipe overwrites nothing


def test_a_checkpoint_that_changed_is_refused_and_one_that_was_renamed_is_found(run: Path) -> None:
    sample(run, prompts=["a red circle"])
    (file,) = pictures(run / "pictures")
    last = run / "checkpoints" / "last.ckpt"
    last.rename(last.with_name("step-10.ckpt"))
    last.write_bytes(b"other weights")
    sample(None, from_image=str(file))
    last.with_name("step-10.ckpt").unlink()
    with pytest.raises(ValueError, match=r"none looked at has this hash .*last\.ckpt.*run=<checkpoint>"):
        sample(None, from_image=str(file))


def test_another_autoencoder_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(run, prompts=["a red circle"])
    (file,) = pictures(run / "pictures")
    monkeypatch.setattr("tests.sampling.tiny.Codec.content_hash", "another")
    with pytest.raises(ValueError, match="decoded by autoencoder"):
        sample(None, from_image=str(file))


def test_a_spoiled_picture_is_told_from_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample(run, prompts=["a red circle"])
    (file,) = pictures(run / "pictures")
    with Image.open(file) as picture:
        text, pixels = picture.text["ldm"], np.array(picture)  # type: ignore[attr-defined]
    pixels[0, 0, 0] ^= 1
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("ldm", text)
    Image.fromarray(pixels).save(file, pnginfo=info)
    sample(None, from_image=str(file))
    assert "differs from" in capsys.readouterr().out
    assert json.loads(text)["prompt"] == "a red circle"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there are no prompts"),
        ({"prompts": ["a"], "seeds": [1, 2], "num_images": 3}, "num_images=3 but 2 seeds"),
        ({"prompts": ["a"], "seeds": [1, 1]}, "none twice"),
        ({"prompts": ["a"], "num_images": 0}, "num_images=0"),
        ({"prompts": ["a"], "batch_size": 0}, "batch_size=0"),
        ({"prompts": ["a"], "num_steps": 0}, "num_steps=0"),
        ({"prompts": ["a"], "image_size": 7}, "multiples of 2"),
        ({"prompts": ["a"], "image_size": [8, 8, 8]}, "multiples of 2"),
        ({"prompts": ["a"], "original_size": [8]}, "original_size=.8. must be"),
        ({"prompts": ["a"], "crop": [0, -1]}, "crop=.0, -1. must be"),
        ({"prompts": ["a"], "from_image": "x.png"}, "leave out prompts"),
        ({"trace": True, "from_image": "x.png"}, "leave out .* trace"),
        ({"prompts": ["a", "b"], "trace": True}, "trace=true shows how one picture came about, and 2 are"),
        ({"prompts": ["a"], "prompts_file": "x.txt"}, "both given"),
        ({"prompts_file": "absent.txt"}, "no file absent.txt"),
        (
            {"prompts": ["a"], "negative": "b", "guidance": Unguided()},
            "negative prompts count in guidance only",
        ),
        ({"prompts": ["a"], "negative": "b", "guidance": GuidanceFromRun(scale=1.0)}, "of scale 1"),
        ({"prompts": [{"prompt": "a", "guidance": 2}], "guidance": Unguided()}, "Unguided has no scale"),
        ({"from_image": "x.png"}, "x.png"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_any_network_runs(
    run: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    no_network(monkeypatch)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sample(run, **given)


def test_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="run=<run folder"):
        sample(None, prompts=["a"])


def test_a_run_that_makes_no_pictures_of_prompts_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_run(*args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(folder=RunFolder(run), module=nn.Linear(1, 1))

    monkeypatch.setattr(sample_command, "load_run", load_run)
    with pytest.raises(ValueError, match="name a diffusion run"):
        sample(run, prompts=["a"])
