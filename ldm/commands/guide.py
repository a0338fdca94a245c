"""Whether a run can be guided as asked, and the weaker model of autoguidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.commands.load import load_run
from ldm.sampling.generate import Generation, Guide
from ldm.sampling.guidance import Autoguidance
from ldm.sampling.request import Request
from ldm.training.checkpoint import checkpoint_with_hash, is_checkpoint, list_checkpoints
from ldm.training.packaged import Packaged

GUIDE = "guidance.run"  # its entry among a recipe's inputs


def with_guide(
    generation: Generation,
    *,
    device: torch.device,
    runs: str,
    made_with: str | None = None,
) -> tuple[Generation, dict[str, dict[str, str]]]:
    """The generation with the weaker model that its guidance names, if it names one, and that model's record.

    The guidance then names the very checkpoint file, so that a recipe does.

    Args:
        generation: As configured.
        device: Where the weaker model goes.
        runs: The folder that holds the runs.
        made_with: The sha256 its checkpoint must have; None for any.

    Raises:
        FileNotFoundError: There is no such run.
        ValueError: It is another checkpoint than before, or of other latents, or of another schedule.
    """
    guidance = generation.guidance
    if not isinstance(guidance, Autoguidance):
        return generation, {}
    named = guidance.run if made_with is None else guiding_checkpoint(Path(guidance.run), made_with)
    loaded = load_run(named, weights=guidance.weights, runs=runs)
    if not hasattr(loaded.module, "generation"):
        raise ValueError(f"guidance.run={guidance.run} makes no pictures of prompts: name a diffusion run")
    own = loaded.module.to(device).generation()
    ours, theirs = (part.codec.content_hash for part in (generation, own))
    if ours != theirs:
        raise ValueError(
            f"guidance.run={guidance.run} works on the latents of autoencoder {theirs[:12]}, the run to guide on those "
            f"of {ours[:12]}: name a run with the same autoencoder"
        )
    if own.diffusion.schedule != generation.diffusion.schedule:
        raise ValueError(
            f"guidance.run={guidance.run} was trained on {own.diffusion.schedule}, the run to guide on "
            f"{generation.diffusion.schedule}: both must mean the same noise by a time"
        )
    guide = Guide(diffusion=own.diffusion, network=own.network, text_encoder=own.text_encoder)
    path = str(loaded.checkpoint_path)
    record = {GUIDE: {"path": path, "sha256": loaded.checkpoint_hash}}
    return replace(generation, guide=guide, guidance=replace(guidance, run=path)), record


def check_guidance(generation: Generation, module: Any, requests: Sequence[Request]) -> None:
    """Refuse what the run or its guidance cannot do.

    Raises:
        ValueError: Scales of their own for an unguided run, negative prompts that nothing would ask for, or a null
            condition that was never trained.
    """
    guidance = generation.guidance
    name = type(guidance).__name__
    scales = {request.scale for request in requests if request.scale is not None}
    if scales and not hasattr(guidance, "scale"):
        raise ValueError(
            f"prompts have a guidance of their own ({min(scales):g} ...), and {name} has no scale: leave them out, or "
            f"give guidance=classifier_free"
        )
    asks = guidance.needs_uncond or (bool(scales) and not isinstance(guidance, Autoguidance))
    negatives = [request.negative for request in requests]
    if any(negatives) and not asks:
        raise ValueError(
            f"negative prompts count in guidance only, and here it is {name}"
            + ("" if not hasattr(guidance, "scale") else f" of scale {guidance.scale:g}")
            + ": give guidance=classifier_free with a scale above 1, or leave them out"
        )
    if asks and not all(negatives) and getattr(module, "caption_dropout", None) == 0:
        raise ValueError(
            f"{name} compares with the empty caption, and this run never saw one (task.caption_dropout=0): give "
            f"guidance=unguided, or a negative prompt for every prompt"
        )


def check_training(module: Any, *, sharded: bool = False) -> None:
    """Refuse a training whose sample grids, or whose file at the end, could not be made.

    Raises:
        ValueError: Its guidance needs a second model, or its weights are to be spread and it is an autoencoder, or has
            an optimizer for whole weights.
    """
    if sharded and hasattr(module, "export"):
        raise ValueError(
            "trainer=fsdp is for denoisers: an autoencoder's file is written by one process, which must hold all of "
            "it; use trainer=ddp"
        )
    optimizer = getattr(module, "optimizer", None)
    if sharded and isinstance(optimizer, Packaged) and optimizer.needs_whole_weights:
        raise ValueError(
            f"optimizer={optimizer.name} does not go with trainer=fsdp: bitsandbytes takes whole weights, not shares; "
            f"use optimizer=adamw, whose moments fsdp spreads over the processes, or trainer=ddp"
        )
    if sharded and not getattr(getattr(module, "objective", None), "may_be_sharded", True):
        raise ValueError(
            "trainer=fsdp is not for few-step training, which keeps whole copies of the network or differentiates it "
            "forwards: use trainer=ddp"
        )
    if isinstance(getattr(module, "guidance", None), Autoguidance):
        raise ValueError(
            "guidance=autoguidance needs a second model, which a training does not load for its sample grids: train "
            "with another guidance, and give this one to sample.py and ldm evaluate"
        )


def guiding_checkpoint(named: Path, wanted: str) -> Path:
    """The checkpoint of this hash: the one named, or another beside it, since the newest moves on.

    Raises:
        ValueError: None has it.
    """
    found = [*([named] if is_checkpoint(named) else []), *list_checkpoints(named.parent)]
    if path := checkpoint_with_hash(found, wanted):
        return path
    looked = ", ".join(dict.fromkeys(map(str, found))) or f"none, {named.parent} holds no checkpoints"
    raise ValueError(
        f"the picture was guided by checkpoint {wanted[:12]}, once {named}, and none looked at has this hash "
        f"({looked}): bring it back"
    )
