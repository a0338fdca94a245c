"""A run's own text encoders in a pipeline's folder: its prompts become what they were in training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ldm.commands.second_reader import DiffusersReader
from ldm.interop.diffusers_format import Diffusers
from ldm.interop.formats import Model
from ldm.text.clip import ClipText, OpenClipWeights
from ldm.text.concat import OneAfterTheOther, PooledOnly, SideBySide
from ldm.text.files import PretrainedFolder
from ldm.text.hf import HuggingFaceText
from ldm.text.labels import ClassLabels
from ldm.text.pooling import EndToken
from ldm.text.pretrained import text_side_of
from tests.interop import tiny
from tests.text.test_pipelines import clip_g, clip_l, encoder
from tests.text.tiny import CAPTIONS, CLIP, QUICK_CLIP, as_open_clip, clip_tokenizer, save_t5

SYSTEMS = {  # the pipeline and the text encoder that it was published with
    "StableDiffusionPipeline": "clip_vit_l",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "PixArtAlphaPipeline": "pixart",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip_l and clip_g as open_clip's checkpoints, t5 and a CLIP as folders of Hugging Face."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(as_open_clip(clip_l(projected=True)), folder / "clip_l.safetensors")
    save_file(as_open_clip(clip_g()), folder / "clip_g.safetensors")
    save_t5(folder / "t5")
    clip_g().save_pretrained(folder / "clip")
    clip_tokenizer().save_pretrained(folder / "clip")
    return folder


def with_text(name: str, text: Any) -> Model:
    return tiny.model(tiny.KINDS[name], text_encoder=text)


def clip(files: Path, **options: Any) -> ClipText:
    weights = OpenClipWeights(path=str(files / "clip_g.safetensors"))
    return ClipText(**{"architecture": CLIP, "weights": weights, "length": 77, "padding": 0, **options})


def hugging_face(folder: Path, **options: Any) -> HuggingFaceText:
    weights = PretrainedFolder(path=str(folder))
    return HuggingFaceText(**{"weights": weights, "length": 24, "attends_padding": True, **options})


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_folder_encodes_prompts_as_the_run_does(name: str, files: Path, tmp_path: Path) -> None:
    model = with_text(name, encoder(SYSTEMS[name], files))
    notes = Diffusers().write(model, tmp_path / "out")
    findings = Diffusers().check(model, tmp_path / "out", DiffusersReader())
    assert findings[-1].startswith(f"{name}'s encode_prompt agrees within ")
    assert not any("not in the folder" in note for note in notes)
    assert any("takes '!' in a prompt for padding" in note for note in notes) == (
        name in ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
    )
    readme = (tmp_path / "out/README.md").read_text()
    assert '"<this folder>")' in readme and 'pipeline("a prompt"' in readme
    assert ("max_sequence_length=24" in readme) == ("t5" in text_side_of(model.text_encoder).arrangement)  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", ["layer", "mask", "projected"])
def test_what_a_model_can_be_made_to_say_is_said(choice: str, files: Path, tmp_path: Path) -> None:
    """Deeper layers by leaving out the last; masks by the model's config; without its projection by its other class."""
    text: Any = {
        "layer": lambda: clip(files, layer=-2),
        "mask": lambda: hugging_face(files / "clip", attends_padding=False),
        "projected": lambda: hugging_face(files / "clip", pooling=EndToken(projected=True), layer=-2),
    }[choice]()
    model = with_text("StableDiffusionPipeline", text)
    Diffusers().write(model, tmp_path / "out")
    assert "encode_prompt agrees" in Diffusers().check(model, tmp_path / "out", DiffusersReader())[-1]
    assert "equal the run's bit for bit" in Diffusers().check(model, tmp_path / "out", None)[-2]
    config = json.loads((tmp_path / "out/text_encoder/config.json").read_text())
    assert config["num_hidden_layers"] == CLIP.layers - (choice != "mask")
    assert config["architectures"] == ["CLIPTextModel"]


def test_half_precision_stays_half(files: Path, tmp_path: Path) -> None:
    model = with_text(
        "PixArtAlphaPipeline",
        hugging_face(files / "t5", attends_padding=False, lowercase=True, dtype="bfloat16"),
    )
    Diffusers().write(model, tmp_path / "out")
    assert "encode_prompt agrees" in Diffusers().check(model, tmp_path / "out", DiffusersReader())[-1]
    tensors = load_file(tmp_path / "out/text_encoder/model.safetensors")
    assert {x.dtype for x in tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize("sizes", [CLIP, QUICK_CLIP])
def test_open_clip_becomes_transformers_and_back_bit_for_bit(sizes: Any, files: Path) -> None:
    """By the tests' own map the other way; that outputs agree is in tests/text/test_clip.py."""
    ours = ClipText(architecture=sizes, weights=None, length=77, pooling=EndToken(projected=True))
    model = text_side_of(ours).models[0].model()
    assert isinstance(model, transformers.CLIPTextModelWithProjection)
    again, state = as_open_clip(model), ours.tower.state_dict()
    assert again.keys() == state.keys() and all(torch.equal(again[name], x) for name, x in state.items())


def test_the_written_vocabulary_reads_captions_as_open_clip_does(files: Path, tmp_path: Path) -> None:
    ours = clip(files, padding=None, length=20)
    side = text_side_of(ours).models[0]
    assert (side.save_tokenizer(tmp_path), side.caution) == ("CLIPTokenizer", "")
    words = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    read = words(list(CAPTIONS), padding="max_length", truncation=True, return_tensors="pt")
    ids, mask = ours.tokenize(CAPTIONS)
    assert read.input_ids.equal(ids) and read.attention_mask.bool().equal(mask)


def test_what_a_pipeline_does_not_take_is_left_out_with_the_reason(files: Path, tmp_path: Path) -> None:
    first, second = clip(files, pooling=EndToken()), clip(files, layer=-3, final_norm=False)
    two = SideBySide(encoders={"a": first, "b": second})
    t5 = hugging_face(files / "t5")
    flux = OneAfterTheOther(encoders={"t5": t5, "clip": PooledOnly(encoder=first)})
    sd, sdxl = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
    cases = [
        (sd, ClassLabels(num_classes=3), "no class for a ClassLabels"),
        (sd, clip(files, final_norm=False), f"final_norm of text_encoder is False, and {sd} takes True"),
        (sd, two, f"it is clip beside clip, and {sd} takes clip"),
        (sdxl, two, "pooling of text_encoder is EndToken, and .* takes Unpooled; final_norm of text_encoder"),
        (sdxl, two, f"layer of text_encoder_2 is -3, and {sdxl} takes -2"),
        ("PixArtAlphaPipeline", t5, "attends_padding of text_encoder is True, .* takes False; lowercase"),
        ("FluxPipeline", flux, "it is t5, then clip pooled only"),
    ]
    for number, (name, text, reason) in enumerate(cases):
        out = tmp_path / str(number)
        notes = Diffusers().write(with_text(name, text), out)
        assert any(re.search(f"left out: .*{reason}", note) for note in notes), notes
        assert any("not in the folder: text_encoder" in note for note in notes)
        assert not (out / "text_encoder").exists()


def test_text_can_be_left_out(files: Path, tmp_path: Path) -> None:
    model = with_text("StableDiffusionPipeline", encoder("clip_vit_l", files))
    notes = Diffusers(with_text=False).write(model, tmp_path / "out")
    assert any("not in the folder: text_encoder" in note for note in notes)
    assert len(Diffusers(with_text=False).check(model, tmp_path / "out", DiffusersReader())) == 4


def test_the_check_notices_other_text_encoders(files: Path, tmp_path: Path) -> None:
    model = with_text("StableDiffusionPipeline", encoder("clip_vit_l", files))
    Diffusers().write(model, tmp_path / "out")
    file = tmp_path / "out/text_encoder/model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.fc2.weight"))
    save_file({**tensors, name: -tensors[name]}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not make of captions .*with_text=false"):
        Diffusers().check(model, tmp_path / "out", DiffusersReader())
    with pytest.raises(ValueError, match=r"holds other values than the run in .*layers\.1\.mlp\.fc2\.weight"):
        Diffusers().check(model, tmp_path / "out", None)
