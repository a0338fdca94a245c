"""Which pipeline of diffusers runs which network, and what else belongs into its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

CLIP, CLIP_PROJECTED = ("transformers", "CLIPTextModel"), ("transformers", "CLIPTextModelWithProjection")
CLIP_WORDS, T5, T5_WORDS = (
    ("transformers", "CLIPTokenizer"),
    ("transformers", "T5EncoderModel"),
    ("transformers", "T5Tokenizer"),
)
UNPOOLED, PROJECTED = ("Unpooled", False), ("EndToken", True)


class Chosen(Protocol):
    """What a run takes of a text model: see ``ldm/text/pretrained.py``."""

    @property
    def layer(self) -> int: ...
    @property
    def final_norm(self) -> bool: ...
    @property
    def pooling(self) -> Any: ...
    @property
    def attends_padding(self) -> bool: ...
    @property
    def lowercase(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a pipeline takes of one text model.

    Attributes:
        layer: From the end; None where its tokens are not taken.
        final_norm: Whether the last norm follows.
        pooling: Class and projection of the pooled vector, as ``ldm/text/pooling.py`` calls them; None for any, where
            the pipeline has no use for one.
        attends_padding: Whether words look at padding; None where that makes no difference.
        mask_by_config: Padding is masked where the model's config says so.
        lowercase: Whether captions come in lower case; None where the tokenizer does that in any case.
    """

    layer: int | None = -1
    final_norm: bool = True
    pooling: tuple[str, bool] | None = None
    attends_padding: bool | None = True
    mask_by_config: bool = False
    lowercase: bool | None = None

    def misfits(self, text: Chosen) -> Iterator[tuple[str, Any, Any]]:
        """(what, the run's, the pipeline's) of all that differs and that no change of the model can mend."""
        ours = type(text.pooling).__name__, text.pooling.projected
        if self.pooling is not None and ours != self.pooling:
            yield "pooling", _pooled(ours), _pooled(self.pooling)
        if self.layer is not None:
            if text.final_norm != self.final_norm:
                yield "final_norm", text.final_norm, self.final_norm
            # A model without its last layers has a deeper one at the same place, but pools that one too.
            elif self.unused_layers(text) < 0 or (self.unused_layers(text) and not self.pools_nothing):
                yield "layer", text.layer, self.layer
        masks = self.attends_padding is not None and not self.mask_by_config
        if masks and text.attends_padding != self.attends_padding:
            yield "attends_padding", text.attends_padding, self.attends_padding
        if self.lowercase is not None and text.lowercase != self.lowercase:
            yield "lowercase", text.lowercase, self.lowercase

    def unused_layers(self, text: Chosen) -> int:
        """How many of the model's last layers to leave out, for the pipeline to take the run's."""
        return 0 if self.layer is None else self.layer - text.layer

    @property
    def pools_nothing(self) -> bool:
        return self.pooling in (None, UNPOOLED)


def _pooled(pooling: tuple[str, bool]) -> str:
    name, projected = pooling
    return f"{name}, projected" if projected else name


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
        arrangement: How its text models are joined, in the words of ``ldm/text/pretrained.py``.
        takes: What it takes of each, in the order of ``text``.
        asks: What its ``encode_prompt`` is told besides the prompt, to give no negative one ...
        answers: ... and which fields of a ``Conditioning`` come back, in order; "" for what is none.
        usual_length: What its call's ``max_sequence_length`` is unless told otherwise; None where it has no such thing.
        longest: The most that may be.
        also_told: Further options for prompts to be read as in training.
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
    arrangement: str = ""
    takes: tuple[Taken, ...] = ()
    asks: Mapping[str, Any] = field(default_factory=dict)
    answers: tuple[str, ...] = ("tokens", "", "pooled")
    usual_length: int | None = None
    longest: int | None = None
    also_told: Mapping[str, Any] = field(default_factory=dict)
    flow: bool = False
    shifts: bool = False

    @property
    def text_encoders(self) -> list[str]:
        return [name for name in self.text if name.startswith("text_encoder")]


STABLE_DIFFUSION = Pipeline(
    class_name="StableDiffusionPipeline",
    network_class="UNet2DConditionModel",
    network="unet",
    text={"text_encoder": CLIP, "tokenizer": CLIP_WORDS},
    arrangement="clip",
    takes=(Taken(mask_by_config=True),),
    asks={"num_images_per_prompt": 1, "do_classifier_free_guidance": False},
    answers=("tokens",),
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
    arrangement="clip beside clip",
    takes=(
        Taken(layer=-2, final_norm=False, pooling=UNPOOLED),
        Taken(layer=-2, final_norm=False, pooling=PROJECTED),
    ),
    asks={"do_classifier_free_guidance": False},
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
        arrangement="clip beside clip, then t5",
        takes=(
            Taken(layer=-2, final_norm=False, pooling=PROJECTED),
            Taken(layer=-2, final_norm=False, pooling=PROJECTED),
            Taken(pooling=UNPOOLED, lowercase=False),
        ),
        asks={"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False},
        usual_length=256,
        longest=512,
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
        arrangement="clip pooled only, then t5",
        takes=(
            Taken(layer=None, pooling=("EndToken", False), attends_padding=None),
            Taken(pooling=UNPOOLED, lowercase=False),
        ),
        asks={"prompt_2": None},
        answers=("tokens", "pooled"),
        usual_length=512,
        longest=512,
        idle=("image_encoder", "feature_extractor"),
        told=("prompt_embeds", "pooled_prompt_embeds"),
        flow=True,
        shifts=True,
    ),
    Pipeline(
        class_name="PixArtAlphaPipeline",
        network_class="PixArtTransformer2DModel",
        text={"text_encoder": T5, "tokenizer": T5_WORDS},
        arrangement="t5",
        takes=(Taken(attends_padding=False, lowercase=True),),
        asks={"do_classifier_free_guidance": False},
        answers=("tokens", "mask"),
        usual_length=120,
        also_told={"clean_caption": False},
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
