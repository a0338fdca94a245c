"""What a run needs, and how a person hears that it is not there."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from ldm.commands.compose import compose
from ldm.commands.errors import MISSING, reported
from ldm.commands.launch import launch
from ldm.commands.needs import needs, refuse_missing
from ldm.needs import MissingNeeds, Need, package, refuse_unmet
from ldm.text.clip import NamedClip
from ldm.text.hf import Architecture, HuggingFaceText

WEIGHTS = Need(what="the weights w", found=None, looked_in=("/a", "/b"), bring="copy them to /a")


def test_every_need_that_is_not_met_gets_its_line_and_the_status_is_69(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left, reported():
        raise MissingNeeds([("text_encoder.weights", WEIGHTS), ("", WEIGHTS)])
    assert left.value.code == MISSING == 69
    line = "the weights w is missing (looked in /a, /b); copy them to /a"
    assert capsys.readouterr().err.splitlines() == [f"error: text_encoder.weights: {line}", f"error: {line}"]


def test_what_is_there_or_may_be_fetched_is_met() -> None:
    refuse_unmet([Need(what="x", found="/x"), Need(what="y", found=None, fetched=True)])
    with pytest.raises(MissingNeeds, match="the weights w is missing"):
        refuse_unmet([Need(what="x", found="/x"), WEIGHTS])


def test_packages() -> None:
    assert package("torch", extra="text").is_met
    need = package("no-such-package", extra="text")
    assert not need.is_met and "pip install 'ldm[text]'" in str(need)


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose caches are empty, and a working directory."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(*overrides: str) -> DictConfig:
    return compose("train", ["data.train_shards=x", "codec=identity", *overrides]).config


FILES = {
    "clip_vit_l": {"text_encoder.weights"},
    "open_clip_vit_h": {"text_encoder.weights"},
    "sdxl": {"text_encoder.encoders.clip_l.weights", "text_encoder.encoders.clip_g.weights"},
    "sd3": {
        "text_encoder.encoders.clips.encoders.clip_l.weights",
        "text_encoder.encoders.clips.encoders.clip_g.weights",
        "text_encoder.encoders.t5.weights",
    },
    "flux": {"text_encoder.encoders.clip_l.encoder.weights", "text_encoder.encoders.t5.weights"},
    "t5_xxl": {"text_encoder.weights"},
    "t5_small": {"text_encoder.weights"},
    "pixart": {"text_encoder.weights"},
}
# D, L, P and millions of parameters, of the published models
SIZES = {
    "clip_vit_l": (768, 77, 0, 124),
    "open_clip_vit_h": (1024, 77, 0, 354),
    "sdxl": (2048, 77, 1280, 124 + 695),
    "sd3": (4096, 77 + 256, 2048, 124 + 695 + 4762),
    "flux": (4096, 512, 768, 124 + 4762),
    "t5_xxl": (4096, 256, 4096, 4762),
    "t5_small": (512, 128, 512, 35),
    "pixart": (4096, 120, 0, 4762),
}


@pytest.mark.parametrize("choice", FILES)
def test_a_config_says_what_it_needs_and_how_large_it_is_without_any_file(
    choice: str, nothing_here: Path
) -> None:
    config = composed(f"text_encoder={choice}")
    asked = needs(config)
    assert {key for key, need in asked if not need.is_met} == FILES[choice]
    for key, need in asked:
        assert need.is_met or f"{key}.path=" in str(need), "the remedy names the key"
    with torch.device("meta"):
        encoder = instantiate(config.text_encoder, _convert_="all")
    width, length, pooled, millions = SIZES[choice]
    assert (encoder.width, encoder.length, encoder.pooled_width) == (width, length, pooled)
    assert (config.text_encoder.width, config.text_encoder.pooled_width) == (width, pooled)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("name", ["clip_vit_l", "open_clip_vit_h", "sdxl"])
def test_stated_sizes_are_those_of_open_clip(name: str) -> None:
    text = composed(f"text_encoder={name}").text_encoder
    for clip in [text] if name != "sdxl" else text.encoders.values():
        model = clip.weights.model + ("-quickgelu" if clip.weights.tag == "openai" else "")
        assert instantiate(clip.architecture) == NamedClip(name=model).sizes()


def test_everything_may_be_downloaded_with_permission(nothing_here: Path) -> None:
    asked = needs(composed("text_encoder=sd3", "allow_download=true"))
    assert all(need.is_met for _, need in asked) and sum(need.fetched for _, need in asked) == 4
    refuse_missing(composed("text_encoder=sd3", "allow_download=true"))


def test_without_the_packages_only_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("ldm.needs.version", version)
    asked = {need.what for _, need in needs(composed("text_encoder=sd3"))}
    assert asked == {"the package open_clip_torch", "the package transformers"}
    with pytest.raises(MissingNeeds, match=r"pip install 'ldm\[text\]'"):
        HuggingFaceText(weights=None, architecture=Architecture(model_type="t5"), length=8)


def test_random_weights_need_no_file(nothing_here: Path) -> None:
    assert not needs(composed("text_encoder=t5_small", "text_encoder.weights=null"))


def test_a_training_without_its_weights_ends_before_it_begins(
    nothing_here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        launch(
            ["text_encoder=pixart", "data.train_shards=x", "codec.path=x", "callbacks.samples.prompts=[]",
             "trainer=cpu"]
        )  # fmt: skip
    assert left.value.code == MISSING
    errors = capsys.readouterr().err.splitlines()
    of_codec, *of_text = errors
    assert len(of_text) == 2 and all(
        line.startswith("error: text_encoder.weights: the t") for line in of_text
    )
    assert of_codec.startswith("error: codec: the autoencoder x is missing; train one first")
    assert "codec.path=" in of_codec
    assert "google/t5-v1_1-xxl" in of_text[0] and str(nothing_here / "hub") in of_text[0]
    assert not (nothing_here / "runs").exists(), "no run folder is left behind"
