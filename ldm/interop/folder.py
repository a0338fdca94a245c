"""Folders as diffusers writes them: config.json beside safetensors, in one file or in shards with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.interop.catalogue import map_for
from ldm.interop.weights import to_ours, to_theirs

STEM = "diffusion_pytorch_model"
VERSION = "0.33.0"  # the diffusers whose folders these are; later ones read them
MAX_SHARD_BYTES = 10_000_000_000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is no JSON, or no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: is {path.parent} a folder as diffusers writes it, copied whole?"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a mapping, not a {type(content).__name__}")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, mapped from the file until they are used.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is not readable.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); was it copied whole?"
        ) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a component's folder: one file, or the shards that an index names.

    Where there is only a variant, ``diffusion_pytorch_model.fp16.safetensors``, that one is read.

    Raises:
        FileNotFoundError: There are no safetensors, or a shard is missing.
        ValueError: There are several variants to choose from, or a file is not readable.
    """
    for index in (
        folder / f"{STEM}.safetensors.index.json",
        *sorted(folder.glob(f"{STEM}.safetensors.index.*.json")),
    ):
        if index.is_file():
            placed = read_json(index)["weight_map"]
            shards = {name: read_tensors(folder / name) for name in sorted(set(placed.values()))}
            return {name: shards[shard][name] for name, shard in placed.items()}
    plain = folder / f"{STEM}.safetensors"
    found = [plain] if plain.is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        others = sorted(path.name for pattern in ("*.bin", "*.ckpt", "*.pt") for path in folder.glob(pattern))
        hint = (
            f"; {others[0]} is a pickle, which is not read here: save it as safetensors first"
            if others
            else ""
        )
        raise FileNotFoundError(f"{folder} holds no safetensors{hint}")
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds several files of weights ({', '.join(p.name for p in found)}): keep one"
        )
    return read_tensors(found[0])


def read_config(folder: Path) -> tuple[Any, dict[str, Any]]:
    """(the map of its class, its config) of a component's folder.

    Raises:
        FileNotFoundError: There is no config.json.
        ValueError: It names no class, or one that has no counterpart here.
    """
    config = read_json(folder / "config.json")
    if "_class_name" not in config:
        raise ValueError(f"{folder / 'config.json'} names no _class_name: it is no component of diffusers")
    return map_for(config["_class_name"]), config


def read_component(folder: Path) -> nn.Module:
    """A network of diffusers as ours, in evaluation mode, with their weights in their precision.

    Raises:
        FileNotFoundError: Config or weights are missing.
        ValueError: The class has no counterpart here, or config or weights do not fit.
    """
    found, config = read_config(folder)
    with torch.device("meta"):  # nothing is drawn at random that is then thrown away
        network = found.build(config)
    return holding(network, found, read_weights(folder))


def holding(network: nn.Module, found: Any, theirs: Mapping[str, Tensor]) -> nn.Module:
    """``network``, which may be on the meta device, with their tensors in place of its own."""
    present = found.present_names(theirs) if hasattr(found, "present_names") else theirs
    network.load_state_dict(to_ours(found.rules(network), present, network), assign=True)
    return network.eval()


def write_component(
    folder: Path,
    found: Any,
    network: nn.Module,
    config: Mapping[str, Any],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json and the network's tensors by their names."""
    write_json(
        folder / "config.json", {"_class_name": found.class_name, "_diffusers_version": VERSION, **config}
    )
    tensors = {name: x.cpu() for name, x in to_theirs(found.rules(network), network).items()}
    write_weights(folder, tensors, max_shard_bytes=max_shard_bytes)


def write_weights(
    folder: Path, tensors: Mapping[str, Tensor], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """One file, or numbered shards of at most ``max_shard_bytes`` with an index."""
    shards = list(_shards(tensors, max_shard_bytes))
    if len(shards) == 1:
        save_file(shards[0], folder / f"{STEM}.safetensors", metadata={"format": "pt"})
        return
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{STEM}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(shard, name)
    total = sum(x.numel() * x.element_size() for x in tensors.values())
    write_json(
        folder / f"{STEM}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": placed}
    )


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shard and filled + size > max_bytes:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += size
    yield shard


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
