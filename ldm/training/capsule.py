"""What is needed to make one step again on one process, far from the machines it went wrong on.

::

    <run>/capsules/images_000012000/
        step.json       counters, seed, losses, world size; per layer the weights' and gradients' statistics
        weights.pt      the trained parts' weights before the step
        batch-rank_0.pt the batch of each process: pictures or moments, captions, keys and visits

Noise, times and dropped captions are drawn from keys and visits (see ``ldm/randomness.py``), so the batch has all of
it. All of it is plain data.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ldm import interfaces
from ldm.interfaces import Batch
from ldm.training.folders import folder_name
from ldm.training.outcome import Step
from ldm.training.sharded import full, full_state, plain_name

STEP, WEIGHTS = "step.json", "weights.pt"


@dataclass(frozen=True)
class Capsule:
    """One step, read from its folder.

    Args:
        step: The content of step.json.
        weights: Part -> state dict.
        batches: The pieces of all processes' batches.
    """

    step: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Tensor]]
    batches: Sequence[Batch]


def capsule_folder(run: Path, images_seen: int) -> Path:
    return run / "capsules" / folder_name(images_seen)


def write_capsule(folder: Path, trainer: Trainer, module: LightningModule, made: Step) -> None:
    """On all processes together, while the gradients of the step are there and nothing has been done with them."""
    parts: dict[str, nn.Module] = module.parts()  # type: ignore[operator]
    first = trainer.is_global_zero
    weights = {
        name: {plain_name(key): x for key, x in full_state(part.state_dict(), keep=first).items()}
        for name, part in parts.items()
    }
    layers = {
        f"{name}.{plain_name(key)}": {
            "weight": statistics(x),
            "gradient": None if x.grad is None else statistics(x.grad),
        }
        for name, part in parts.items()
        for key, x in part.named_parameters()
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save([plain(piece) for piece in made.pieces], folder / f"batch-rank_{trainer.global_rank}.pt")
    if not first:
        return
    torch.save(weights, folder / WEIGHTS)
    step = {
        "images_seen": made.images_seen,
        "global_step": made.global_step,
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
        "seed": getattr(module, "seed", None),
        "losses": [number(loss) for loss in made.losses],
        "keys": [key for piece in made.pieces for key in piece.keys],
        "layers": layers,
    }
    (folder / STEP).write_text(json.dumps(step, indent=1) + "\n")


def read_capsule(folder: Path) -> Capsule:
    """
    Raises:
        FileNotFoundError: It is no capsule, or batches of some processes are missing.
    """
    if not (folder / STEP).is_file():
        raise FileNotFoundError(f"{folder} is no capsule (it would hold {STEP}); they are in <run>/capsules")
    step = json.loads((folder / STEP).read_text())
    files = [folder / f"batch-rank_{rank}.pt" for rank in range(step["world_size"])]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: other processes wrote them to their own disk"
        )
    batches = [restored(piece) for file in files for piece in torch.load(file, weights_only=True)]
    return Capsule(step, torch.load(folder / WEIGHTS, weights_only=True), batches)


def statistics(x: Tensor) -> dict[str, float | str]:
    """Root mean square and largest magnitude of what is finite, and how much is not; of the whole of what is spread."""
    x = full(x.detach()).float()
    finite = torch.isfinite(x)
    good = torch.where(finite, x, 0.0)
    rms = good.square().sum() / finite.sum().clamp(min=1)
    largest = good.abs().max() if x.numel() else x.sum()
    return {
        "rms": number(rms.sqrt()),
        "largest": number(largest),
        "not_finite": int(x.numel() - finite.sum()),
    }


def number(x: Tensor | float) -> float | str:
    """JSON has no word for what is not finite."""
    value = float(x)
    return value if math.isfinite(value) else str(value)


def plain(value: Any) -> Any:
    """Batches as plain data: dataclasses of ``ldm.interfaces`` and ranges by their names, tensors on the CPU."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        content = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, "with": content}
    if isinstance(value, range):
        return {"is": "range", "with": [value.start, value.stop, value.step]}
    return value.detach().cpu() if isinstance(value, Tensor) else value


def restored(value: Any) -> Any:
    """What ``plain`` was given."""
    if not (isinstance(value, dict) and value.keys() == {"is", "with"}):
        return value
    if value["is"] == "range":
        return range(*value["with"])
    kind = getattr(interfaces, value["is"], None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(
            f"{value['is']} is no data of ldm.interfaces: was the capsule written by another version?"
        )
    return kind(**{name: restored(x) for name, x in value["with"].items()})
