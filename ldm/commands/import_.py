"""``ldm import``: published weights, translated once, to go on training or to sample with."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from torch import nn

from ldm.codecs.kl import read_autoencoder
from ldm.commands import compose
from ldm.commands.autoencoders import convert_autoencoder
from ldm.commands.export import remove
from ldm.commands.needs import refuse_missing
from ldm.diffusion.diffusion import Diffusion
from ldm.interop.formats import AUTOENCODER
from ldm.interop.native import FILE, write_parts
from ldm.interop.schedulers import differences, scheduler_config
from ldm.interop.source import Source, read_source
from ldm.training.folders import folder_name, point, write_checkpoint
from ldm.training.run import RunFolder, start_run


def import_(
    *,
    from_: str,
    out: str,
    network: DictConfig | None = None,
    text_encoder: DictConfig | None = None,
    diffusion: DictConfig,
    sampler: DictConfig,
    grid: DictConfig,
    guidance: DictConfig,
    image_size: int | None = None,
    weights: str = "ema",
    allow_download: bool = False,
) -> None:
    """Translate a folder of diffusers, one component of it, or a single .safetensors file.

    Written are ``weights.safetensors``, for a training with init_from=<out>, and ``autoencoder.safetensors`` where the
    source has an autoencoder, for codec=kl codec.path=<it>. With a text encoder that needs no training, <out> becomes a
    run that sample.py, ldm evaluate and ldm export take like any other, and init_from too.

    Args:
        from: a folder that diffusers wrote (a pipeline's or a component's), or a file in an original layout.
        out: the folder to write; must not exist yet.
        network: network=sd15 and so on; may be left out for folders, which say themselves what they hold.
        text_encoder: what the network was trained with, for sampling.
        diffusion: what the network was trained with, for sampling; held against the folder's scheduler.
        sampler: for sampling, as are grid and guidance.
        grid: see sampler.
        guidance: see sampler.
        image_size: side of the pictures in pixels, for sampling.
        weights: "ema" takes the averaged weights where a single file keeps both, "online" the others.
        allow_download: the text encoder's weights may be downloaded where they are not on this machine.

    Raises:
        FileExistsError: ``out`` is there already.
        FileNotFoundError: The source lacks something.
        MissingNeeds: The text encoder's weights are not on this machine.
        ValueError: The source has no counterpart here, or is not what the network or the diffusion says.
    """
    console = Console(soft_wrap=True, highlight=False)
    place = Path(out)
    if place.exists():
        raise FileExistsError(f"{place} is there already: give another out=..., or remove it first")
    if weights not in ("ema", "online"):
        raise ValueError(f"weights={weights!r} is not known: say 'ema' or 'online'")
    if text_encoder is not None:
        resolved = OmegaConf.to_container(text_encoder, resolve=True)
        refuse_missing(OmegaConf.create({"text_encoder": resolved}))
    source = read_source(Path(from_), on_meta(network), averaged=weights == "ema")
    parts = {"diffusion": diffusion, "network": network, "text_encoder": text_encoder}
    parts |= {"sampler": sampler, "grid": grid, "guidance": guidance}
    draft = place.with_name(f".tmp-{place.name}")
    remove(draft)
    try:
        if text_encoder is None:
            write_weights(source, draft)
        else:
            write_run(source, draft, place, parts=parts, image_size=image_size)
        os.replace(draft, place)
    finally:
        remove(draft)
    for note in (*source.notes, *said(source, place, is_run=text_encoder is not None)):
        console.print(note)


def on_meta(network: DictConfig | None) -> nn.Module | None:
    """The network of a config without weights."""
    if network is None:
        return None
    with torch.device("meta"):
        return instantiate(network, _convert_="all")


def write_weights(source: Source, folder: Path) -> None:
    """``weights.safetensors`` and ``autoencoder.safetensors``, as far as the source has them."""
    folder.mkdir(parents=True)
    codec_hash = write_codec(source, folder)
    if source.network is not None:
        write_parts(folder / FILE, {"network": source.network}, codec_hash=codec_hash)


def write_codec(source: Source, folder: Path) -> str:
    """The autoencoder's file, where there is one; returns its content hash, else ""."""
    if source.autoencoder is None:
        return ""
    vae = source.autoencoder
    return convert_autoencoder(
        vae.found, config=vae.config, theirs=vae.theirs, out=folder / AUTOENCODER
    ).content_hash


def write_run(
    source: Source,
    folder: Path,
    place: Path,
    *,
    parts: Mapping[str, DictConfig | None],
    image_size: int | None,
) -> None:
    """A run that has seen no pictures: its config, its codec and a checkpoint of the source's weights.

    Args:
        source: Has a network and an autoencoder.
        folder: Where to write.
        place: Where the folder will stand when it is complete.
        parts: Groups of the training's config.
        image_size: Side of the pictures in pixels; None takes the one that the source was trained at.
    """
    if parts["network"] is None or source.network is None or source.autoencoder is None:
        raise ValueError(
            "a run to sample from needs network=<its name> and a source with network and autoencoder; without "
            "text_encoder=... the weights alone are written"
        )
    config = run_config(parts, place)
    folder.mkdir(parents=True)
    start_run(folder, config=config, command=["ldm", *sys.argv[1:]])
    write_codec(source, folder)
    config.codec.path = str(folder / AUTOENCODER)  # where it is for now
    downsample = read_autoencoder(folder / AUTOENCODER)[1].downsample
    side = image_size or (source.sample_size or 0) * downsample
    if not side:
        raise ValueError("the source does not say at what size it was trained: give image_size=...")
    config.data.image_size = side
    module = instantiate(config.task, _convert_="all")
    if any(parameter.requires_grad for parameter in module.text_encoder.parameters()):
        raise ValueError(
            f"text_encoder: a {type(module.text_encoder).__name__} learns with the network and starts from nothing, so "
            f"there is nothing to sample with; leave it out, and train with init_from={place}"
        )
    refuse_other_process(source, module.diffusion)
    module.network.load_state_dict(source.network.state_dict())
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    checkpoints = RunFolder(folder).checkpoints
    write_checkpoint(checkpoint, checkpoints / folder_name(0), about={"images_seen": 0})
    point(checkpoints / "last", folder_name(0))
    config.codec.path = str(place / AUTOENCODER)
    for name, resolve in (("config.yaml", False), ("resolved.yaml", True)):
        (folder / name).write_text(OmegaConf.to_yaml(config, resolve=resolve), encoding="utf-8")


def run_config(parts: Mapping[str, DictConfig | None], place: Path) -> DictConfig:
    """The config of a training around these parts, with no data to train on."""
    config = compose.compose("train", ["data.train_shards=[]", "callbacks.samples.prompts=[]"]).config
    with open_dict(config):
        config.name, config.run_id = place.absolute().parent.name, place.name
        for group, part in parts.items():
            config[group] = OmegaConf.create(OmegaConf.to_container(part, resolve=True))
        config.codec = {"_target_": "ldm.codecs.kl.KLCodec", "path": str(place / AUTOENCODER)}
    return config


def refuse_other_process(source: Source, diffusion: Diffusion) -> None:
    """
    Raises:
        ValueError: The source was trained with other noise levels, or to predict something else.
    """
    if source.scheduler is None:
        return
    native = "FlowMatch" in source.scheduler.get("_class_name", "")
    ours = scheduler_config(
        diffusion.schedule, diffusion.parameterization, diffusion.t_range, native_flow=native
    )
    if other := differences(ours, source.scheduler):
        raise ValueError(
            f"diffusion=... is not what this network was trained with: its scheduler has {'; '.join(other)}"
        )


def said(source: Source, place: Path, *, is_run: bool) -> list[str]:
    """What was written and what to do with it."""
    lines = []
    if source.network is not None:
        count = sum(parameter.numel() for parameter in source.network.parameters())
        lines.append(f"{place}: a {type(source.network).__name__} of {count:,} parameters")
        lines.append(f"train on: python train.py init_from={place} ...")
    if is_run:
        lines.append(f"sample: python sample.py run={place} prompts=[...]")
    if source.autoencoder is not None:
        lines.append(f"its autoencoder: codec=kl codec.path={place / AUTOENCODER}")
    return lines
