"""What ``ldm doctor`` looks at: each check says what it found, and what to do."""

from __future__ import annotations

import importlib.util
import netrc
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from ldm.codecs.kl import describe_autoencoder
from ldm.commands.blueprint import GPU_ONLY
from ldm.commands.checkup_disk import disk
from ldm.commands.checkup_shards import first_samples
from ldm.commands.findings import FAIL, OK, WARN, Finding
from ldm.commands.needs import needs
from ldm.data.shards import find_shards, index_path
from ldm.needs import MissingNeeds
from ldm.planning.hardware import GIB
from ldm.training.devices import check_devices, choose_precision

OWN = ("ldm", "torch", "lightning")
SHARED_MEMORY = Path("/dev/shm")  # where workers hand pictures over


def examined(config: DictConfig) -> list[Finding]:
    """Every check of a training's config, which has passed the schema."""
    checks: tuple[Callable[[DictConfig], Iterator[Finding]], ...] = (
        versions,
        devices,
        packages,
        weights,
        codec,
        beginning,
        shards,
        disk,
        shared_memory,
        wandb,
    )
    return [finding for check in checks for finding in check(config)]


def versions(config: DictConfig) -> Iterator[Finding]:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield Finding(
        level=OK,
        what="versions",
        found=f"Python {platform.python_version()}, torch {torch.__version__}, {cuda}",
    )


def devices(config: DictConfig) -> Iterator[Finding]:
    trainer = config.trainer
    number = torch.cuda.device_count()
    here = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(number)}))
    found = f"{number} x {here}" if number else "no GPU"
    try:
        processes = check_devices(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.get("num_nodes", 1),
            batch_size=config.data.batch_size,
            pieces=trainer.get("accumulate_grad_batches", 1),
        )
        precision = choose_precision(trainer.precision, accelerator=trainer.accelerator)
    except ValueError as error:
        message, _, remedy = str(error).rpartition(": ")
        yield Finding(level=FAIL, what="devices", found=message or str(error), remedy=remedy)
        return
    each = config.data.batch_size // processes // trainer.get("accumulate_grad_batches", 1)
    yield Finding(
        level=OK,
        what="devices",
        found=f"{found}; {processes} processes, {each} pictures each at a time, {precision}",
    )
    kernels = [target for target in targets(config) if target in GPU_ONLY]
    if kernels and not number:
        found = f"{kernels[0].rpartition('.')[2]} needs a GPU"
        yield Finding(level=FAIL, what="attention", found=found, remedy="network/attention=sdpa")


def packages(config: DictConfig) -> Iterator[Finding]:
    """Of other projects, that the config builds from."""
    for name in sorted({target.split(".")[0] for target in targets(config)} - set(OWN)):
        if importlib.util.find_spec(name) is None:
            yield Finding(
                level=FAIL,
                what=f"package {name}",
                found="not installed",
                remedy=f"pip install {name}",
                missing=True,
            )
        else:
            yield Finding(level=OK, what=f"package {name}", found="installed")


def weights(config: DictConfig) -> Iterator[Finding]:
    for key, need in needs(without_machinery(config)):
        if need.found is not None:
            yield Finding(level=OK, what=need.what, found=need.found)
        elif need.is_met:
            yield Finding(level=WARN, what=need.what, found="will be downloaded", remedy="needs internet")
        else:
            places = f"not in {', '.join(need.looked_in)}" if need.looked_in else "missing"
            remedy = f"{need.bring} ({key})"
            yield Finding(level=FAIL, what=need.what, found=places, remedy=remedy, missing=True)


def without_machinery(config: DictConfig) -> DictConfig:
    """A config without the parts that need no files but would bring Lightning along, which takes seconds."""
    kept = config.copy()
    with open_dict(kept):
        for key in ("trainer", "callbacks", "logger", "data", "optimizer", "lr_schedule", "codec"):
            kept.pop(key, None)
        kept.task = {name: config.task.get(name) for name in ("terms", "decoder_of")}
    return kept


def codec(config: DictConfig) -> Iterator[Finding]:
    if not config.codec or "path" not in config.codec:
        return
    path = Path(config.codec.path)
    try:
        kind, architecture, contract = describe_autoencoder(path)
    except MissingNeeds as error:
        remedy = error.needs[0][1].at("codec").bring
        yield Finding(level=FAIL, what="autoencoder", found=f"no file {path}", remedy=remedy, missing=True)
        return
    except ValueError as error:
        yield Finding(
            level=FAIL, what="autoencoder", found=str(error), remedy="give another by codec.path=..."
        )
        return
    channels, stride = int(architecture["latent_channels"]), contract.downsample
    yield Finding(
        level=OK,
        what="autoencoder",
        found=f"{kind.__name__} {contract.content_hash[:12]}, {channels} channels, stride {stride}",
    )
    wanted = config.network.get("in_channels", channels)
    if wanted != channels:
        yield Finding(
            level=FAIL,
            what="latents",
            found=f"the network takes {wanted} channels, the autoencoder gives {channels}",
            remedy=f"network.in_channels={channels}, or another codec.path",
        )
    if config.data.image_size % stride:
        yield Finding(
            level=FAIL,
            what="latents",
            found=f"the stride {stride} does not divide data.image_size={config.data.image_size}",
            remedy=f"a multiple of {stride}",
        )


def beginning(config: DictConfig) -> Iterator[Finding]:
    """The weights to begin with."""
    where = config.get("init_from")
    if not where:
        return
    places = [Path(where), Path(config.paths.runs) / where]
    if any(place.exists() for place in places):
        yield Finding(level=OK, what="init_from", found=str(where))
    else:
        yield Finding(
            level=FAIL,
            what="init_from",
            found=f"neither {places[0]} nor {places[1]} is there",
            remedy="a run, a checkpoint, or what ldm import wrote",
            missing=True,
        )


def shards(config: DictConfig) -> Iterator[Finding]:
    for key in ("train_shards", "val_shards"):
        where = config.data.get(key)
        if where is None:
            continue
        given = OmegaConf.to_container(where) if isinstance(where, ListConfig) else where
        try:
            found = find_shards(given)  # type: ignore[arg-type]
        except (FileNotFoundError, ValueError) as error:
            remedy = f"ldm pack makes them; give their place by data.{key}=..."
            yield Finding(level=FAIL, what=f"data.{key}", found=str(error), remedy=remedy, missing=True)
            continue
        size = sum(path.stat().st_size for path in found) / GIB
        yield Finding(level=OK, what=f"data.{key}", found=f"{len(found)} shards, {size:.2f} GiB")
        without = sum(not index_path(path).exists() for path in found)
        if without:
            yield Finding(
                level=WARN,
                what=f"indices of data.{key}",
                found=f"{without} of {len(found)} shards have none",
                remedy="the first start makes them, which takes a while",
            )
        yield from captions(config, key, found[0])


def captions(config: DictConfig, key: str, shard: Path) -> Iterator[Finding]:
    """Whether a shard's first samples have a picture, and a caption in a field that is asked for."""
    asked = config.data.get("caption_field", "txt")
    fields = [str(field) for field in asked] if isinstance(asked, DictConfig) else [str(asked)]
    samples = first_samples(shard)
    pictures = sum(one.has_picture for one in samples)
    told = sum(bool(one.fields & set(fields)) for one in samples)
    there = sorted(set().union(*(one.fields for one in samples)))
    if not pictures:
        yield Finding(
            level=FAIL,
            what=f"pictures of data.{key}",
            found=f"none in {shard}",
            remedy="give shards of pictures",
        )
    elif not told:
        yield Finding(
            level=FAIL,
            what=f"captions of data.{key}",
            found=f"no {' or '.join(fields)} in {shard}, only {', '.join(there) or 'nothing'}",
            remedy=f"data.caption_field={there[0] if there else 'txt'}",
        )
    else:
        level = OK if told == len(samples) else WARN
        found = f"{told} of the first {len(samples)} samples have {' or '.join(fields)}"
        yield Finding(level=level, what=f"captions of data.{key}", found=found)


def shared_memory(config: DictConfig) -> Iterator[Finding]:
    workers = int(config.data.get("num_workers") or 0)
    if not workers or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free / GIB
    level, remedy = (OK, "") if free >= 1 else (WARN, "in a container --shm-size=8g, or data.num_workers=0")
    yield Finding(
        level=level, what="shared memory", found=f"{free:.1f} GiB for {workers} workers", remedy=remedy
    )


def wandb(config: DictConfig) -> Iterator[Finding]:
    for one in config.logger.values():
        if one is None or "Wandb" not in str(one["_target_"]):
            continue
        if importlib.util.find_spec("wandb") is None:
            yield Finding(
                level=FAIL,
                what="W&B",
                found="package not installed",
                remedy="pip install wandb",
                missing=True,
            )
        elif has_key() or one.get("offline"):
            yield Finding(level=OK, what="W&B", found="offline" if one.get("offline") else "a key is there")
        else:
            yield Finding(level=WARN, what="W&B", found="no key: it will log offline", remedy="wandb login")


def has_key() -> bool:
    """In the environment or in .netrc, where ``wandb login`` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a config."""
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    if isinstance(plain, dict):
        if isinstance(plain.get("_target_"), str):
            yield plain["_target_"]
        for value in plain.values():
            yield from targets(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from targets(value)
