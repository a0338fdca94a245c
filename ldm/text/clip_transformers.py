"""CLIP's text side in the names of transformers: the same tensors under other names, and its vocabulary as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ldm.text.hf import CLIP, Architecture, without_weights

# Beginnings of names, or names: transformers' and open_clip's.
PLACES = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.": "transformer.resblocks.",
    "final_layer_norm.": "ln_final.",
}
IN_BLOCKS = {
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
THIRDS = ("q", "k", "v")  # which open_clip has in one tensor, in this order


class Sizes(Protocol):
    """Of a CLIP's text side: see ``ldm.text.clip.ClipArchitecture``."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def projection(self) -> int: ...
    @property
    def quick_gelu(self) -> bool: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


def as_transformers(
    state: Mapping[str, Tensor], sizes: Sizes, *, projected: bool, tokens: tuple[int, int, int]
) -> Any:
    """A ``CLIPTextModel``, with its projection a ``CLIPTextModelWithProjection``.

    Args:
        state: Of open_clip's text transformer.
        sizes: Its.
        projected: With the text projection.
        tokens: (start, end, padding), as numbers.
    """
    start, end, padding = tokens
    settings: dict[str, int | float | str | bool] = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "projection_dim": sizes.projection,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.context_length,
        "hidden_act": "quick_gelu" if sizes.quick_gelu else "gelu",
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": padding,
    }
    model = without_weights(Architecture(model_type=CLIP, settings=settings), projected=projected)
    model.load_state_dict({name: renamed(name, state) for name in model.state_dict()}, assign=True)
    return model.eval().requires_grad_(False)


def renamed(name: str, state: Mapping[str, Tensor]) -> Tensor:
    """The tensor that transformers call ``name``, of those by open_clip's names."""
    if name == "text_projection.weight":
        return state["text_projection"].T.contiguous()  # theirs is a linear layer
    name = name.removeprefix("text_model.")
    theirs = next(begin for begin in PLACES if name.startswith(begin))
    ours = PLACES[theirs] + name.removeprefix(theirs)
    for third in THIRDS:
        block, found, kind = ours.partition(f".self_attn.{third}_proj.")
        if found:
            return state[f"{block}.attn.in_proj_{kind}"].chunk(3)[THIRDS.index(third)].clone()
    for part, other in IN_BLOCKS.items():
        ours = ours.replace(part, other)
    return state[ours]


def write_vocabulary(folder: Path, bpe: Any, *, length: int, tokens: tuple[int, int, int]) -> str:
    """The files of a ``CLIPTokenizer``, as published folders have them; returns the name of that class.

    Args:
        folder: Where to; made.
        bpe: open_clip's tokenizer.
        length: The most tokens of a caption.
        tokens: (start, end, padding), as numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, end, padding = spoken(bpe, tokens)
    pieces = bpe.encoder | {start: tokens[0], end: tokens[1]}
    for number in tokens[:2]:
        del pieces[bpe.decoder[number]]
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": padding}
    settings = {**special, "model_max_length": length, "tokenizer_class": "CLIPTokenizer"}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in bpe.bpe_ranks)]
    (folder / "vocab.json").write_text(json.dumps(pieces, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
    return "CLIPTokenizer"


def spoken(bpe: Any, tokens: tuple[int, int, int]) -> tuple[str, str, str]:
    """Start, end and padding as transformers write them."""
    names = {tokens[0]: "<|startoftext|>", tokens[1]: "<|endoftext|>"}
    start, end, padding = (names.get(number) or str(bpe.decoder[number]) for number in tokens)
    return start, end, padding
