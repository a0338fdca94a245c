"""Which recipe is better, metric by metric and noise level by noise level, and which cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from ldm.commands.compare_runs import Record
from ldm.evaluation.bootstrap import mean_interval
from ldm.evaluation.protocol import differences, refuse_mixed
from ldm.evaluation.scores import PerSample, Score, newest, read_per_sample
from ldm.evaluation.significance import (
    PICTURES,
    Difference,
    difference_of_scores,
    holm,
    paired_differences,
)

ALIKE = "not distinguishable"
SAME = f"{ALIKE}: one recipe"
UNKNOWN = "cannot be told: no interval"
LEVEL = 0.05
# Fields that may differ without a word: what a schedule reaches is the model's; the levels that all reach are compared.
OWN = {"pinned_loss": ("details.reached",)}


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
    protocol_hash: str
    num: int
    cells: dict[str, Cell]  # by the recipes' labels
    verdicts: dict[str, Verdict]  # by the labels of all but the first
    levels: tuple[Row, ...] = field(default=())  # its columns one by one, where it has several


def recipes_of(records: Sequence[Record], labels: Sequence[str] | None = None) -> list[Recipe]:
    """Runs by recipe, in the order given. Where all share one recipe, each is a column of its own.

    Args:
        labels: One for each run, the same for runs of a recipe; None for names made of the runs' own.
    """
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(labels[i] if labels else record.recipe, []).append(i)
    if len(groups) == 1:
        return [Recipe(record.label, (record,)) for record in records]
    found = []
    for key, members in groups.items():
        runs = sorted((records[i] for i in members), key=lambda record: record.seed)
        name = runs[0].label if len(runs) == 1 else f"{runs[0].label} and {len(runs) - 1} more"
        found.append(Recipe(key if labels else name, tuple(runs)))
    return found


def rows_of(
    recipes: Sequence[Recipe], *, across: Sequence[str] = (), at_images: int | None = None
) -> tuple[list[Row], list[str]]:
    """The table, and the metrics that not all runs have.

    Args:
        across: Fields of the protocol that may differ, being what is compared.
        at_images: Only scores of checkpoints that had seen so many; None takes each run's newest.

    Raises:
        MixedProtocols: A metric was measured in no way that all runs share.
    """
    records = [run for recipe in recipes for run in recipe.runs]
    scores = {
        run.label: [score for score in run.scores if at_images in (None, score.images_seen)]
        for run in records
    }
    rows, lacking = [], []
    for metric in dict.fromkeys(score.metric for run in records for score in scores[run.label]):
        own = {run.label: [score for score in scores[run.label] if score.metric == metric] for run in records}
        if missing := [label for label, found in own.items() if not found]:
            lacking.append(f"{metric}: not measured for {', '.join(missing)}")
            continue
        rows += [_row(recipes, chosen, way) for way, chosen in _ways(own, across)]
    return _judged(rows, recipes), lacking


def _ways(own: dict[str, list[Score]], across: Sequence[str]) -> list[tuple[str, dict[str, Score]]]:
    """Each way of measuring that all runs share: what tells it from the others, and label -> its newest score."""
    hashes = [{score.protocol.hash for score in found} for found in own.values()]
    first = next(iter(own.values()))
    shared = [
        known
        for known in dict.fromkeys(score.protocol.hash for score in first)
        if known in set.intersection(*hashes)
    ]
    if not shared or across:
        chosen = {label: newest(found)[found[0].metric] for label, found in own.items()}
        metric = first[0].metric
        refuse_mixed(list(chosen.values()), across=(*across, *OWN.get(metric, ())))
        return [(chosen[next(iter(chosen))].protocol.weights, chosen)]
    protocols = [next(score.protocol for score in first if score.protocol.hash == known) for known in shared]
    ways = []
    for protocol in protocols:
        told = {"weights": protocol.weights} if protocol.weights else {}
        for other in protocols:
            told |= {name: here for name, here, _ in differences(protocol, other)}
        words = [str(value) if name == "weights" else f"{name}={value}" for name, value in told.items()]
        chosen = {
            label: newest([score for score in found if score.protocol.hash == protocol.hash])[protocol.metric]
            for label, found in own.items()
        }
        ways.append((", ".join(words), chosen))
    return ways


def _row(recipes: Sequence[Recipe], chosen: dict[str, Score], way: str) -> Row:
    scores = [[chosen[run.label] for run in recipe.runs] for recipe in recipes]
    samples = _samples(recipes, scores)
    example = scores[0][0]
    if samples is not None:
        columns, values = samples
        whole = [[run.mean(axis=1, keepdims=True) for run in runs] for runs in values]  # (N, 1) each
        row = _table_row(recipes, scores, way, whole, 0, example.metric)
        if len(columns) == 1:
            return row
        levels = tuple(
            _table_row(recipes, scores, way, values, k, f"{example.metric}/{name}")
            for k, name in enumerate(columns)
        )
        return replace(row, levels=levels)
    return _table_row(recipes, scores, way, None, 0, example.metric)


def _samples(
    recipes: Sequence[Recipe], scores: Sequence[Sequence[Score]]
) -> tuple[list[str], list[list[np.ndarray]]] | None:
    """Columns that all have, and (N, K) of the samples that all have, for each run of each recipe.

    None where a run kept no values of single samples, or its score is not their mean.
    """
    found: list[list[PerSample]] = []
    for recipe, own in zip(recipes, scores, strict=True):
        read = [read_per_sample(run.folder.path, score) for run, score in zip(recipe.runs, own, strict=True)]
        if any(one is None or not _is_mean(one, score) for one, score in zip(read, own, strict=True)):
            return None
        found.append([one for one in read if one is not None])
    every = [one for own in found for one in own]
    keys = [key for key in every[0].keys if all(key in set_ for set_ in [set(one.keys) for one in every[1:]])]
    columns = [
        name
        for name in every[0].columns
        if all(
            name in one.columns and np.isfinite(one.values[:, one.columns.index(name)]).all() for one in every
        )
    ]
    if len(keys) < 2 or not columns:
        return None

    def aligned(one: PerSample) -> np.ndarray:
        place = {key: i for i, key in enumerate(one.keys)}
        return one.values[[place[key] for key in keys]][:, [one.columns.index(name) for name in columns]]

    return columns, [[aligned(one) for one in own] for own in found]


def _is_mean(samples: PerSample, score: Score) -> bool:
    whole = samples.values[:, np.isfinite(samples.values).all(axis=0)]
    return bool(whole.size) and bool(np.isclose(whole.mean(), score.value, rtol=1e-5, atol=1e-9))


def _table_row(
    recipes: Sequence[Recipe],
    scores: Sequence[Sequence[Score]],
    way: str,
    values: Sequence[Sequence[np.ndarray]] | None,
    column: int,
    name: str,
) -> Row:
    """One row, from values of single samples (N, K) for each run where there are any, else from the scores alone."""
    first, cells, verdicts = recipes[0], {}, {}
    for i, recipe in enumerate(recipes):
        columns = None if values is None else [run[:, [column]] for run in values[i]]
        cells[recipe.label] = _cell(scores[i], columns)
        if i == 0:
            continue
        same_seeds = first.seeds == recipe.seeds and len(set(first.seeds)) == len(first.seeds)
        if values is not None and columns is not None:
            reference = [run[:, [column]] for run in values[0]]
            [difference] = paired_differences(reference, columns, same_seeds=same_seeds)
        else:
            ends = [[(score.value, score.low, score.high) for score in own] for own in (scores[0], scores[i])]
            difference = difference_of_scores(*ends, same_seeds=same_seeds)
        verdicts[recipe.label] = Verdict(difference, "")
    example = scores[0][0]
    return Row(
        metric=name,
        way=way,
        lower_is_better=example.lower_is_better,
        protocol_hash=example.protocol.hash,
        num=example.num if values is None else len(values[0][0]),
        cells=cells,
        verdicts=verdicts,
    )


def _cell(scores: Sequence[Score], columns: Sequence[np.ndarray] | None) -> Cell:
    seen = tuple(score.images_seen for score in scores)
    per_run = (
        tuple(float(run.mean()) for run in columns) if columns else tuple(score.value for score in scores)
    )
    if len(scores) > 1:
        half = float(stats.t.ppf(0.975, len(per_run) - 1) * stats.sem(per_run))
        mean = float(np.mean(per_run))
        return Cell(mean, mean - half, mean + half, per_run, seen)
    if columns is not None and not np.isclose(
        per_run[0], scores[0].value
    ):  # over fewer levels, or one of them
        one = mean_interval(columns[0][:, 0])
        return Cell(one.value, one.low, one.high, per_run, seen)
    return Cell(per_run[0], scores[0].low, scores[0].high, per_run, seen)


def _judged(rows: Sequence[Row], recipes: Sequence[Recipe]) -> list[Row]:
    """With words, p-values adjusted for the whole table and, apart from it, for the levels of each metric."""
    alike = {recipe.label for recipe in recipes if recipe.runs[0].recipe == recipes[0].runs[0].recipe}
    judged = _worded(rows, alike)
    return [replace(row, levels=tuple(_worded(row.levels, alike))) for row in judged]


def _worded(family: Sequence[Row], alike: set[str]) -> list[Row]:
    places = [
        (i, label)
        for i, row in enumerate(family)
        for label, verdict in row.verdicts.items()
        if verdict.difference.p is not None
    ]
    adjusted = dict(
        zip(places, holm([family[i].verdicts[label].difference.p or 0.0 for i, label in places]), strict=True)
    )
    out = []
    for i, row in enumerate(family):
        verdicts = {
            label: replace(
                verdict,
                adjusted=adjusted.get((i, label)),
                text=_text(verdict.difference, adjusted.get((i, label)), row, label in alike),
            )
            for label, verdict in row.verdicts.items()
        }
        out.append(replace(row, verdicts=verdicts))
    return out


def _text(difference: Difference, adjusted: float | None, row: Row, alike: bool) -> str:
    if alike:  # a recipe beside itself: whatever differs is what a seed does
        return SAME
    if adjusted is None:
        return UNKNOWN
    if adjusted >= LEVEL:
        return ALIKE
    if row.lower_is_better is None:
        word = "higher" if difference.value > 0 else "lower"
    else:
        word = "better" if (difference.value < 0) == row.lower_is_better else "worse"
    return f"{word}, these two runs" if difference.over == PICTURES else word
