"""CLIP's text side as open_clip has it: any of its models, pretrained tags and checkpoint files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.needs import Need, package, refuse_unmet
from ldm.nn.fitting import misfits
from ldm.text.clip_catalogue import catalogue
from ldm.text.clip_checkpoint import read_text_side
from ldm.text.clip_transformers import as_transformers, spoken, write_vocabulary
from ldm.text.files import cache_folder, downloading
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
from ldm.text.tokenizers import Tokenized

PACKAGE = "open_clip_torch"
START, END = 49406, 49407  # in CLIP's vocabulary, the last two of 49,408


class ClipModel(Protocol):
    """A CLIP's text side without its weights."""

    def sizes(self) -> ClipArchitecture: ...


@dataclass(frozen=True, kw_only=True)
class ClipArchitecture:
    """CLIP's causal transformer over text (2103.00020, section 2.4).

    Args:
        width: D.
        heads: Divides ``width``.
        layers: Number of blocks.
        projection: Width of the space that CLIP shares between texts and pictures: P where pooling is projected.
        quick_gelu: x * sigmoid(1.702 x) as activation, as OpenAI's own have, in place of GELU.
        context_length: The most tokens there are positions for.
        vocab_size: Rows of the embedding.
    """

    width: int
    heads: int
    layers: int
    projection: int
    quick_gelu: bool = False
    context_length: int = 77
    vocab_size: int = 49408

    def sizes(self) -> ClipArchitecture:
        return self


@dataclass(frozen=True, kw_only=True)
class NamedClip:
    """The text side of one of open_clip's models.

    Args:
        name: As open_clip.list_models() has it: "ViT-B-32-quickgelu".

    Raises:
        ValueError: There is no such model, or its text side is not CLIP's own.
    """

    name: str

    def sizes(self) -> ClipArchitecture:
        refuse_unmet([package(PACKAGE, extra="text")])
        import open_clip

        config = open_clip.get_model_config(self.name)
        if config is None:
            raise ValueError(f"open_clip has no model {self.name!r}; open_clip.list_models() names them")
        text = config["text_cfg"]
        known = {"width", "heads", "layers", "context_length", "vocab_size"}
        if others := sorted(set(text) - known):
            raise ValueError(
                f"the text side of {self.name} is not CLIP's own (it sets {', '.join(others)}); if it is on the "
                f"Hugging Face hub, use ldm.text.hf.HuggingFaceText"
            )
        return ClipArchitecture(
            **text, projection=config["embed_dim"], quick_gelu=config.get("quick_gelu", False)
        )


class ClipText(FrozenTextEncoder):
    """Captions -> Conditioning by the text side of a CLIP.

    Args:
        architecture: The model's.
        weights: Where they are; None for random ones, the same each time.
        length: L.
        layer: Which block's output, from the end: -1 the last, -2 the one before it.
        final_norm: Pass it through CLIP's last norm.
        pooling: One vector of the last layer's; ``Unpooled`` when None.
        padding: The token that fills up; None for the end token, as with OpenAI's models. open_clip's own have 0.
        dtype: Of the weights and of what is computed.
        batch_size: How many captions are encoded at once; None for all.
        width: D, stated for networks' configs to refer to, and checked; None leaves it unsaid.
        pooled_width: P, likewise.

    Raises:
        MissingNeeds: The weights or the package open_clip_torch are not there.
        ValueError: A layer or length that is not there, or weights of another model.
    """

    def __init__(
        self,
        *,
        architecture: ClipModel,
        weights: OpenClipWeights | None,
        length: int = 77,
        layer: int = -1,
        final_norm: bool = True,
        pooling: Pooling | None = None,
        padding: int | None = None,
        dtype: Dtype = "float32",
        batch_size: int | None = None,
        width: int | None = None,
        pooled_width: int | None = None,
    ) -> None:
        refuse_unmet([package(PACKAGE, extra="text")])
        tokenizer = ClipTokenizer()
        super().__init__(
            tokenizer=tokenizer,
            length=length,
            padding=padding,
            lowercase=False,  # its tokenizer does
            dtype=dtype,
            batch_size=batch_size,
            stated=(width, pooled_width),
        )
        self.sizes = sizes = architecture.sizes()
        self.layer, self.final_norm, self.pooling = layer, final_norm, pooling or Unpooled()
        self.num_blocks = layer_index(layer, sizes.layers)
        check_vocabulary(tokenizer, sizes.vocab_size, padding)
        if length > sizes.context_length:
            raise ValueError(
                f"length={length} is more than the {sizes.context_length} positions of this model"
            )
        if weights is None or on_meta():
            with fixed_draws():
                self.tower = tower(sizes, dtype).to(DTYPES[dtype])
        else:
            state = weights.read()
            with torch.device("meta"):
                self.tower = tower(sizes, dtype)
            _load(self.tower, state, weights, DTYPES[dtype])
        self.width = sizes.width
        probe = self.pooling(torch.zeros(1, 1, sizes.width), torch.ones(1, 1, dtype=torch.bool))
        self.pooled_width = sizes.projection if self.pooling.projected else probe.shape[-1]
        causal = torch.full((length, length), -torch.inf, dtype=DTYPES[dtype]).triu(1)
        self.register_buffer("causal", causal, persistent=False)
        self.causal: Tensor
        self.finish()

    def describe(self) -> dict[str, Any]:
        return {
            "model": asdict(self.sizes),
            "layer": self.layer,
            "final_norm": self.final_norm,
            "pooling": str(self.pooling),
        }

    def text_side(self) -> TextSide:
        """Itself, in transformers' classes."""
        tokens = START, END, END if self.padding is None else self.padding
        text = PretrainedText(
            model=lambda: as_transformers(
                self.tower.state_dict(), self.sizes, projected=self.pooling.projected, tokens=tokens
            ),
            save_tokenizer=lambda folder: write_vocabulary(folder, _bpe(), length=self.length, tokens=tokens),
            dtype=DTYPES[self.dtype],
            layer=self.layer,
            final_norm=self.final_norm,
            pooling=self.pooling,
            length=self.length,
            attends_padding=True,
            lowercase=False,
            caution=""
            if tokens[2] == END
            else f"takes {spoken(_bpe(), tokens)[2]!r} in a prompt for padding",
        )
        return TextSide((text,), "clip")

    def encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        clip: Any = self.tower
        x = clip.token_embedding(ids) + clip.positional_embedding[: self.length]  # (B, L, D)
        blocks = clip.transformer.resblocks
        for block in blocks[: self.num_blocks]:
            x = block(x, attn_mask=self.causal)
        tokens = clip.ln_final(x) if self.final_norm else x
        if self.pooled_width:
            for block in blocks[self.num_blocks :]:
                x = block(x, attn_mask=self.causal)
            x = clip.ln_final(x)
        pooled = self.pooling(x, mask)  # (B, D)
        return tokens, pooled @ clip.text_projection if self.pooling.projected else pooled


def tower(sizes: ClipArchitecture, dtype: Dtype) -> nn.Module:
    """open_clip's text transformer with random weights."""
    from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, TextTransformer

    return TextTransformer(
        context_length=sizes.context_length,
        vocab_size=sizes.vocab_size,
        width=sizes.width,
        heads=sizes.heads,
        layers=sizes.layers,
        output_dim=sizes.projection,
        act_layer=QuickGELU if sizes.quick_gelu else nn.GELU,
        norm_layer=LayerNorm if dtype == "float32" else LayerNormFp32,  # as open_clip does
    )


@dataclass(frozen=True, kw_only=True)
class OpenClipWeights:
    """A checkpoint of open_clip: a file, or one of its pretrained tags in the caches that open_clip itself uses.

    Args:
        path: A .safetensors, .bin or .pt file; nothing else is looked at then.
        model: open_clip's name of the model, for ``tag``.
        tag: open_clip's name of the weights: "openai", "laion2b_s32b_b79k".
        allow_download: Download what is not there. Otherwise nothing ever is.

    Raises:
        ValueError: Neither a path nor a model and a tag.
    """

    path: str | None = None
    model: str | None = None
    tag: str | None = None
    allow_download: bool = False

    def __post_init__(self) -> None:
        if self.path is None and (self.model is None or self.tag is None):
            raise ValueError("give the path of a checkpoint of open_clip, or the names of its model and tag")

    def needs(self) -> list[Need]:
        found = package(PACKAGE, extra="text")
        if not found.is_met:
            return [found]
        if self.path is not None:
            there = Path(self.path).is_file()
            return [
                found,
                Need(
                    what=f"the CLIP weights {self.path}",
                    found=self.path if there else None,
                    looked_in=(self.path,),
                    bring="copy the file there, or give its place with {key}path=...",
                ),
            ]
        repo, files, url = self._published()
        cached = self._cached()
        old = str(_clip_cache() / url.rpartition("/")[2]) if url else None
        return [
            found,
            Need(
                what=f"the CLIP weights {self.model} {self.tag}",
                found=None if cached is None else str(cached),
                looked_in=(f"{repo} in Hugging Face's cache {cache_folder()}", *([old] if old else [])),
                bring=f"where there is internet: hf download {repo} {files[0]} --local-dir clip, then copy the "
                f"file here and give {{key}}path=<file>; or let it be downloaded with allow_download=true",
                fetched=cached is None and self.allow_download,
            ),
        ]

    def read(self) -> dict[str, Tensor]:
        """The weights of the text side, under the names of open_clip's text transformer.

        Raises:
            MissingNeeds: The file is not there.
            ValueError: It holds no CLIP.
        """
        needs = self.needs()
        refuse_unmet(needs)
        file = Path(self.path) if self.path is not None else self._cached()
        if file is None:
            with downloading(needs[-1]):
                file = self._download()
        return read_text_side(file)

    def _published(self) -> tuple[str, list[str], str]:
        """Repository on the hub, its files in the order of preference, and a URL or ""."""
        listed = catalogue()
        found = listed.get_pretrained_cfg(str(self.model), str(self.tag))
        if not found or not found.get("hf_hub"):
            tags = ", ".join(listed.list_pretrained_tags_by_model(str(self.model))) or "none"
            raise ValueError(
                f"open_clip has no weights {self.tag!r} of {self.model!r} on the Hugging Face hub; its tags: {tags}"
            )
        repo, _, file = found["hf_hub"].rpartition("/")
        names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        if file.endswith((".bin", ".pt")):
            names.insert(0, f"{Path(file).stem}.safetensors")
        return repo, names, found.get("url", "")

    def _cached(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        repo, files, url = self._published()
        places = [try_to_load_from_cache(repo, file) for file in files]
        places += [str(_clip_cache() / url.rpartition("/")[2])] if url else []
        return next((Path(p) for p in places if isinstance(p, str) and Path(p).is_file()), None)

    def _download(self) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        repo, files, _ = self._published()
        for file in files[:-1]:
            try:
                return Path(hf_hub_download(repo, file))
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(repo, files[-1]))


def _load(clip: Any, state: dict[str, Tensor], weights: OpenClipWeights, dtype: torch.dtype) -> None:
    if wrong := misfits(clip, state):
        name = weights.path or f"{weights.model} {weights.tag}"
        raise ValueError(f"the weights {name} are not of this architecture: {wrong}")
    clip.load_state_dict({name: x.to(dtype) for name, x in state.items()}, assign=True)
    clip.attn_mask = clip.build_causal_mask()  # no part of the state, so still on the meta device


def _clip_cache() -> Path:
    """Where open_clip keeps what it gets by URL."""
    return Path(os.path.expanduser("~/.cache/clip"))


class ClipTokenizer:
    """CLIP's byte-pair encoding, which open_clip brings along: nothing to download."""

    vocab_size = 49408
    padding = END

    def needs(self) -> list[Need]:
        return [package(PACKAGE, extra="text")]

    def __call__(self, captions: Sequence[str], length: int) -> Tokenized:
        words = [_words(caption) for caption in captions]
        rows = [[START, *tokens[: length - 2], END] for tokens in words]
        return Tokenized(rows, [len(tokens) + 2 for tokens in words])


@lru_cache(maxsize=65_536)
def _words(caption: str) -> tuple[int, ...]:
    return tuple(_bpe().encode(caption))


@lru_cache(maxsize=1)
def _bpe() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    bpe = SimpleTokenizer()
    repair = bpe.clean_fn

    def clean(text: str) -> str:
        # What repairs broken encodings and HTML takes longer than all the rest, and has nothing to do here.
        plain = text.isascii() and text.isprintable() and "&" not in text
        return " ".join(text.split()).lower() if plain else repair(text)

    bpe.clean_fn = clean
    return bpe
