"""What ``ldm evaluate`` shows: a bar for each walk over pictures, and tables of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ldm.evaluation.scores import Score
from ldm.evaluation.subject import Metric
from ldm.training.ranks import Ranks


@contextmanager
def shown(ranks: Ranks) -> Iterator[Any]:
    """A bar for each walk over pictures; yields what is told of them."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=Console(stderr=True, quiet=not ranks.is_main), transient=True
    ) as progress:
        tasks: dict[str, Any] = {}

        def on_batch(title: str, seen: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=total)
            progress.update(tasks[title], completed=seen)

        yield on_batch


def report(
    console: Console,
    metrics: Mapping[str, Metric],
    scores: Mapping[str, Sequence[Score]],
    unfit: Mapping[str, str],
    *,
    title: str,
) -> None:
    """The scores of one checkpoint: tables of metrics that have their own, and one for all others."""
    others = Table("score", "value", "95 % interval", "pictures", "features", title=title)
    for name, metric in metrics.items():
        own = metric.table(scores[name], title=title) if hasattr(metric, "table") else None
        if own is not None:
            console.print(own)
            continue
        for one in scores[name]:
            interval = "-" if one.low is None else f"{one.low:.4g} to {one.high:.4g}"
            features = one.protocol.features or "-"
            others.add_row(one.metric, f"{one.value:.4g}", interval, f"{one.num:,}", features)
    if others.row_count:
        console.print(others)
    for name, reason in unfit.items():
        console.print(f"{name} is left out: {reason}", soft_wrap=True, highlight=False)
