"""Every mode of sample.py, from files on disk to a picture that can be made again to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.sampling.guidance import Autoguidance, ClassifierFree, Unguided
from ldm.sampling.guidance_projected import APG
from ldm.sampling.guidance_zero_star import CFGZeroStar
from ldm.sampling.modes import ImageToImage, Inpaint, Interpolate, Text, Variations
from ldm.sampling.recipe import Recipe, read_recipe
from ldm.sampling.samplers import DDIM
from tests.commands.sampling import Module, make_run, no_network, pictures, sample


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


def picture_file(path: Path, size: tuple[int, int] = (12, 8), seed: int = 0) -> str:
    """A picture of noise, size (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def mask_file(path: Path, size: tuple[int, int] = (12, 8)) -> str:
    """Black on the left, white on the right."""
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[:, size[0] // 2 :] = 255
    Image.fromarray(pixels).save(path)
    return str(path)


PROMPTS: list[Any] = ["a red circle", {"prompt": "two rings", "negative": "blue", "guidance": 5, "seed": 4}]
GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text": lambda folder: {"prompts": PROMPTS, "mode": Text(), "negative": "red"},
    "a scale of 1": lambda folder: {
        "prompts": ["a", {"prompt": "b", "guidance": 1}, {"prompt": "c", "guidance": 2}]
    },
    "image": lambda folder: {
        "prompts": PROMPTS,
        "mode": ImageToImage(image=picture_file(folder / "x.png"), strength=0.5),
    },
    "another size": lambda folder: {
        "prompts": ["a"],
        "image_size": [16, 8],
        "mode": ImageToImage(image=picture_file(folder / "x.png", size=(31, 17)), strength=0.5),
    },
    "inpaint": lambda folder: {
        "prompts": PROMPTS,
        "mode": Inpaint(
            image=picture_file(folder / "x.png"), mask=mask_file(folder / "m.png"), num_passes=2, stretch=2
        ),
    },
    "variations": lambda folder: {"prompts": PROMPTS, "mode": Variations(seed=7), "num_images": 3},
    "interpolate": lambda folder: {"prompts": ["a", "b"], "seeds": [0, 1], "mode": Interpolate(num_frames=5)},
    "apg": lambda folder: {"prompts": ["a", "b"], "guidance": APG(scale=4.0)},
    "zero star": lambda folder: {"prompts": ["a", "b"], "guidance": CFGZeroStar(scale=4.0)},
    "autoguidance": lambda folder: {
        "prompts": ["a", "b"],
        "guidance": Autoguidance(scale=2.0, run=str(folder / "runs/tiny/one/checkpoints/weak.ckpt")),
    },
}


@pytest.mark.parametrize("name", GIVEN)
def test_every_picture_of_every_mode_can_be_made_again_bit_for_bit(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(run, **GIVEN[name](tmp_path), sampler=DDIM(eta=1.0), out=str(tmp_path / "first"))
    files = pictures(tmp_path / "first")
    assert len(files) > 0
    shown = {file.read_bytes() for file in files}
    assert len(shown) == len(files)
    for file in files:
        sample(None, from_image=str(file), device="auto", out=str(tmp_path / "second"))
    for file, made in zip(files, pictures(tmp_path / "second"), strict=True):
        with Image.open(file) as one, Image.open(made) as other:
            assert (np.array(one) == np.array(other)).all()
        assert read_recipe(made) == read_recipe(file)
    assert capsys.readouterr().out.count("bit for bit") == len(files)


def by_prompt(folder: Path) -> dict[str, tuple[Recipe, np.ndarray]]:
    found = {}
    for file in pictures(folder):
        with Image.open(file) as picture:
            found[read_recipe(file).prompt] = (read_recipe(file), np.array(picture))
    return found


def test_prompts_carry_what_is_their_own(run: Path, tmp_path: Path) -> None:
    sample(run, prompts=PROMPTS, negative="green", seeds=[0], out=str(tmp_path / "out"))
    made = {prompt: recipe for prompt, (recipe, _) in by_prompt(tmp_path / "out").items()}
    assert (made["a red circle"].negative, made["two rings"].negative) == ("green", "blue")
    assert (made["a red circle"].seed, made["two rings"].seed) == (0, 4)
    assert (made["a red circle"].scale, made["two rings"].scale) == (3.0, 5.0)  # the first: the run's own


def test_prompts_come_from_a_file(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(p if isinstance(p, dict) else {"prompt": p}) + "\n" for p in PROMPTS))
    sample(run, prompts_file=str(file), out=str(tmp_path / "file"))
    sample(run, prompts=PROMPTS, out=str(tmp_path / "line"))
    assert [f.name for f in pictures(tmp_path / "file")] == [f.name for f in pictures(tmp_path / "line")]


def test_little_strength_changes_less(run: Path, tmp_path: Path) -> None:
    """Between the picture as the autoencoder gives it back and one made from noise."""
    image = picture_file(tmp_path / "x.png")
    made = []
    for strength in (0.25, 1.0):
        out = tmp_path / str(strength)
        sample(run, prompts=["a"], mode=ImageToImage(image=image, strength=strength), out=str(out))
        made.append(by_prompt(out)["a"][1].astype(float))
    sample(run, prompts=["a"], out=str(tmp_path / "text"))
    text = by_prompt(tmp_path / "text")["a"][1]
    assert (made[1] == text).all()  # the rectified flow ends in pure noise
    assert (made[0] != text).any()


def test_inpainting_leaves_the_rest_as_it_was(run: Path, tmp_path: Path) -> None:
    mode = Inpaint(image=picture_file(tmp_path / "x.png"), mask=mask_file(tmp_path / "m.png"))
    sample(run, prompts=["a", "b"], mode=mode, out=str(tmp_path / "out"))
    made = by_prompt(tmp_path / "out")
    with Image.open(tmp_path / "x.png") as picture:
        before = np.array(picture)
    for _, pixels in made.values():
        assert (pixels[:, :6] == before[:, :6]).all() and (pixels[:, 6:] != before[:, 6:]).any()
    assert (made["a"][1] != made["b"][1]).any()


def test_any_size_the_network_takes(run: Path, tmp_path: Path) -> None:
    sample(run, prompts=["a"], image_size=[16, 6], out=str(tmp_path / "out"))
    assert by_prompt(tmp_path / "out")["a"][1].shape == (16, 6, 3)
    mode = ImageToImage(image=picture_file(tmp_path / "x.png", size=(20, 14)))
    sample(run, prompts=["a"], mode=mode, out=str(tmp_path / "own"))
    assert by_prompt(tmp_path / "own")["a"][1].shape == (14, 20, 3)


@pytest.mark.parametrize("mode", ["text", "inpaint"])
def test_a_trace_shows_how_the_picture_came_about_and_changes_nothing(
    mode: str, run: Path, tmp_path: Path
) -> None:
    given = {**GIVEN[mode](tmp_path), "prompts": ["a"]}
    for trace in (False, True):
        sample(run, **given, trace=trace, out=str(tmp_path / str(trace)))
    (plain,), (traced,) = pictures(tmp_path / "False"), pictures(tmp_path / "True")
    assert plain.read_bytes() == traced.read_bytes()
    stem = tmp_path / "True" / traced.stem
    num_steps = 4 if mode == "text" else 8  # two passes
    with Image.open(f"{stem}-film.png") as strip, Image.open(f"{stem}-film-animated.png") as animated:
        assert strip.width > (num_steps + 1) * 128 and strip.height > 128
        assert animated.n_frames == num_steps + 1


def test_a_picture_that_has_changed_or_gone_is_named(run: Path, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    mode = ImageToImage(image=picture_file(image))
    sample(run, prompts=["a"], mode=mode, out=str(tmp_path / "out"))
    (made,) = pictures(tmp_path / "out")
    picture_file(image, seed=1)
    with pytest.raises(ValueError, match=r"x\.png has changed since the picture was made"):
        sample(None, from_image=str(made))
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"mode\.image: there is no file .*x\.png"):
        sample(None, from_image=str(made))


def test_the_weaker_checkpoint_is_known_by_its_hash(run: Path, tmp_path: Path) -> None:
    sample(run, **GIVEN["autoguidance"](tmp_path))
    made = pictures(run / "pictures")[0]
    weak = run / "checkpoints" / "weak.ckpt"
    weak.rename(weak.with_name("earlier.ckpt"))
    weak.write_bytes(b"something else")
    sample(None, from_image=str(made))
    weak.with_name("earlier.ckpt").unlink()
    with pytest.raises(ValueError, match=r"guided by checkpoint .* none looked at has this hash"):
        sample(None, from_image=str(made))


def test_autoguidance_counts(run: Path, tmp_path: Path) -> None:
    sample(run, prompts=["a"], guidance=Unguided(), out=str(tmp_path / "plain"))
    weak = str(run / "checkpoints" / "weak.ckpt")
    sample(run, prompts=["a"], guidance=Autoguidance(scale=2.0, run=weak), out=str(tmp_path / "guided"))
    plain, guided = (by_prompt(tmp_path / name)["a"] for name in ("plain", "guided"))
    assert (plain[1] != guided[1]).any()
    assert guided[0].guidance["run"] == weak


# ----------------------------------------------------------------------------------------- refused in good time


def wrong(tmp_path: Path, **values: Any) -> Any:
    """An inpainting mode with one thing wrong."""
    right = {"image": picture_file(tmp_path / "x.png"), "mask": mask_file(tmp_path / "m.png")}
    return Inpaint(**{**right, **values})


BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "mask of another size": (
        lambda folder: {"mode": wrong(folder, mask=mask_file(folder / "small.png", size=(10, 8)))},
        r"mode\.mask: .*small\.png is 10x8 pixels and .*x\.png is 12x8: a mask must be as large as its picture",
    ),
    "no mask": (
        lambda folder: {"mode": wrong(folder, mask=str(folder / "absent.png"))},
        r"mode\.mask: there is no file .*absent\.png",
    ),
    "no picture": (
        lambda folder: {"mode": ImageToImage(image=str(folder / "absent.png"))},
        r"mode\.image: there is no file .*absent\.png",
    ),
    "no picture at all": (
        lambda folder: {"mode": wrong(folder, image=str(folder / "runs/tiny/one/config.yaml"))},
        r"mode\.image: .*config\.yaml cannot be read as a picture",
    ),
    "an odd size": (
        lambda folder: {"mode": ImageToImage(image=picture_file(folder / "x.png", size=(13, 8)))},
        r"x\.png is 13x8 pixels, and this run needs multiples of 2: give image_size=\[8,12\]",
    ),
    "no way": (lambda folder: {"mode": Interpolate()}, "leads from picture to picture"),
    "no such run": (
        lambda folder: {"guidance": Autoguidance(scale=2.0, run=str(folder / "gone.ckpt"))},
        "gone",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_before_any_network_runs(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, message = BAD[name]
    no_network(monkeypatch)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sample(run, **{"prompts": ["a"], **given(tmp_path)})


def test_a_run_that_never_saw_the_empty_caption_is_not_guided_by_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Module, "caption_dropout", 0.0)
    sample(run, prompts=["a"], guidance=Unguided())
    sample(run, prompts=["a"], negative="b", guidance=ClassifierFree(scale=2.0))
    no_network(monkeypatch)
    for guidance in (ClassifierFree(scale=2.0), APG(scale=2.0), CFGZeroStar(scale=2.0)):
        with pytest.raises(
            ValueError, match=r"never saw one \(task\.caption_dropout=0\): give guidance=unguided"
        ):
            sample(run, prompts=["a"], guidance=guidance)


def test_a_weaker_model_of_other_latents_or_another_schedule_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.commands import guide
    from ldm.diffusion.schedules import Cosine
    from tests.sampling.tiny import generation

    weak = Autoguidance(scale=2.0, run=str(run / "checkpoints" / "weak.ckpt"))
    load_run = guide.load_run

    def other_schedule(*args: Any, **kwargs: Any) -> Any:
        loaded = load_run(*args, **kwargs)
        loaded.module.own = generation(schedule=Cosine())
        return loaded

    def other_latents(*args: Any, **kwargs: Any) -> Any:
        loaded = load_run(*args, **kwargs)
        loaded.module.own.codec.content_hash = "another"
        return loaded

    no_network(monkeypatch)
    monkeypatch.setattr(guide, "load_run", other_schedule)
    with pytest.raises(ValueError, match=r"was trained on Cosine.*RectifiedFlow"):
        sample(run, prompts=["a"], guidance=weak)
    monkeypatch.setattr(guide, "load_run", other_latents)
    with pytest.raises(ValueError, match="works on the latents of autoencoder another"):
        sample(run, prompts=["a"], guidance=weak)


def test_recipes_from_before_modes_are_understood() -> None:
    fields = {"prompt": "a", "seed": 1, "num_steps": 4, "sampler": {}, "grid": {}, "guidance": {}}
    fields |= {"latent_size": [4, 6], "batch_size": 1, "row": 0, "run": "r", "checkpoint": "c"}
    fields |= {"checkpoint_hash": "", "codec_hash": "", "weights": "ema", "device": "cpu", "versions": {}}
    recipe = Recipe.from_json(json.dumps(fields))
    assert recipe.mode == {"_target_": "ldm.sampling.modes.Text"}
    assert recipe.request().prompt == "a" and recipe.request().blend is None


def test_nothing_here_needs_a_gradient(run: Path, tmp_path: Path) -> None:
    sample(run, **GIVEN["inpaint"](tmp_path))
    assert torch.is_grad_enabled()
