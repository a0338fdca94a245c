"""What captions become, against the pipelines of diffusers with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from ldm.commands.compose import CONFIGS
from ldm.interfaces import Conditioning, TextEncoder
from tests.text.tiny import (
    CAPTIONS,
    CLIP,
    QUICK_CLIP,
    T5_SETTINGS,
    as_open_clip,
    clip_tokenizer,
    hf_clip,
    save_t5,
    t5_model,
    t5_tokenizer,
)

T5_LENGTH = 24
# Where a tokenizer pads with "!", Hugging Face's class takes every exclamation mark in a caption for padding too. CLIPs
# of open_clip were not trained so, and ours reads them as open_clip does.
PROMPTS = tuple(caption.replace("!", "") for caption in CAPTIONS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip_l and clip_g as open_clip's checkpoints, t5 as a folder of Hugging Face."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(as_open_clip(clip_l(projected=True)), folder / "clip_l.safetensors")
    save_file(as_open_clip(clip_g()), folder / "clip_g.safetensors")
    save_t5(folder / "t5")
    return folder


def clip_l(*, projected: bool) -> Any:
    return hf_clip(QUICK_CLIP, projected=projected)


def clip_g() -> Any:
    return hf_clip(CLIP, projected=True)


def encoder(choice: str, files: Path, **changes: int) -> TextEncoder:
    """The text encoder of ``configs/text_encoder/<choice>.yaml``, its models shrunk to the tiny ones."""
    from hydra.utils import instantiate

    config = OmegaConf.create(yaml.safe_load((CONFIGS / "text_encoder" / f"{choice}.yaml").read_text()))
    assert isinstance(config, DictConfig)
    shrink(config, files)
    config.width, config.pooled_width = None, None
    return instantiate(config, _convert_="all")


def shrink(node: Any, files: Path) -> None:
    for child in node.values():
        if isinstance(child, DictConfig):
            shrink(child, files)
    if str(node.get("_target_")).endswith("ClipText"):
        sizes = {
            "width": CLIP.width,
            "heads": CLIP.heads,
            "layers": CLIP.layers,
            "projection": CLIP.projection,
        }
        node.architecture.update(sizes)
        node.weights.path = (
            str(files / ("clip_l" if node.weights.tag == "openai" else "clip_g")) + ".safetensors"
        )
    if str(node.get("_target_")).endswith("HuggingFaceText"):
        node.architecture.settings = T5_SETTINGS
        node.weights.path = str(files / "t5")
        node.length, node.dtype = T5_LENGTH, "float32"


def same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def prompts() -> list[str]:
    return list(PROMPTS)


@pytest.mark.parametrize("choice", ["clip_vit_l", "open_clip_vit_h"])
def test_stable_diffusion(choice: str, files: Path) -> None:
    import transformers

    if choice == "clip_vit_l":
        model, words = clip_l(projected=False), clip_tokenizer()
    else:  # its released folder holds one layer less, since the last is not used
        whole = clip_g()
        config = transformers.CLIPTextConfig(
            **{**whole.config.to_dict(), "num_hidden_layers": CLIP.layers - 1}
        )
        model, words = transformers.CLIPTextModel(config).eval(), clip_tokenizer("!")
        state = {name.removeprefix("text_model."): x for name, x in whole.state_dict().items()}
        model.load_state_dict({name: state[name.removeprefix("text_model.")] for name in model.state_dict()})
    pipeline = diffusers.StableDiffusionPipeline(
        text_encoder=model, tokenizer=words, vae=None, unet=None, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with torch.no_grad():
        tokens, null = pipeline.encode_prompt(prompts(), "cpu", 1, True)
    ours = encoder(choice, files)
    same(ours(PROMPTS).tokens, tokens)
    same(ours([""] * len(PROMPTS)).tokens, null)


def test_sdxl(files: Path) -> None:
    pipeline = diffusers.StableDiffusionXLPipeline(
        text_encoder=clip_l(projected=False), tokenizer=clip_tokenizer(), text_encoder_2=clip_g(),
        tokenizer_2=clip_tokenizer("!"), vae=None, unet=None, scheduler=None, force_zeros_for_empty_prompt=False,
    )  # fmt: skip
    with torch.no_grad():
        tokens, null, pooled, null_pooled = pipeline.encode_prompt(prompts(), device="cpu")
    ours = encoder("sdxl", files)
    check(ours, tokens, pooled, null, null_pooled)
    assert ours(PROMPTS).mask.sum(1).tolist() == [10, 2, 3, 13, 77]


def test_sd3(files: Path) -> None:
    pipeline = diffusers.StableDiffusion3Pipeline(
        text_encoder=clip_l(projected=True), tokenizer=clip_tokenizer(), text_encoder_2=clip_g(),
        tokenizer_2=clip_tokenizer("!"), text_encoder_3=t5_model(), tokenizer_3=t5_tokenizer(), vae=None,
        transformer=None, scheduler=None,
    )  # fmt: skip
    with torch.no_grad():
        tokens, null, pooled, null_pooled = pipeline.encode_prompt(
            prompts(), None, None, device="cpu", max_sequence_length=T5_LENGTH
        )
    check(encoder("sd3", files), tokens, pooled, null, null_pooled)


def test_flux(files: Path) -> None:
    pipeline = diffusers.FluxPipeline(
        text_encoder=clip_l(projected=False), tokenizer=clip_tokenizer(), text_encoder_2=t5_model(),
        tokenizer_2=t5_tokenizer(), vae=None, transformer=None, scheduler=None,
    )  # fmt: skip
    with torch.no_grad():
        tokens, pooled, _ = pipeline.encode_prompt(
            prompts(), None, device="cpu", max_sequence_length=T5_LENGTH
        )
    cond = encoder("flux", files)(PROMPTS)
    same(cond.tokens, tokens)
    same(cond.pooled, pooled)


def test_pixart(files: Path) -> None:
    pipeline = diffusers.PixArtAlphaPipeline(
        text_encoder=t5_model(), tokenizer=t5_tokenizer(), vae=None, transformer=None, scheduler=None
    )
    with torch.no_grad():
        tokens, mask, null, null_mask = pipeline.encode_prompt(
            prompts(), device="cpu", max_sequence_length=T5_LENGTH, negative_prompt=""
        )
    ours = encoder("pixart", files)
    cond, without = ours(PROMPTS), ours([""])
    same(cond.tokens, tokens)
    assert cond.mask.equal(mask.bool())
    same(without.tokens, null[:1])
    assert without.mask.equal(null_mask[:1].bool())


def check(ours: TextEncoder, tokens: Tensor, pooled: Tensor, null: Tensor, null_pooled: Tensor) -> None:
    def each(captions: Sequence[str]) -> Conditioning:
        return ours(captions)

    cond, without = each(PROMPTS), each([""] * len(PROMPTS))
    same(cond.tokens, tokens)
    same(cond.pooled, pooled)
    same(without.tokens, null)
    same(without.pooled, null_pooled)
