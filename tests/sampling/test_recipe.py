from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.sampling.grids import LogSNR, Uniform
from ldm.sampling.guidance import ClassifierFree, Unguided
from ldm.sampling.recipe import Recipe, part_to_plain, plain_to_part, read_recipe, write_png
from ldm.sampling.samplers import DDIM, Euler, Heun

RECIPE = Recipe(
    prompt="drei Käfer, 三, 🐞",
    seed=2**40,
    num_steps=25,
    sampler=part_to_plain(DDIM(eta=0.25)),
    grid=part_to_plain(LogSNR()),
    guidance=part_to_plain(ClassifierFree(scale=3.5, interval=(0.1, 0.9))),
    latent_size=(8, 6),
    batch_size=8,
    row=3,
    run="runs/shapes/one",
    checkpoint="runs/shapes/one/checkpoints/last.ckpt",
    checkpoint_hash="ab" * 32,
    codec_hash="cd" * 32,
    weights="ema",
    device="cpu",
    versions={"torch": "2"},
)


@pytest.mark.parametrize(
    "part",
    [
        Euler(),
        Heun(),
        DDIM(eta=0.5),
        Uniform(),
        LogSNR(log_snr_min=-5.0),
        Unguided(),
        ClassifierFree(scale=2.0),
    ],
    ids=str,
)
def test_parts_survive_the_recipe(part: Any) -> None:
    assert plain_to_part(part_to_plain(part)) == part


def test_a_recipe_survives_the_file_and_so_does_the_picture(tmp_path: Path) -> None:
    picture = torch.randint(
        0, 256, (3, 10, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    write_png(tmp_path / "new" / "one.png", picture, RECIPE)
    assert read_recipe(tmp_path / "new" / "one.png") == RECIPE
    assert plain_to_part(RECIPE.guidance) == ClassifierFree(scale=3.5, interval=(0.1, 0.9))
    with Image.open(tmp_path / "new" / "one.png") as file:
        assert (np.array(file) == picture.permute(1, 2, 0).numpy()).all()


def test_the_same_picture_and_recipe_make_the_same_file(tmp_path: Path) -> None:
    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, picture, RECIPE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "ldm.sampling.generate.to_uint8",
        "ldm.sampling.recipe.importlib.import_module",
        "ldm.sampling.recipe.Path",
        "ldm.sampling.nowhere.Euler",
        "ldm.sampling.samplers.Eular",
        "ldm.training.run.RunFolder",
        "",
    ],
)
def test_a_recipe_cannot_run_other_code(target: str) -> None:
    with pytest.raises(ValueError, match=r"only name samplers, grids, guidances and modes"):
        plain_to_part({"_target_": target})


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="eta_typo"):
        plain_to_part({"_target_": "ldm.sampling.samplers.DDIM", "eta_typo": 1.0})


def test_files_without_a_recipe_are_named(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"note\.png is not a picture"):
        read_recipe(tmp_path / "note.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"plain\.png carries no recipe"):
        read_recipe(tmp_path / "plain.png")
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "absent.png")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"prompt": "x"}', "nonsense"])
def test_text_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a recipe"):
        Recipe.from_json(text)
