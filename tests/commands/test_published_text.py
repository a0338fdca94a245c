"""A published pipeline with its own text encoder, from its folder to pictures; and what happens when that changes."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from ldm.commands.launch import launch
from ldm.commands.load import load_run
from ldm.commands.main import run
from ldm.commands.shapes import shapes
from ldm.interop.diffusers_format import Diffusers
from ldm.needs import MissingNeeds
from ldm.training.checkpoint import read_checkpoint
from tests.interop import tiny
from tests.text.tiny import clip_tokenizer

UNET = [
    "network=unet_small",
    "network.channels=[16,32]",
    "network.blocks_per_level=1",
    "network.transformer_depth=[1,1]",
    "network.middle_depth=1",
    "network.num_heads=[2,2]",
    "network.num_groups=8",
    "network.context_mask=false",
]
TEXT = [
    "text_encoder=hugging_face",
    "text_encoder.width=16",
    "text_encoder.pooled_width=0",
    "text_encoder.weights.path=published",
    "text_encoder.weights.subfolder=text_encoder",
    "text_encoder.weights.tokenizer_subfolder=tokenizer",
    "text_encoder.attends_padding=true",
]
SAMPLE = ["run=runs/sd/one", "prompts=[a red cat]", "num_steps=2", "out=pictures", "device=cpu"]


def write_text_encoder(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=49408
    )
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    clip_tokenizer().save_pretrained(folder / "tokenizer")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a pipeline of diffusers in it."""
    Diffusers().write(tiny.model(tiny.KINDS["StableDiffusionPipeline"]), tmp_path / "published")
    write_text_encoder(tmp_path / "published", seed=0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pipelines_own_text_encoder_makes_its_import_a_run_and_is_exported_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("import", ["from=published", "out=runs/sd/one", *UNET, *TEXT, "diffusion=ddpm"])
    checkpoint = read_checkpoint(here / "runs/sd/one/checkpoints/last")
    assert not any(name.startswith("text_encoder.") for name in checkpoint["state_dict"])
    run("sample", SAMPLE)
    assert len([file for file in (here / "pictures").glob("*.png") if not file.name.startswith("grid")]) == 1

    run("export", ["run=sd/one", "out=exported"])
    assert "StableDiffusionPipeline's encode_prompt agrees within" in capsys.readouterr().out
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(here / "exported", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "latents": tiny.noise(1), "height": 16, "width": 16}
    red, blue = (
        pipeline(f"a {colour} cat", **options, output_type="pt").images for colour in ("red", "blue")
    )
    assert red.shape == (1, 3, 16, 16) and not torch.equal(red, blue)

    write_text_encoder(here / "published", seed=1)
    with pytest.raises(ValueError, match="this denoiser was made with another text encoder: weights was"):
        load_run("sd/one")

    (here / "published").rename(here / "moved")
    with pytest.raises(MissingNeeds) as caught:
        load_run("sd/one")
    assert len(caught.value.lines) == 2
    for line in caught.value.lines:
        assert line.startswith("runs/sd/one/config.yaml: text_encoder.weights: the t")
        assert "looked in published/t" in line and "text_encoder.weights.path=" in line


def test_an_import_without_the_weights_of_its_text_encoder_writes_nothing(here: Path) -> None:
    missing = [*TEXT, "text_encoder.weights.path=elsewhere"]
    with pytest.raises(MissingNeeds, match=r"text_encoder\.weights: the text model elsewhere is missing"):
        run("import", ["from=published", "out=runs/sd/one", *UNET, *missing, "diffusion=ddpm"])
    assert not (here / "runs").exists()


def test_a_network_is_trained_with_a_frozen_encoder_resumed_and_sampled(here: Path) -> None:
    shapes(out="data/shapes", num_train=8, num_val=4, seed=0, samples_per_shard=8, num_workers=1)
    tiny_clip = [
        f"text_encoder.architecture.{key}" for key in ("width=16", "heads=2", "layers=2", "projection=16")
    ]
    launch(
        [
            "name=shapes_dit", "codec=identity", "data=shapes_images", "data.image_size=16", "trainer=cpu",
            "data.batch_size=4", "num_images=8", "run_id=one", "network.in_channels=3", "network.depth=1",
            "network.width=32", "network.num_heads=2", "text_encoder=clip_vit_l", "text_encoder.weights=null",
            "text_encoder.width=16", *tiny_clip, "task.num_steps=2", "callbacks.validate.num_images=4",
            "callbacks.samples.prompts=[a red circle]",
        ]
    )  # fmt: skip
    folder = here / "runs/shapes_dit/one"
    contract = json.loads((folder / "text_contract.json").read_text())
    assert contract["encoder"] == "ClipText" and contract["layer"] == -1
    launch([f"resume={folder}", "num_images=16"])
    run("sample", ["run=shapes_dit", "prompts=[a red circle]", "num_steps=2", "out=pictures", "device=cpu"])
    with pytest.raises(ValueError, match="padding was 49407 and is 0"):
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("  padding: null", "  padding: 0"))
        load_run("shapes_dit")
