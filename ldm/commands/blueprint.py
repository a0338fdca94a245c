"""A training's module without weights: its networks on the meta device, from the composed config alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm.codecs.kl import describe_autoencoder
from ldm.nn.autoencoder_base import Autoencoder
from ldm.planning.standins import PlannedCodec
from ldm.training.module import TrainingModule

HEAVY = ("network", "autoencoder", "text_encoder")  # of a task's parts those with weights
PUBLISHED = {4: "kl_sd", 16: "kl_sd3", 32: "dc_f32"}  # autoencoders of networks/, by latent channels
GPU_ONLY = ("ldm.nn.attention.XFormers", "ldm.nn.attention.Flex")
FUSED = "ldm.nn.attention.SDPA"


def blueprint(config: DictConfig, *, configs: Path) -> tuple[TrainingModule, list[str]]:
    """The module, and what had to be assumed for want of files.

    Args:
        config: A training's, checked.
        configs: The folder of all configs, where published autoencoders are described.
    """
    assumed: list[str] = []
    task = without_gpu_kernels(config.task)
    given: dict[str, Any] = {}
    for key, value in task.items():
        name = str(key)
        if name == "codec":
            given[name], note = planned_codec(value, task.network, configs)
            assumed += [note] if note else []
        elif name in HEAVY:
            with torch.device("meta"):
                given[name] = instantiate(value, _convert_="all")
        elif name != "_target_":
            parts = isinstance(value, DictConfig | ListConfig)
            given[name] = instantiate(value, _convert_="all") if parts else value
    module = get_class(str(task["_target_"]))(**given)
    return module.to("meta"), assumed


def planned_codec(config: DictConfig, network: DictConfig, configs: Path) -> tuple[Any, str]:
    """The codec without its weights, and a note where its file is not there to say what it is."""
    if "path" not in config:
        with torch.device("meta"):
            return instantiate(config, _convert_="all"), ""
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
    described = OmegaConf.load(configs / "network" / f"{choice}.yaml")
    with torch.device("meta"):
        autoencoder: Autoencoder = instantiate(described, _convert_="all")
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
