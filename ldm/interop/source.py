"""What published weights are read from: a folder of diffusers, one component of it, or a single file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.interop.catalogue import diffusers_maps, single_file_maps
from ldm.interop.comfyui_format import family_of
from ldm.interop.compvis import AVERAGE, CompVisAutoencoder, averaged_unet, left_alone
from ldm.interop.diffusers_format import INDEX
from ldm.interop.folder import holding, read_config, read_json, read_tensors, read_weights
from ldm.interop.weights import to_ours
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.autoencoder_base import Autoencoder


@dataclass(frozen=True)
class FoundAutoencoder:
    """An autoencoder as it was found: its map, their config, and their weights."""

    found: Any
    config: Mapping[str, Any]
    theirs: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was found.

    Attributes:
        network: Ours, with their weights in their precision; None where there is only an autoencoder.
        autoencoder: Where there is one.
        scheduler: Their scheduler_config.json, where there is one.
        sample_size: Side of the latents that it was trained at, where the config says so.
        notes: What a person should know about it, in lines.
    """

    network: nn.Module | None = None
    autoencoder: FoundAutoencoder | None = None
    scheduler: Mapping[str, Any] | None = None
    sample_size: int | None = None
    notes: tuple[str, ...] = ()


def read_source(path: Path, shape: nn.Module | None, *, averaged: bool) -> Source:
    """Read a pipeline's folder, a component's folder, or a single file.

    Args:
        path: Of the folder or file.
        shape: Our network on the meta device, to be filled; None takes its shape from the folder's config.
        averaged: Where a single file keeps both, take the averaged weights.

    Raises:
        FileNotFoundError: Something that should be there is not.
        ValueError: It is of a kind that has no counterpart here, or not of this shape.
    """
    if path.is_file():
        return _from_file(path, shape, averaged=averaged)
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder or file {path}: give a folder of diffusers or a .safetensors file"
        )
    if not (path / INDEX).is_file():
        return _component(path, shape)
    index = read_json(path / INDEX)
    name = next((name for name in ("unet", "transformer") if index.get(name, [None])[0] is not None), None)
    if name is None:
        raise ValueError(
            f"{path / INDEX} names neither a unet nor a transformer: there is no denoiser to import"
        )
    denoiser = _component(path / name, shape)
    vae = _component(path / "vae", None).autoencoder if index.get("vae", [None])[0] is not None else None
    scheduler_file = path / "scheduler" / "scheduler_config.json"
    scheduler = read_json(scheduler_file) if scheduler_file.is_file() else None
    return replace(denoiser, autoencoder=vae, scheduler=scheduler)


def _component(folder: Path, shape: nn.Module | None) -> Source:
    found, config = read_config(folder)
    if issubclass(found.network, Autoencoder):
        return Source(autoencoder=FoundAutoencoder(found, config, read_weights(folder)))
    with torch.device("meta"):
        theirs = found.build(config)
    if shape is not None:
        refuse_other_shape(found, shape, theirs, folder)
    network = holding(theirs if shape is None else shape, found, read_weights(folder))
    size = config.get("sample_size")
    return Source(network=network, sample_size=size if isinstance(size, int) else None)


def refuse_other_shape(found: Any, shape: nn.Module, theirs: nn.Module, where: Path) -> None:
    """Also where the tensors would fit: heads and positions leave no trace in their shapes.

    Raises:
        ValueError: The config's network is not that of the folder; up to three differences are named.
    """
    if not isinstance(shape, found.network):
        raise ValueError(
            f"{where} holds a {found.class_name}, here called {found.network.__name__}, but network=... is a "
            f"{type(shape).__name__}"
        )
    ours, published = found.config(shape), found.config(theirs)
    other = [f"{key}={value!r}, not {ours[key]!r}" for key, value in published.items() if ours[key] != value]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise ValueError(f"network=... is not the network in {where}: that has {', '.join(other[:3])}{more}")


def _from_file(path: Path, shape: nn.Module | None, *, averaged: bool) -> Source:
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors file; pickles (.ckpt, .bin, .pt) are not read: convert it first"
        )
    if shape is None:
        raise ValueError(
            f"{path} has no config that says what network it is of: give network=..., e.g. network=sd15"
        )
    tensors = read_tensors(path)
    notes = [note for note in (left_alone(tensors),) if note]
    if averaged and any(name.startswith(AVERAGE) for name in tensors):
        tensors = {**tensors, **averaged_unet(tensors)}
        notes.append("the averaged weights were taken; weights=online takes the others")
    best: tuple[int, Any, dict[str, Tensor]] = (0, None, {})
    candidates: list[Any] = [*single_file_maps(shape), *diffusers_maps(shape)]
    for found in candidates:
        prefix = getattr(found, "prefix", "")
        own = {name: x for name, x in tensors.items() if name.startswith(prefix)}
        own = own or {
            f"{prefix}{name}": x for name, x in tensors.items()
        }  # files of the network alone have no prefix
        known = {name for rule in found.rules(shape) for name in (*rule.theirs, *rule.copies)}
        score = len(known & own.keys())
        if score > best[0]:
            best = (score, found, own)
    _, found, own = best
    if found is None:
        raise ValueError(
            f"{path} holds nothing of a {type(shape).__name__}: its tensors are {', '.join([*tensors][:3])}"
        )
    shape.load_state_dict(to_ours(found.rules(shape), own, shape), assign=True)
    return Source(network=shape.eval(), autoencoder=_file_autoencoder(tensors, shape), notes=tuple(notes))


def _file_autoencoder(tensors: Mapping[str, Tensor], network: nn.Module) -> FoundAutoencoder | None:
    """The published autoencoder of a single file; its scaling is its family's, as the file does not say."""
    layout = CompVisAutoencoder()
    own = {name: x for name, x in tensors.items() if name.startswith(layout.prefix)}
    if not own:
        return None
    channels = own[f"{layout.prefix}decoder.conv_in.weight"].shape[1]
    factor, shift = family_of(network).scale
    config = {
        "latent_channels": channels,
        "scaling_factor": factor,
        "shift_factor": shift,
        "quant_convs": f"{layout.prefix}quant_conv.weight" in own,
    }
    return FoundAutoencoder(PublishedAutoencoder(), config, own)


@dataclass(frozen=True)
class PublishedAutoencoder:
    """The one autoencoder of single files, as ``commands.autoencoders`` asks for a map."""

    class_name: str = "AutoencoderKL"

    def build(self, config: Mapping[str, Any]) -> AutoencoderKL:
        return AutoencoderKL(
            latent_channels=config["latent_channels"],
            channels=[128, 256, 512, 512],
            quant_convs=config["quant_convs"],
        )

    def rules(self, network: nn.Module) -> Any:
        return CompVisAutoencoder().rules(network)

    def latent_scale(self, config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = config["latent_channels"]
        return (config["shift_factor"],) * channels, (1 / config["scaling_factor"],) * channels

    def present_names(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(theirs)
