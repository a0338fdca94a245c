"""Which pipeline of diffusers runs which network, and what else belongs into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLIP, CLIP_PROJECTED = ("transformers", "CLIPTextModel"), ("transformers", "CLIPTextModelWithProjection")
CLIP_WORDS, T5, T5_WORDS = (
    ("transformers", "CLIPTokenizer"),
    ("transformers", "T5EncoderModel"),
    ("transformers", "T5Tokenizer"),
)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One pipeline of diffusers.

    Attributes:
        class_name: Theirs.
        network_class: The class of its network ...
        network: ... and what the pipeline calls it.
        text: Its text side: what each component is called, and the library and class that it usually is.
        idle: Components that it can do without.
        settings: Further entries of model_index.json.
        told: What its call is given in place of a prompt.
        flow: It was made for flow matching and does nothing else.
        shifts: It takes the autoencoder's shift_factor into account.
    """

    class_name: str
    network_class: str
    network: str = "transformer"
    text: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds")
    flow: bool = False
    shifts: bool = False


STABLE_DIFFUSION = Pipeline(
    class_name="StableDiffusionPipeline",
    network_class="UNet2DConditionModel",
    network="unet",
    text={"text_encoder": CLIP, "tokenizer": CLIP_WORDS},
    idle=("safety_checker", "feature_extractor", "image_encoder"),
    settings={"requires_safety_checker": False},
)
STABLE_DIFFUSION_XL = Pipeline(
    class_name="StableDiffusionXLPipeline",
    network_class="UNet2DConditionModel",
    network="unet",
    text={
        "text_encoder": CLIP,
        "tokenizer": CLIP_WORDS,
        "text_encoder_2": CLIP_PROJECTED,
        "tokenizer_2": CLIP_WORDS,
    },
    idle=("image_encoder", "feature_extractor"),
    # Our null condition is the empty caption's encoding, not zeros.
    settings={"force_zeros_for_empty_prompt": False},
    told=("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds"),
)
OTHERS = (
    Pipeline(
        class_name="StableDiffusion3Pipeline",
        network_class="SD3Transformer2DModel",
        text={
            "text_encoder": CLIP_PROJECTED,
            "tokenizer": CLIP_WORDS,
            "text_encoder_2": CLIP_PROJECTED,
            "tokenizer_2": CLIP_WORDS,
            "text_encoder_3": T5,
            "tokenizer_3": T5_WORDS,
        },
        idle=("image_encoder", "feature_extractor"),
        told=STABLE_DIFFUSION_XL.told,
        flow=True,
        shifts=True,
    ),
    Pipeline(
        class_name="FluxPipeline",
        network_class="FluxTransformer2DModel",
        text={
            "text_encoder": CLIP,
            "tokenizer": CLIP_WORDS,
            "text_encoder_2": T5,
            "tokenizer_2": T5_WORDS,
        },
        idle=("image_encoder", "feature_extractor"),
        told=("prompt_embeds", "pooled_prompt_embeds"),
        flow=True,
        shifts=True,
    ),
    Pipeline(
        class_name="PixArtAlphaPipeline",
        network_class="PixArtTransformer2DModel",
        text={"text_encoder": T5, "tokenizer": T5_WORDS},
        told=(
            "prompt_embeds",
            "prompt_attention_mask",
            "negative_prompt_embeds",
            "negative_prompt_attention_mask",
        ),
    ),
    Pipeline(class_name="DiTPipeline", network_class="DiTTransformer2DModel", told=("class_labels",)),
)


def pipeline_for(class_name: str, config: Mapping[str, Any]) -> Pipeline | None:
    """The pipeline of a network of theirs; None where they have none for it, as for class-conditional U-Nets."""
    if class_name == STABLE_DIFFUSION.network_class:
        if config.get("addition_embed_type") == "text_time":
            return STABLE_DIFFUSION_XL
        told_text_only = config.get("num_class_embeds") is None and config.get("class_embed_type") is None
        return STABLE_DIFFUSION if told_text_only and config.get("cross_attention_dim") else None
    return next((pipeline for pipeline in OTHERS if pipeline.network_class == class_name), None)
