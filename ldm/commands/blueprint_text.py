"""Text encoders of a plan, from their configs: stand-ins where the real ones would bring large packages along."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from ldm.planning.standins_text import PlannedJoined, planned_clip, planned_t5

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLIP, HUGGING_FACE = "ldm.text.clip.ClipText", "ldm.text.hf.HuggingFaceText"
SIZES = "ldm.text.clip.ClipArchitecture"
SIDE_BY_SIDE, AFTER, POOLED_ONLY = (
    f"ldm.text.concat.{name}" for name in ("SideBySide", "OneAfterTheOther", "PooledOnly")
)
T5_SIZES = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size")


def planned_text(config: DictConfig) -> nn.Module:
    """The encoder of a config on the meta device; what is not known here is built as it is."""
    target = config["_target_"]
    if target in (SIDE_BY_SIDE, AFTER):
        parts: list[Any] = [planned_text(one) for one in config.encoders.values()]
        widths, lengths = [part.width for part in parts], [part.length for part in parts]
        return PlannedJoined(
            parts,
            width=sum(widths) if target == SIDE_BY_SIDE else max(widths),
            pooled_width=sum(part.pooled_width for part in parts),
            length=max(lengths) if target == SIDE_BY_SIDE else sum(lengths),
        )
    if target == POOLED_ONLY:
        part: Any = planned_text(config.encoder)
        return PlannedJoined([part], width=0, pooled_width=part.pooled_width, length=0)
    architecture = config.get("architecture") or {}
    if target == CLIP and architecture.get("_target_") == SIZES:
        return _clip(config)
    settings = architecture.get("settings") or {}
    gated = settings.get("feed_forward_proj") == "gated-gelu"
    if target == HUGGING_FACE and architecture.get("model_type") == "t5" and gated:
        return _t5(config)
    with torch.device("meta"):
        return instantiate(config, _convert_="all")


def _clip(config: DictConfig) -> nn.Module:
    sizes = instantiate(config.architecture)
    pooling = config.get("pooling") or {}
    pooled = 0 if str(pooling.get("_target_", "Unpooled")).endswith("Unpooled") else int(sizes.width)
    with torch.device("meta"):
        return planned_clip(
            width=sizes.width,
            heads=sizes.heads,
            layers=sizes.layers,
            projection=sizes.projection,
            vocab_size=sizes.vocab_size,
            context_length=sizes.context_length,
            pooled_width=sizes.projection if pooled and pooling.get("projected") else pooled,
            length=config.get("length", 77),
            num_run=None if pooled else sizes.layers + config.get("layer", -1) + 1,
            dtype=DTYPES[config.get("dtype", "float32")],
        )


def _t5(config: DictConfig) -> nn.Module:
    settings = config.architecture.settings
    pooling = config.get("pooling") or {}
    unpooled = str(pooling.get("_target_", "Unpooled")).endswith("Unpooled")
    with torch.device("meta"):
        return planned_t5(
            **{name: int(settings[name]) for name in T5_SIZES},
            pooled_width=0 if unpooled else int(settings.d_model),
            length=int(config.length),
            dtype=DTYPES[config.get("dtype", "float32")],
        )
