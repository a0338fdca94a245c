from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldm.commands import again as again_command
from ldm.commands import sample as sample_command
from ldm.commands.load import LoadedRun
from ldm.sampling.from_run import FromRun, GuidanceFromRun
from ldm.sampling.generate import Generation
from ldm.sampling.guidance import ClassifierFree
from ldm.sampling.recipe import read_recipe
from ldm.sampling.samplers import DDIM
from ldm.training.checkpoint import file_hash
from ldm.training.run import RunFolder
from tests.sampling.tiny import generation


class Module(nn.Module):
    """What a diffusion run's module offers to sampling."""

    latent_size = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.own = generation()
        self.network, self.codec = self.own.network, self.own.codec

    def generation(self) -> Generation:
        return self.own


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose loading is cut short: its weights are always the same."""
    folder = tmp_path / "runs" / "tiny" / "one"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")

    def load_run(run: str | Path, *, weights: str = "ema", runs: str | Path = "runs") -> LoadedRun:
        checkpoint = Path(run) if Path(run).suffix == ".ckpt" else folder / "checkpoints" / "last.ckpt"
        values: dict[str, Any] = {
            "folder": RunFolder(folder),
            "config": {},
            "module": Module(),
            "checkpoint_path": checkpoint,
            "checkpoint_hash": file_hash(checkpoint),
            "weights": weights,
            "images_seen": 64,
        }
        known = {field.name for field in dataclasses.fields(LoadedRun)}
        return LoadedRun(**{name: value for name, value in values.items() if name in known})

    monkeypatch.setattr(sample_command, "load_run", load_run)
    monkeypatch.setattr(again_command, "load_run", load_run)
    return folder


def sample(run: Path | str | None, **given: Any) -> None:
    """The command with the defaults of its config."""
    defaults: dict[str, Any] = {
        "prompts": None,
        "seeds": None,
        "num_images": None,
        "num_steps": None,
        "image_size": None,
        "batch_size": 4,
        "sampler": FromRun(),
        "grid": FromRun(),
        "guidance": GuidanceFromRun(),
        "weights": "ema",
        "device": "cpu",
        "out": None,
        "from_image": None,
    }
    sample_command.sample(run=None if run is None else str(run), **{**defaults, **given})


def pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.png") if not file.name.startswith("grid-"))


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
        out=str(tmp_path / "first"),
    )
    for file in pictures(tmp_path / "first"):
        sample(None, from_image=str(file), device="auto", out=str(tmp_path / "second"))
        (made,) = pictures(tmp_path / "second")
        with Image.open(file) as one, Image.open(made) as other:
            assert (np.array(one) == np.array(other)).all()
        assert read_recipe(made) == read_recipe(file)
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
    with pytest.raises(ValueError, match=r"no file looked at has this hash .*last\.ckpt.*run=<file\.ckpt>"):
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
        ({"prompts": ["a"], "from_image": "x.png"}, "leave out prompts"),
        ({"from_image": "x.png"}, "x.png"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_any_network_runs(
    run: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    def images(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("a network ran")

    monkeypatch.setattr(Generation, "images", images)
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
