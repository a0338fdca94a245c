"""``ldm replay``: make a bad step again, layer by layer, in two precisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ldm.commands.load import device_for
from ldm.commands.schema import check
from ldm.training.capsule import Capsule, read_capsule
from ldm.training.checkpoint import load_parts
from ldm.training.run import RunFolder

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Made:
    """What came of the step in one precision.

    Args:
        losses: Of each piece of the batch.
        outputs: Module -> largest magnitude it gave, over the pieces; infinite or nan where something was not finite.
        gradients: Parameter -> norm of its gradient.
        first: The module that first gave something that is not finite from finite inputs; None where none did.
    """

    losses: Sequence[float]
    outputs: Mapping[str, float]
    gradients: Mapping[str, float]
    first: str | None


def replay(*, capsule: str, device: str = "auto", rows: int = 30) -> None:
    """Make the step in a capsule again on one process, in float32 and in bfloat16, and show both side by side.

    The batches of all processes are taken together, with the weights before the step and the very noise and times that
    were drawn; so the gradient is the one that all had after summing, up to rounding.

    Args:
        capsule: a folder in <run>/capsules.
        device: "auto" takes the GPU if there is one.
        rows: how many layers the table has: all that have something not finite, then those with the largest gradients.

    Raises:
        FileNotFoundError: It is no capsule.
    """
    folder = Path(capsule)
    read = read_capsule(folder)
    run = RunFolder(folder.resolve().parent.parent)
    config = run.read_config()
    check(config, record="ldm.commands.settings.TrainConfig")
    place = device_for(device)
    made = {}
    for name, dtype in PRECISIONS.items():
        module = instantiate(config.task, _convert_="all")
        load_parts(module, read.weights)
        made[name] = make(module.to(place), read, dtype=dtype, device=place)
    show(Console(soft_wrap=True, highlight=False), read, made, rows=rows)


def make(module: Any, capsule: Capsule, *, dtype: torch.dtype | None, device: torch.device) -> Made:
    """The step's losses and gradients with the module's weights; None is float32 throughout."""
    module.train()
    # A step that depends on how far the training is (a discriminator that begins later) must stand where it stood.
    module.images_seen = max(0, int(capsule.step["images_seen"]) - capsule.batches[0].num_slots)
    module.count = module.log_step = lambda *_: None  # the step alone, without a trainer's bookkeeping
    parts: Mapping[str, nn.Module] = module.parts()
    outputs: dict[str, float] = {}
    first: list[str] = []

    def look(name: str, part: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        size = largest(output)
        outputs[name] = max(outputs.get(name, 0.0), size) if not math.isnan(size) else math.nan
        if not math.isfinite(size) and math.isfinite(largest(given)) and not first:
            first.append(name)

    hooks = [
        part.register_forward_hook(partial(look, f"{name}.{inner}".rstrip(".")))
        for name, whole in parts.items()
        for inner, part in whole.named_modules()
    ]
    precision: Any = nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    losses = []
    total = sum(len(batch) for batch in capsule.batches)
    for batch in capsule.batches:
        with precision:
            loss = module.training_step(batch.to(device), 0)
        (loss * (len(batch) / total)).backward()
        losses.append(float(loss.detach()))
    for hook in hooks:
        hook.remove()
    gradients = {
        f"{name}.{key}": float(x.grad.float().norm())
        for name, part in parts.items()
        for key, x in part.named_parameters()
        if x.grad is not None
    }
    return Made(losses, outputs, gradients, first[0] if first else None)


def largest(value: Any) -> float:
    """The largest magnitude in tensors, however they are packed; nan where one is not a number."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or not value.numel():
            return 0.0
        return float(value.detach().abs().max())
    if isinstance(value, Mapping):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        sizes = [largest(one) for one in value]
        return math.nan if any(map(math.isnan, sizes)) else max(sizes, default=0.0)
    return 0.0


def show(console: Console, capsule: Capsule, made: Mapping[str, Made], *, rows: int) -> None:
    step = capsule.step
    console.print(
        f"the step to {step['images_seen']:,} images, of {step['world_size']} processes in {step['precision']}; "
        f"loss then: {', '.join(map(str, step['losses']))}"
    )
    keys = [key for batch in capsule.batches for key in batch.keys]
    console.print(f"{len(keys)} samples: {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}")
    for name, one in made.items():
        worst = one.first or "none"
        losses = ", ".join(f"{loss:.6g}" for loss in one.losses)
        console.print(f"{name}: loss {losses}; first module with an output that is not finite: {worst}")
    table = Table("parameter", "gradient then", *(f"gradient, {name}" for name in made), "largest weight")
    table.columns[0].no_wrap = True  # a name that is cut names nothing
    for name in worst_first(step["layers"], made)[:rows]:
        then = step["layers"].get(name) or {}
        gradient, weight = then.get("gradient") or {}, then.get("weight") or {}
        told = f"{gradient.get('not_finite', 0)} not finite" if gradient.get("not_finite") else "finite"
        norms = [f"{one.gradients.get(name, 0.0):.4g}" for one in made.values()]
        table.add_row(name, told if gradient else "none", *norms, f"{float(weight.get('largest', 0)):.4g}")
    console.print(table)


def worst_first(layers: Mapping[str, Any], made: Mapping[str, Made]) -> list[str]:
    """Parameters with gradients that are not finite, then or now, then by the size of their gradient in float32."""
    exact = next(iter(made.values())).gradients

    def order(name: str) -> tuple[bool, float]:
        then = (layers.get(name) or {}).get("gradient") or {}
        norms = [one.gradients.get(name, 0.0) for one in made.values()]
        bad = bool(then.get("not_finite")) or not all(map(math.isfinite, norms))
        return not bad, -exact[name] if math.isfinite(exact[name]) else 0.0

    return sorted(exact, key=order)
