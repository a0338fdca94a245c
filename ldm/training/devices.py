"""What a trainer config asks of the machine, checked before anything is built: on every process, in seconds."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache

import torch

log = logging.getLogger(__name__)


PRECISIONS = {
    *("32-true", "32", "64-true", "64", "16-mixed", "16", "bf16-mixed", "bf16", "16-true", "bf16-true"),
    *("transformer-engine", "transformer-engine-float16"),
}
SHARDED_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")  # what Lightning's strategy for FSDP2 takes


def check_devices(
    *,
    accelerator: str,
    devices: int | str | Sequence[int],
    num_nodes: int,
    batch_size: int,
    pieces: int = 1,
    sharded: bool = False,
) -> int:
    """The number of processes that the training will have.

    Args:
        accelerator: Lightning's name of the kind of device.
        devices: How many, or which, or "auto".
        num_nodes: Machines.
        batch_size: Over all processes.
        pieces: In which each process takes its share of the batch, one after another.
        sharded: Weights are to be spread over the processes.

    Raises:
        ValueError: There is no such device, there are fewer than asked for, or they cannot share the batch equally; or
            there is nothing to spread weights over.
    """
    if batch_size < 1:
        raise ValueError(f"data.batch_size={batch_size} must be at least 1")
    on_gpu = _on_gpu(accelerator)
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
    cores = available_cores()
    if not on_gpu and asked > cores:
        # Here, since Lightning comes with it, and a plan builds optimizers, which import this file.
        from ldm.training.run import is_main_process

        if is_main_process():
            log.warning(
                "trainer.devices=%s starts %d processes on a machine that lets this one use %d CPU core%s: they will "
                "take turns; trainer.devices=%d is as fast or faster",
                devices,
                asked,
                cores,
                "" if cores == 1 else "s",
                cores,
            )
    processes = asked * num_nodes
    if pieces < 1:
        raise ValueError(f"trainer.accumulate_grad_batches={pieces} must be at least 1")
    shares = processes * pieces
    if batch_size % shares:
        smaller, larger = batch_size - batch_size % shares, batch_size + shares - batch_size % shares
        each = f", each in {pieces} pieces (trainer.accumulate_grad_batches)," if pieces > 1 else ""
        raise ValueError(
            f"data.batch_size={batch_size} is over all {processes} processes ({asked} devices on {num_nodes} nodes)"
            f"{each} and cannot be shared equally: use {f'{smaller} or ' if smaller else ''}{larger}"
        )
    if sharded and processes == 1:
        raise ValueError(
            "trainer=fsdp spreads weights over processes and there is only one: use trainer=gpu, or trainer.devices=2 "
            "or more"
        )
    return processes


def choose_precision(
    precision: str | int | None, *, accelerator: str, sharded: bool = False, gather_bf16: bool = False
) -> str:
    """Lightning's name of the precision to train in: as given, or for None the fastest that trains as well.

    That is bfloat16 autocast over float32 weights where the device multiplies bfloat16 by itself, float32 elsewhere: a
    CPU without such units took 60 times as long in bfloat16 as in float32 (AMD EPYC with AVX2).

    Args:
        precision: As in the config.
        accelerator: Lightning's name of the kind of device.
        sharded: Weights are to be spread over the processes,
        gather_bf16: and gathered in bfloat16.

    Raises:
        ValueError: The GPU cannot do what is asked for, or nothing can, or FSDP.
    """
    if precision is not None and str(precision) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={precision} is not known: use bf16-mixed, 32-true, 16-mixed, ..., or null for the "
            f"device's best"
        )
    if sharded and precision is not None and str(precision) not in SHARDED_PRECISIONS:
        raise ValueError(
            f"trainer.precision={precision} does not go with trainer=fsdp: use one of {', '.join(SHARDED_PRECISIONS)}"
        )
    device = "cuda" if _on_gpu(accelerator) else "cpu"
    if gather_bf16:
        chosen = choose_precision(precision, accelerator=accelerator, sharded=sharded)
        if "bf16" not in chosen:
            said = "left open, which here means" if precision is None else "set to"
            raise ValueError(
                f"trainer.strategy.gather_bf16=true computes in bfloat16, but trainer.precision is {said} {chosen}: "
                f"use trainer.precision=bf16-mixed, or trainer.strategy.gather_bf16=false"
            )
        return chosen
    if precision is None:
        return "bf16-mixed" if has_bfloat16_units(device) else "32-true"
    if "bf16" in str(precision) and not has_bfloat16_units(device):
        if device == "cuda":
            raise ValueError(
                f"trainer.precision={precision}, but {torch.cuda.get_device_name()} has no bfloat16: "
                f"use trainer.precision=32-true"
            )
        log.warning(
            "trainer.precision=%s on a CPU without bfloat16 units is far slower than 32-true",
            precision,
        )
    return str(precision)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def has_bfloat16_units(device: str) -> bool:
    """Whether the "cpu" or the "cuda" device multiplies bfloat16 matrices in hardware; emulation is very slow."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _on_gpu(accelerator: str) -> bool:
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


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
