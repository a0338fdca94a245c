"""What a training trains, without weights: its networks on the meta device, from the composed config alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ldm.codecs.kl import describe_autoencoder
from ldm.commands.blueprint_text import planned_text
from ldm.commands.needs import needs
from ldm.nn.autoencoder_base import Autoencoder
from ldm.planning.standins import PlannedCodec
from ldm.planning.subjects import AutoencoderSubject, DiffusionSubject, Subject

PUBLISHED = {4: "kl_sd", 16: "kl_sd3", 32: "dc_f32"}  # autoencoders of networks/, by latent channels
GPU_ONLY = ("ldm.nn.attention.XFormers", "ldm.nn.attention.Flex")
FUSED = "ldm.nn.attention.SDPA"
AVERAGE = "ldm.training.ema.EMA"


def blueprint(config: DictConfig, *, configs: Path) -> tuple[Subject, list[str]]:
    """What a training trains, and what had to be assumed for want of files.

    Lightning is not asked, which would take longer to import than all the rest.

    Args:
        config: A training's, checked.
        configs: The folder of all configs, where published autoencoders are described.

    Raises:
        ValueError: A task of a kind that is not known here, or parts that do not fit each other.
    """
    task = without_gpu_kernels(config.task)
    image_size = int(config.data.image_size)
    if "autoencoder" in task:
        with torch.device("meta"):
            autoencoder = built(task.autoencoder)
            adversary = built(task.adversary) if task.get("adversary") else None
        terms, notes = planned_terms(task.terms)
        disturbances = {str(name): built(x) for name, x in (task.get("disturbances") or {}).items() if x}
        return (
            AutoencoderSubject(
                autoencoder=autoencoder,
                terms=terms,
                disturbances=disturbances,
                adversary=adversary,
                image_size=image_size,
            ),
            notes,
        )
    if not {"diffusion", "network", "text_encoder", "codec"} <= set(task):
        raise ValueError(f"{task['_target_']} cannot be planned: its step is not known here")
    if task.get("objective") is not None:
        raise ValueError(
            f"{task.objective['_target_']} cannot be planned: a step of few-step training asks several networks; plan "
            f"the training of its teacher, and expect the networks' memory two or three times and 2 to 3 times its time"
        )
    codec, note = planned_codec(task.codec, task.network, configs)
    with torch.device("meta"):
        network = built(task.network)
    text_encoder = planned_text(task.text_encoder)
    diffusion = built(task.diffusion)
    if isinstance(diffusion.uncertainty, nn.Module):
        diffusion.uncertainty.to("meta")
    subject = DiffusionSubject(
        diffusion=diffusion,
        network=network,
        text_encoder=text_encoder,
        codec=codec,
        image_size=image_size,
        from_pictures="folder" not in config.data,
    )
    return subject, [note] if note else []


def built(config: DictConfig | ListConfig) -> Any:
    return instantiate(config, _convert_="all")


def planned_terms(config: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """The terms of an autoencoder's loss without weights, and a note for each whose files are not there to look at."""
    terms, notes = {}, []
    for key, term in config.items():
        name = str(key)
        if term is None:
            continue
        if missing := [need for _, need in needs(term) if not need.is_met]:
            notes.append(f"reckoned without the term {name}: {missing[0].what} is missing")
            continue
        made = built(term)
        terms[name] = made.to("meta") if isinstance(made, nn.Module) else made
    return terms, notes


def planned_codec(config: DictConfig, network: DictConfig, configs: Path) -> tuple[Any, str]:
    """The codec without its weights, and a note where its file is not there to say what it is."""
    if "path" not in config:
        with torch.device("meta"):
            return built(config), ""
    path = Path(config.path)
    if path.is_file():
        kind, architecture, contract = describe_autoencoder(path)
        with torch.device("meta"):
            return PlannedCodec(kind(**architecture), downsample=contract.downsample), ""
    channels = int(network.in_channels)
    if channels not in PUBLISHED:
        raise ValueError(
            f"codec.path={path} is not there, and no published autoencoder has {channels} latent channels "
            f"(network.in_channels): train or import the autoencoder first"
        )
    choice = PUBLISHED[channels]
    described: Any = OmegaConf.load(configs / "network" / f"{choice}.yaml")
    described.pop("bottleneck", None)  # its own
    with torch.device("meta"):
        autoencoder: Autoencoder = built(described)
        return (
            PlannedCodec(autoencoder, downsample=autoencoder.downsample),
            f"{path} is not there: reckoned with the autoencoder network={choice}",
        )


def without_gpu_kernels(config: DictConfig) -> DictConfig:
    """Attention kernels that refuse to be built without a GPU, replaced by one that keeps and computes the same."""

    def replaced(node: Any) -> Any:
        if isinstance(node, Mapping):
            if node.get("_target_") in GPU_ONLY:
                return {"_target_": FUSED}
            return {key: replaced(value) for key, value in node.items()}
        return [replaced(value) for value in node] if isinstance(node, list) else node

    plain = OmegaConf.create(replaced(OmegaConf.to_container(config, resolve=True)))
    assert isinstance(plain, DictConfig)
    return plain


def averages(config: DictConfig, *, on_device: bool = True) -> int:
    """Copies of the trained weights that are averaged; all, or those that lie in the device's memory."""
    kept = [one for one in config.callbacks.values() if one is not None]
    kept = [one for one in kept if not (on_device and one.get("on_cpu"))]
    powers = sum(len(one.sigma_rels) for one in kept if "sigma_rels" in one)
    return powers + sum(str(one["_target_"]) == AVERAGE for one in kept)
