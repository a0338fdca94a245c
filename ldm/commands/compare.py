"""``ldm compare``: is one run better than another, and how sure is that? Reads run folders, measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ldm.commands.compare_page import make_page, write_page
from ldm.commands.compare_rows import rows_of
from ldm.commands.compare_runs import read_record
from ldm.commands.compare_table_data import Recipe, Row, recipes_of
from ldm.commands.compare_tables import change_table, level_table, score_table, speed_table, write_csv
from ldm.commands.compare_verdicts import ALIKE, SAME
from ldm.evaluation.significance import PICTURES


@dataclass(frozen=True)
class Comparison:
    """What was found: recipes in the order given, the table's rows, and what must be known to read it."""

    recipes: tuple[Recipe, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    lacking: tuple[str, ...]


def compare(
    *,
    runs: list[str],
    labels: list[str] | None = None,
    across: list[str] | None = None,
    metrics: list[str] | None = None,
    at_images: int | None = None,
    out: str = "comparison",
    folder: str = "runs",
) -> Comparison:
    """Compare runs: config, scores with intervals, pinned loss by noise level, speed, cost and samples side by side.

    Reads what ``ldm evaluate`` left in the run folders. Runs that differ by their seed only count as one recipe; the
    others stand beside the first. Prints tables, writes <out>.html, one file with everything in it, and <out>.csv.

    Args:
        runs: two or more: run folders, ``<name>/<run id>`` or ``<name>``.
        labels: what they are called, one for each run, the same for runs of one recipe; null makes them from the runs.
        across: fields of the protocol that may differ because they are what is compared, such as guidance.scale.
        metrics: only these, or those of these groups ("composition" takes composition/colour); null for all.
        at_images: only scores of checkpoints that had seen so many images; null takes each run's newest.
        out: where to write, without an ending.
        folder: of all runs.

    Raises:
        MixedProtocols: Scores were measured in different ways; the field is named.
        ValueError: There are fewer than two runs, one is named twice, or labels do not fit.
    """
    comparison = make_comparison(
        runs, labels=labels, across=across or (), metrics=metrics, at_images=at_images, folder=folder
    )
    console = Console()
    recipes, rows = comparison.recipes, comparison.rows
    console.print(change_table(recipes), speed_table(recipes), score_table(recipes, rows))
    for row in rows:
        if row.levels:
            console.print(level_table(recipes, row))
    for line in (*comparison.notes, *comparison.lacking):
        console.print(f"· {line}", highlight=False, markup=False)
    title = " / ".join(recipe.label for recipe in recipes)
    page, table = Path(f"{out}.html"), Path(f"{out}.csv")
    write_page(
        page, make_page(recipes, rows, notes=comparison.notes, lacking=comparison.lacking, title=title)
    )
    table.write_text(write_csv(rows))
    console.print(f"written to {page} and {table}", soft_wrap=True)
    return comparison


def make_comparison(
    runs: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    across: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    at_images: int | None = None,
    folder: str = "runs",
) -> Comparison:
    """What ``compare`` shows and writes."""
    if len(runs) < 2:
        raise ValueError(f"runs={list(runs)}: name two or more runs to compare")
    if labels is not None and len(labels) != len(runs):
        raise ValueError(f"there are {len(labels)} labels for {len(runs)} runs: give one for each")
    records = [read_record(run, runs=folder) for run in runs]
    paths = [record.folder.path for record in records]
    if twice := next((record.label for record in records if paths.count(record.folder.path) > 1), None):
        raise ValueError(f"{twice} is named twice: a run beside itself shows nothing")
    recipes = recipes_of(records, labels)
    rows, lacking = rows_of(recipes, across=across, at_images=at_images)
    if metrics is not None:
        known = [row.metric for row in rows]
        for name in metrics:
            if not any(_of(metric, name) for metric in known):
                told = ", ".join(known) or "none"
                raise ValueError(f"metrics: {name} was not measured for all runs; what was: {told}")
        rows = [row for row in rows if any(_of(row.metric, name) for name in metrics)]
    return Comparison(tuple(recipes), tuple(rows), tuple(_notes(recipes, rows, across)), tuple(lacking))


def _of(metric: str, name: str) -> bool:
    return metric == name or metric.startswith(f"{name}/")


def _notes(recipes: Sequence[Recipe], rows: Sequence[Row], across: Sequence[str]) -> Iterator[str]:
    """What must be known to read the tables."""
    verdicts = [verdict for row in rows for verdict in row.verdicts.values()]
    if not rows:
        yield (
            "there is no metric that all runs have: ldm evaluate run=<run> metrics=[pinned_loss] for each of them "
            "needs no downloaded weights"
        )
    if any(verdict.text == SAME for verdict in verdicts):
        yield (
            f"runs that differ by their seed only are one recipe and {ALIKE}, whatever their scores: "
            "the differences shown are what a seed does"
        )
    if any(verdict.difference.over == PICTURES and verdict.text != SAME for verdict in verdicts):
        yield (
            "where each recipe has one run, intervals are over pictures: they tell whether these runs differ, not "
            "whether their recipes do; train several seeds for that (ldm ablate seeds=3)"
        )
    if any(len(recipe.runs) > 1 for recipe in recipes):
        yield "scores of several runs are their means, intervals are over runs and, for differences, over pictures too"
    num = sum(verdict.adjusted is not None for verdict in verdicts)
    if num:
        yield (
            f"{num} {'comparison' if num == 1 else 'comparisons'} with {recipes[0].label}, judged at 5 % for all of "
            "them together (Holm); noise levels of a metric are a family of their own; the intervals shown are not "
            "adjusted"
        )
    seen = {run for recipe in recipes for row in rows for run in row.cells[recipe.label].images_seen}
    if len(seen) > 1:
        yield f"scores are of checkpoints at different images seen: {', '.join(f'{n:,}' for n in sorted(seen))}"
    if across:
        yield f"measured in ways that differ in {', '.join(across)}, as was allowed"
    for run in (run for recipe in recipes for run in recipe.runs):
        if not run.finished:
            yield f"{run.label} has not finished"
    commits = {run.commit for recipe in recipes for run in recipe.runs if run.commit}
    if len(commits) > 1:
        yield f"the runs were trained by different versions of the code: {', '.join(sorted(commits))}"
