"""What a comparison is made of: recipes, their scores, and how each stands beside the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ldm.commands.compare_runs import Record
from ldm.evaluation.significance import Difference


@dataclass(frozen=True)
class Recipe:
    """Runs that differ by their seed only."""

    label: str
    runs: tuple[Record, ...]  # by seed

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


@dataclass(frozen=True)
class Cell:
    """A recipe's score: of one run with its own interval, of several their mean with an interval over runs."""

    value: float
    low: float | None
    high: float | None
    per_run: tuple[float, ...]
    images_seen: tuple[int, ...]
    protocol_hash: str  # of the first run's score


@dataclass(frozen=True)
class Verdict:
    """A recipe beside the first one."""

    difference: Difference
    text: str
    adjusted: float | None = None  # p, for all comparisons of its family


@dataclass(frozen=True)
class Row:
    """One metric, measured in one way."""

    metric: str
    way: str  # what tells it from other rows of the metric, such as its weights
    lower_is_better: bool | None
    cells: dict[str, Cell]  # by the recipes' labels
    verdicts: dict[str, Verdict]  # by the labels of all but the first
    levels: tuple[Row, ...] = field(default=())  # its columns one by one, where it has several


def recipes_of(records: Sequence[Record], labels: Sequence[str] | None = None) -> list[Recipe]:
    """Runs by recipe, in the order given. Where all share one recipe, each is a column of its own.

    Args:
        labels: One for each run, the same for runs of a recipe; None for names made of the runs' own.

    Raises:
        ValueError: Runs of several recipes have the same label.
    """
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(labels[i] if labels else record.recipe, []).append(i)
    for label, members in groups.items():
        if len({records[i].recipe for i in members}) > 1:
            names = ", ".join(records[i].label for i in members)
            raise ValueError(
                f"{names} are called {label} alike, but their configs differ by more than the seed"
            )
    if len(groups) == 1:
        return [Recipe(record.label, (record,)) for record in records]
    found = []
    for key, members in groups.items():
        runs = sorted((records[i] for i in members), key=lambda record: record.seed)
        name = runs[0].label if len(runs) == 1 else f"{runs[0].label} and {len(runs) - 1} more"
        found.append(Recipe(key if labels else name, tuple(runs)))
    return found
