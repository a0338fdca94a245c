"""Trained parts in one safetensors file by our own names: what ``ldm import`` writes and ``init_from`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = "ldm-weights-1"
FILE = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """State dicts by the name of the part, and the autoencoder on whose latents they were trained."""

    parts: dict[str, dict[str, Tensor]]  # "network", and where it was trained too, "text_encoder"
    codec_hash: str  # "" where that is not known
    text_contract: Mapping[str, Any] = field(default_factory=dict)  # empty where that is not known


def write_parts(
    path: Path,
    parts: Mapping[str, nn.Module],
    *,
    codec_hash: str,
    text_contract: Mapping[str, Any] | None = None,
) -> None:
    """Write the file beside its place, then move it there."""
    tensors = {
        f"{part}.{name}": x.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, x in module.state_dict().items()
    }
    classes = {part: f"{type(m).__module__}.{type(m).__qualname__}" for part, m in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".tmp-{path.name}")
    header = {"format": FORMAT, "parts": json.dumps(classes), "codec_hash": codec_hash}
    header["text_contract"] = json.dumps(dict(text_contract or {}))
    save_file(tensors, draft, metadata=header)
    draft.replace(path)


def read_parts(path: Path) -> Weights:
    """What ``write_parts`` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a file, or not readable.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); was it copied whole?"
        ) from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} does not hold weights by this project's names (its header says {header.get('format')!r}): "
            f"ldm import from={path} out=<folder> network=<its network> makes a file of them that does"
        )
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in json.loads(header["parts"])}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    contract = json.loads(header.get("text_contract", "{}"))
    return Weights(parts=parts, codec_hash=header.get("codec_hash", ""), text_contract=contract)
