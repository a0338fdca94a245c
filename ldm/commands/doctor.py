"""``ldm doctor``: whether a training could run on this machine, and what to do where it could not."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ldm.commands.checkup import examined
from ldm.commands.errors import FAILED, MISSING
from ldm.commands.findings import FAIL, OK, Finding

COLOURS = {OK: "green", FAIL: "bold red"}


def doctor(*, training: DictConfig | None = None) -> None:
    """Check what a training needs on this machine: files, packages, GPU, disk, shards, batch, codec, W&B.

    What is given are overrides of train.py: ``ldm doctor experiment=sdxl_base data.train_shards=<shards>``. Nothing is
    built, read whole or downloaded, so that a job script can begin with it. The exit status is 69 where files or
    packages are missing, 1 where anything else would make the job fail, 2 for a config that cannot be used; a warning
    does not change it.

    Args:
        training: The training's config.
    """
    assert training is not None
    findings = examined(training)
    show(findings)
    failed = [one for one in findings if one.level == FAIL]
    if failed:
        print(f"error: {len(failed)} of {len(findings)} checks failed", file=sys.stderr)
        sys.exit(MISSING if any(one.missing for one in failed) else FAILED)


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """A row for each check."""
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("", "what", "found", "what to do"):
        table.add_column(title, overflow="fold", header_style="bold underline")
    for one in findings:
        colour = COLOURS.get(one.level, "yellow")
        table.add_row(f"[{colour}]{one.level}[/{colour}]", *map(escaped, (one.what, one.found, one.remedy)))
    console.print(table)


def escaped(text: str) -> str:
    """Without what rich would take for markup."""
    return text.replace("[", "\\[")
