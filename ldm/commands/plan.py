"""``ldm plan``: what a training will need, from its config alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from ldm.commands import compose
from ldm.commands.blueprint import averages, blueprint, built
from ldm.commands.disk import amounts
from ldm.commands.errors import FAILED, fail
from ldm.commands.messages import ConfigError, first_line
from ldm.commands.plan_report import Report, show
from ldm.planning.autocast import PRECISIONS
from ldm.planning.hardware import GIB, Hardware
from ldm.planning.memory import Memory, Sharing, memory_of, state_of
from ldm.planning.step import StepCost, frozen_cost, step_cost
from ldm.planning.uncompiled import without_compiler
from ldm.training.devices import choose_precision

SHARDED = ("fsdp", "fullysharded")


def plan(
    *,
    hardware: Hardware,
    mfu: float,
    num_pictures: int | None = None,
    training: DictConfig | None = None,
) -> None:
    """Print a training's parameters, operations, memory by component, time and disk; builds no weights, needs no GPU.

    Everything given beside this command's own keys is an override of train.py:
    ``ldm plan experiment=sdxl_base trainer.devices=8 hardware=a100``. Memory is followed tensor by tensor through a
    step on the meta device. The exit status is not 0 where the job would fail: 1 where it does not fit into memory or
    a batch cannot be shared out, 2 for a config that cannot be used.

    Args:
        hardware: The device to plan for, a file of configs/hardware.
        mfu: Share of its peak that a step reaches, in (0, 1].
        num_pictures: Pictures in the data set, for the disk; null counts the shards that are there.
        training: The training's config.

    Raises:
        ValueError: A share outside (0, 1].
    """
    if not 0.0 < mfu <= 1.0:
        raise ValueError(f"mfu={mfu} is a share of the device's peak, in (0, 1]: 0.35")
    assert training is not None
    try:
        with without_compiler():
            report = reckoned(training, hardware=hardware, mfu=mfu, num_pictures=num_pictures)
    except RuntimeError as error:  # shapes that do not fit each other
        raise ValueError(f"a step of this training fails: {first_line(error)}") from error
    show(report)
    if report.refusal:
        fail(report.refusal, FAILED)


def reckoned(config: DictConfig, *, hardware: Hardware, mfu: float, num_pictures: int | None) -> Report:
    """Everything that is printed.

    Raises:
        ConfigError: A precision that is not known.
        ValueError: Parts that do not fit each other.
    """
    chosen_precision = config.trainer.precision
    if chosen_precision is None:
        chosen_precision = "bf16-mixed" if hardware.gpu else choose_precision(None, accelerator="cpu")
    precision = PRECISIONS.get(str(chosen_precision))
    if precision is None:
        raise ConfigError(
            f"trainer.precision={config.trainer.precision} cannot be planned; known are {', '.join(PRECISIONS)}"
        )
    nodes, devices = int(config.trainer.get("num_nodes", 1)), device_count(config.trainer.devices)
    processes, pieces = nodes * devices, int(config.trainer.get("accumulate_grad_batches", 1))
    whole = int(config.data.batch_size)  # of a step
    subject, notes = blueprint(config, configs=compose.CONFIGS)
    optimizer = built(config.optimizer)
    state = state_of(subject, optimizer=optimizer, precision=precision, averages=averages(config))
    refusal = ""
    if whole % (parts := processes * pieces):
        refusal = (
            f"data.batch_size={whole} cannot be shared equally by {processes} processes ({devices} devices on {nodes} "
            f"nodes) in {pieces} pieces each: use {whole - whole % parts or parts} or {whole + parts - whole % parts}"
        )
    batch = max(processes, whole // pieces)  # at a time
    per_device = max(1, batch // processes)

    on: dict[str, Any] = {"gpu": hardware.gpu, "precision": precision}
    on |= {"frozen": frozen_cost(subject, **on), "blocks": {}}

    def cost(number: int, *, checkpointed: bool) -> StepCost:
        return step_cost(subject, batch_size=number, checkpointed=checkpointed, **on)

    sharing = Sharing(processes=processes, sharded=is_sharded(config), buckets=uses_buckets(config))
    chosen = bool(config.task.execution.checkpoint_blocks)
    costs = {checkpointed: cost(per_device, checkpointed=checkpointed) for checkpointed in (False, True)}
    one = cost(1, checkpointed=chosen)

    def memory(step: StepCost, **other: bool) -> Memory:
        return memory_of(state, step, precision=precision, sharing=replace(sharing, **other))

    columns = {
        ("sharded" if sharded else "whole", checkpointed): memory(
            costs[checkpointed], sharded=sharded, buckets=sharing.buckets and not sharded
        )
        for sharded in ((False, True) if processes > 1 else (False,))
        for checkpointed in (False, True)
    }
    mine = columns["sharded" if sharing.sharded and processes > 1 else "whole", chosen]
    largest = largest_batch(memory(one).total, mine.total, per_device, hardware.usable)
    if not refusal and mine.total > hardware.usable:
        ways = ["a larger trainer.accumulate_grad_batches"]
        ways += [] if chosen else ["task.execution.checkpoint_blocks=true"]
        ways += ["trainer=fsdp"] if processes > 1 and not sharing.sharded else []
        fits = f"; {largest} a device would" if largest else "; not even one picture would"
        refusal = (
            f"{per_device} pictures a device need {mine.total / GIB:.1f} GiB and do not fit into the "
            f"{hardware.usable / GIB:.1f} GiB of {hardware.title}{fits}: use {' or '.join(ways)}"
        )
    return Report(
        name=str(config.name),
        subject=subject,
        state=state,
        cost=costs[chosen],
        per_sample=one,
        memory=columns,
        chosen=mine,
        largest=largest,
        hardware=hardware,
        mfu=mfu,
        precision=precision,
        sharing=sharing,
        nodes=nodes,
        batch=batch,
        accumulated=pieces,
        num_images=int(config.num_images),
        disk=amounts(config, subject, state, num_pictures=num_pictures),
        notes=notes,
        refusal=refusal,
    )


def largest_batch(one: int, many: int, number: int, usable: int) -> int:
    """How many pictures a device has room for, from the bytes of a step with one and of a step with ``number``."""
    if one > usable:
        return 0
    if number == 1:
        return 1  # nothing is known of more
    each = max(1, (many - one) / (number - 1))
    return int(1 + (usable - one) / each)


def device_count(devices: object) -> int:
    """trainer.devices as a number; what is not said, "auto", counts as one."""
    if isinstance(devices, int) and devices > 0:
        return devices
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    if isinstance(devices, str) and "," in devices:
        return len(devices.split(","))
    return len(devices) if isinstance(devices, list) else 1


def strategy(config: DictConfig) -> str:
    chosen = config.trainer.get("strategy", "auto")
    return str(chosen["_target_"] if isinstance(chosen, DictConfig) else chosen).lower()


def is_sharded(config: DictConfig) -> bool:
    return any(name in strategy(config) for name in SHARDED)


def uses_buckets(config: DictConfig) -> bool:
    """Whether DDP copies gradients into buckets of its own, which its option gradient_as_bucket_view avoids."""
    chosen = config.trainer.get("strategy", "auto")
    views = isinstance(chosen, DictConfig) and bool(chosen.get("gradient_as_bucket_view"))
    return not is_sharded(config) and not views
