"""How a plan is printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ldm.commands.disk import Amount
from ldm.planning.autocast import Precision
from ldm.planning.hardware import GIB, Hardware
from ldm.planning.ledger import count
from ldm.planning.memory import Memory, Sharing, State
from ldm.planning.step import StepCost
from ldm.planning.subjects import Subject

WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "ema": "averages (EMA)",
    "frozen": "frozen parts",
    "buckets": "DDP's buckets",
    "gathered": "gathered blocks",
    "activations": "activations",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is printed."""

    name: str
    subject: Subject
    state: State
    cost: StepCost  # a step's on one device, as configured
    per_sample: StepCost  # a step's with one picture
    memory: Mapping[tuple[str, bool], Memory]  # by (whole or sharded, checkpointed)
    chosen: Memory
    largest: int  # pictures that a device has room for
    hardware: Hardware
    mfu: float
    precision: Precision
    sharing: Sharing
    nodes: int
    batch: int
    accumulated: int
    num_images: int
    disk: list[Amount]
    notes: list[str]
    refusal: str

    @property
    def seconds(self) -> float:
        """Of one pass over ``batch`` pictures."""
        return self.cost.flops / (self.hardware.peak(self.precision.compute) * self.mfu)

    @property
    def hours(self) -> float:
        return self.num_images / self.batch * self.seconds / 3600


def show(report: Report, console: Console | None = None) -> None:
    console = console or Console(width=110, highlight=False)
    on = f"{report.sharing.processes} x {report.hardware.title}"
    console.print(
        f"[bold]{report.name}[/bold] on {on}" + (f", {report.nodes} nodes" if report.nodes > 1 else "")
    )
    for table in (networks(report), memory(report), time(report), disk(report)):
        console.print(table)
    for note in report.notes:
        console.print(f"note: {note}")


def networks(report: Report) -> Table:
    table = _table("network", "parameters", "", "TFLOP a picture")
    frozen = report.per_sample.frozen_flops
    for name, part in report.subject.trained().items():
        table.add_row(name, f"{count(part.parameters()):,}", "trained", "")
    table.add_row(
        "all trained", f"{report.state.trained:,}", "forward", _tera(report.per_sample.forward_flops)
    )
    table.add_row("", "", "backward", _tera(report.per_sample.backward_flops))
    for name, part in report.subject.frozen().items():
        each = _tera(frozen[name]) if name in frozen else "-"
        table.add_row(name, f"{count(part.parameters()):,}", "frozen", each)
    table.add_row("a step", "", "", _tera(report.per_sample.flops))
    return table


def memory(report: Report) -> Table:
    """GiB of one device at the peak of a step."""
    titles = []
    for (shared, checkpointed), one in report.memory.items():
        kind = ("FSDP" if shared == "sharded" else "DDP") if report.sharing.processes > 1 else ""
        title = " ".join(filter(None, [kind, "checkpointed" if checkpointed else "plain"]))
        titles.append(f"[bold]> {title}[/bold]" if one is report.chosen else title)
    pictures = report.batch // report.sharing.processes
    table = _table(f"GiB a device, {pictures} pictures at a time", *titles)
    for key, word in WORDS.items():
        amounts = [getattr(one, key) for one in report.memory.values()]
        if any(amounts):
            table.add_row(word, *(f"{amount / GIB:.2f}" for amount in amounts))
    table.add_section()
    table.add_row("together", *(f"{one.total / GIB:.2f}" for one in report.memory.values()))
    table.add_row("there is room for", *([f"{report.hardware.usable / GIB:.2f}"] * len(report.memory)))
    return table


def time(report: Report) -> Table:
    table = _table("time", "")
    peak = report.hardware.peak(report.precision.compute) / 1e12
    table.add_row("assumed", f"{report.mfu:.0%} of {peak:,.0f} TFLOPS (mfu=...)")
    table.add_row("a pass forward and back", f"{report.seconds:.3f} s for {report.batch:,} pictures")
    if report.accumulated > 1:
        whole = report.batch * report.accumulated
        table.add_row(
            "an optimizer's step", f"{report.seconds * report.accumulated:.3f} s for {whole:,} pictures"
        )
    steps = report.num_images / (report.batch * report.accumulated)
    table.add_row("pictures, steps", f"{report.num_images:,}, {steps:,.0f}")
    table.add_row("pictures a second", f"{report.batch / report.seconds:,.1f}")
    table.add_row("hours", f"{report.hours:,.1f}")
    table.add_row("device hours", f"{report.hours * report.sharing.processes:,.0f}")
    if report.sharing.processes > 1:
        sent = report.state.trained * report.precision.weights / GIB
        table.add_row("gradients to exchange", f"{sent:.2f} GiB a step, not in the time above")
    table.add_row("room for", f"{report.largest} pictures a device at a time, about")
    return table


def disk(report: Report) -> Table:
    table = _table("disk", "GiB")
    for one in report.disk:
        table.add_row(one.what, f"unknown: {one.remedy}" if one.size is None else _gib(one.size))
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), title_justify="left")
    for place, title in enumerate(titles):
        table.add_column(title, justify="left" if place == 0 else "right", header_style="bold underline")
    return table


def _tera(flops: int) -> str:
    return f"{flops / 1e12:,.3f}"


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f}" if size > GIB else f"{size / GIB:,.3f}"
