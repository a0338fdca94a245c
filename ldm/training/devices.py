"""What a trainer config asks of the machine, checked before anything is built: on every process, in seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch


def check_devices(
    *, accelerator: str, devices: int | str | Sequence[int], num_nodes: int, batch_size: int
) -> int:
    """The number of processes that the training will have.

    Args:
        accelerator: Lightning's name of the kind of device.
        devices: How many, or which, or "auto".
        num_nodes: Machines.
        batch_size: Over all processes.

    Raises:
        ValueError: There is no such device, there are fewer than asked for, or they cannot share the batch equally.
    """
    if batch_size < 1:
        raise ValueError(f"data.batch_size={batch_size} must be at least 1")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    available = torch.cuda.device_count()
    if on_gpu and not available:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        raise ValueError(
            f"trainer.accelerator={accelerator}, but torch {torch.__version__} sees no GPU{hidden}: "
            f"check nvidia-smi and the driver, or use trainer=cpu"
        )
    asked = _count(devices, everything=available if on_gpu else 1)
    if on_gpu and asked > available:
        raise ValueError(
            f"trainer.devices={devices} asks for {asked} GPUs, but this machine has {available}: "
            f"use trainer.devices={available}"
        )
    processes = asked * num_nodes
    if batch_size % processes:
        smaller, larger = batch_size - batch_size % processes, batch_size + processes - batch_size % processes
        raise ValueError(
            f"data.batch_size={batch_size} is over all {processes} processes ({asked} devices on {num_nodes} nodes) "
            f"and cannot be shared equally: use {f'{smaller} or ' if smaller else ''}{larger}"
        )
    return processes


def _count(devices: int | str | Sequence[int], *, everything: int) -> int:
    """trainer.devices as Lightning reads it: a number, -1 or "auto" for all, or the devices themselves."""
    if devices in ("auto", -1, "-1"):
        return everything
    if isinstance(devices, str):
        return len([part for part in devices.split(",") if part.strip()]) if "," in devices else int(devices)
    count = devices if isinstance(devices, int) else len(devices)
    if count < 1:
        raise ValueError(f"trainer.devices={devices} names no device: use 1 or more, or auto")
    return count
