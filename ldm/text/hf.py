"""Text models of Hugging Face: the T5 family, CLIP's text side, and any other that gives each token a vector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.needs import Need, package, refuse_unmet
from ldm.text.files import PretrainedFolder
from ldm.text.frozen import (
    DTYPES,
    Dtype,
    FrozenTextEncoder,
    check_vocabulary,
    fixed_draws,
    layer_index,
    on_meta,
)
from ldm.text.pooling import Pooling, Unpooled
from ldm.text.pretrained import PretrainedText, TextSide
from ldm.text.tokenizers import Bytes, Tokenized, Tokenizer

CLIP = "clip_text_model"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A text model without its weights.

    Args:
        model_type: Which, as in config.json: "t5", "clip_text_model".
        settings: What in config.json differs from that model's defaults.
    """

    model_type: str
    settings: dict[str, int | float | str | bool] = field(default_factory=dict)

    def config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **self.settings)

    def refuse_other(self, config: Any, folder: Path) -> None:
        """
        Raises:
            ValueError: A folder's config.json says otherwise.
        """
        stated = {"model_type": self.model_type, **self.settings}
        wrong = [
            f"{k}={getattr(config, k, None)}, not {v}"
            for k, v in stated.items()
            if getattr(config, k, None) != v
        ]
        if wrong:
            raise ValueError(
                f"{folder} holds another model than architecture says: {', '.join(wrong[:4])}; give the folder of this "
                f"model, or architecture=null to take what config.json says"
            )


class HuggingFaceText(FrozenTextEncoder):
    """Captions -> Conditioning by a model of transformers.

    Args:
        weights: Where the model and its tokenizer are; None for random weights, the same each time.
        architecture: The model's; None takes the config.json beside the weights. Stated, it is checked against that,
            and the model can be built without any file: on the meta device, or with random weights.
        tokenizer: None for the one beside the weights; for random weights, bytes.
        length: L.
        layer: Which layer's output, from the end: -1 the last, -2 the one before it.
        final_norm: Pass it through the model's last norm.
        pooling: One vector of the last layer's; ``Unpooled`` when None.
        padding: The token that fills up; None for the tokenizer's own.
        attends_padding: Let the model attend to padding like to words, as pipelines of SD3 and Flux do. PixArt's mask
            it. CLIP's text side cannot look ahead, so there only padding itself is changed by this.
        lowercase: Lower the case of captions first, as PixArt's pipeline does.
        dtype: Of the weights and of what is computed. T5 was trained in bfloat16 and overflows in float16.
        batch_size: How many captions are encoded at once; None for all.
        width: D, stated for networks' configs to refer to, and checked; None leaves it unsaid.
        pooled_width: P, likewise.

    Raises:
        MissingNeeds: Files or the package transformers are not there.
        ValueError: Neither weights nor architecture, or they disagree; a layer that is not there.
    """

    def __init__(
        self,
        *,
        weights: PretrainedFolder | None,
        architecture: Architecture | None = None,
        tokenizer: Tokenizer | None = None,
        length: int,
        layer: int = -1,
        final_norm: bool = True,
        pooling: Pooling | None = None,
        padding: int | None = None,
        attends_padding: bool = False,
        lowercase: bool = False,
        dtype: Dtype = "float32",
        batch_size: int | None = None,
        width: int | None = None,
        pooled_width: int | None = None,
    ) -> None:
        if weights is None and architecture is None:
            raise ValueError("weights=null makes a model of random weights, and needs its architecture")
        refuse_unmet([package("transformers", extra="text")])
        stands_alone = weights is None or on_meta()
        if tokenizer is None:
            beside = None if weights is None or stands_alone else HuggingFaceTokenizer(folder=weights)
            tokenizer = beside or Bytes()
        super().__init__(
            tokenizer=tokenizer,
            length=length,
            padding=padding,
            lowercase=lowercase,
            dtype=dtype,
            batch_size=batch_size,
            stated=(width, pooled_width),
        )
        self.layer, self.final_norm, self.attends_padding = layer, final_norm, attends_padding
        self.pooling = pooling or Unpooled()
        projected = self.pooling.projected
        if architecture is not None and stands_alone:
            config = architecture.config()
        else:
            assert weights is not None
            config = _config(weights.model_folder(), architecture)
        if weights is None or stands_alone:
            with fixed_draws():
                self.model = _random(config, projected=projected).to(DTYPES[dtype])
        else:
            self.model = _model_class(config, projected=projected).from_pretrained(
                weights.model_folder(),
                config=config,
                dtype=DTYPES[dtype],
                variant=weights.variant,
                local_files_only=True,
            )
        self.num_layers = int(config.num_hidden_layers)
        layer_index(layer, self.num_layers)
        self._norm()
        if not on_meta():
            check_vocabulary(tokenizer, config.vocab_size, padding)
        places = getattr(config, "max_position_embeddings", None)
        if places is not None and length > places:
            raise ValueError(f"length={length} is more than the {places} positions of this model")
        self.width = int(config.hidden_size)
        probe = self.pooling(torch.zeros(1, 1, self.width), torch.ones(1, 1, dtype=torch.bool))
        self.pooled_width = int(config.projection_dim) if self.pooling.projected else probe.shape[-1]
        self.finish()

    def describe(self) -> dict[str, Any]:
        model: Any = self.model
        return {
            "model": model.config.model_type,
            "num_layers": self.num_layers,
            "layer": self.layer,
            "final_norm": self.final_norm,
            "pooling": str(self.pooling),
            "attends_padding": self.attends_padding,
        }

    def text_side(self) -> TextSide:
        """Itself, in transformers' classes.

        Raises:
            ValueError: Its tokenizer has no class there.
        """
        tokenizer, padding, model = self.tokenizer, self.padding, cast(Any, self.model)
        if not isinstance(tokenizer, HuggingFaceTokenizer) or padding is None:
            raise ValueError(f"transformers has no class for the tokenizer {type(tokenizer).__name__}")
        text = PretrainedText(
            model=lambda: model,
            save_tokenizer=lambda folder: tokenizer.save(folder, length=self.length, padding=padding),
            dtype=DTYPES[self.dtype],
            layer=self.layer,
            final_norm=self.final_norm,
            pooling=self.pooling,
            length=self.length,
            attends_padding=self.attends_padding,
            lowercase=self.lowercase,
        )
        return TextSide((text,), "clip" if model.config.model_type == CLIP else str(model.config.model_type))

    def encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        everything = (
            self.attends_padding or mask.is_meta
        )  # transformers looks into masks, and meta has no values
        norm, before_norm = self._norm(), list[Tensor]()
        hook = (
            norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0])) if norm else None
        )
        try:
            out = model(
                input_ids=ids,
                attention_mask=None if everything else mask.long(),
                output_hidden_states=self.layer != -1,
            )
        finally:
            if hook is not None:
                hook.remove()
        last = out.last_hidden_state  # (B, L, D)
        if self.layer == -1:
            tokens = last if self.final_norm else before_norm[0]
        else:
            tokens = out.hidden_states[self.layer]
            tokens = norm(tokens) if norm is not None and self.final_norm else tokens
        pooled = self.pooling(last, mask)  # (B, D)
        return tokens, model.text_projection(pooled) if self.pooling.projected else pooled

    def _norm(self) -> nn.Module | None:
        """The norm behind the last layer, where it is needed by itself.

        Raises:
            ValueError: It is needed, and this model is not known well enough to find it.
        """
        if self.final_norm == (self.layer == -1):
            return None
        found = [m for name, m in self.model.named_modules() if name.split(".")[-1] == "final_layer_norm"]
        if len(found) != 1:
            raise ValueError(
                f"where the last norm of {type(self.model).__name__} stands is not known here: use layer=-1 with "
                f"final_norm=true, or another layer with final_norm=false"
            )
        return found[0]


def _model_class(config: Any, *, projected: bool) -> Any:
    import transformers

    if config.model_type == CLIP:
        return transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    if projected:
        raise ValueError(f"pooling.projected=true: {config.model_type} has no text projection, only CLIP has")
    known = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    if config.model_type in known:
        return transformers.AutoModelForTextEncoding
    return transformers.AutoModel


def _random(config: Any, *, projected: bool) -> nn.Module:
    made = _model_class(config, projected=projected)
    return made(config) if config.model_type == CLIP else made.from_config(config)


def without_weights(architecture: Architecture, *, projected: bool) -> nn.Module:
    """A model on the meta device: nothing is drawn at random that is then replaced."""
    with torch.device("meta"):
        return _random(architecture.config(), projected=projected)


def _config(folder: Path, architecture: Architecture | None) -> Any:
    """What a folder's config.json says."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config = config.text_config if config.model_type == "clip" else config  # CLIP whole: its text side
    if architecture is not None:
        architecture.refuse_other(config, folder)
    return config


@dataclass(frozen=True, kw_only=True)
class HuggingFaceTokenizer:
    """A tokenizer of transformers, from a folder.

    Args:
        folder: Where it is; of it only the tokenizer's files are read.
    """

    folder: PretrainedFolder

    def needs(self) -> list[Need]:
        library = package("transformers", extra="text")
        return [library, *self.folder.tokenizer_needs()] if library.is_met else [library]

    @cached_property
    def _tokenizer(self) -> Any:
        os.environ.setdefault(
            "TOKENIZERS_PARALLELISM", "false"
        )  # data workers are forked after its first use
        folder = self.folder.tokenizer_folder()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    @property
    def padding(self) -> int:
        own = self._tokenizer.pad_token_id
        return own if own is not None else self._tokenizer.eos_token_id

    def __call__(self, captions: Sequence[str], length: int) -> Tokenized:
        rows = self._tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
        lengths = [len(row) for row in rows]
        long = [i for i, row in enumerate(rows) if len(row) > length]
        if long:
            texts = [captions[i] for i in long]
            cut = self._tokenizer(texts, truncation=True, max_length=length)["input_ids"]
            for i, row in zip(long, cut, strict=True):
                rows[i] = row
        return Tokenized(rows, lengths)

    def save(self, folder: Path, *, length: int, padding: int) -> str:
        """Write its files with another length and padding; returns the name of its class."""
        from transformers import AutoTokenizer

        place = self.folder.tokenizer_folder()
        words = AutoTokenizer.from_pretrained(place, local_files_only=True, model_max_length=length)
        words.pad_token = words.convert_ids_to_tokens(padding)
        words.save_pretrained(folder)
        return type(words).__name__
