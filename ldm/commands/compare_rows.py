"""Scores of several runs as the rows of one table, paired picture by picture where the values are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from ldm.commands.compare_table_data import Cell, Recipe, Row, Verdict
from ldm.commands.compare_verdicts import judged
from ldm.evaluation.bootstrap import mean_interval
from ldm.evaluation.protocol import differences, refuse_mixed
from ldm.evaluation.scores import PerSample, Score, newest, read_per_sample
from ldm.evaluation.significance import difference_of_scores, paired_differences

# Fields that may differ without a word: what a schedule reaches is the model's; the levels that all reach are compared.
OWN = {"pinned_loss": ("details.reached",)}


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
    return judged(rows, recipes), lacking


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
        fewer = any(
            not np.isclose(run.mean(), score.value, rtol=1e-5)
            for runs, own in zip(whole, scores, strict=True)
            for run, score in zip(runs, own, strict=True)
        )
        row = _table_row(recipes, scores, way, whole, 0, example.metric, derived=fewer)
        if len(columns) == 1 or not all(map(_is_number, columns)):
            return row
        levels = tuple(
            _table_row(recipes, scores, way, values, k, f"{example.metric}/{name}", derived=True)
            for k, name in enumerate(columns)
        )
        return replace(row, levels=levels)
    return _table_row(recipes, scores, way, None, 0, example.metric)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


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
    shared = set.intersection(*(set(one.keys) for one in every))
    keys = [key for key in every[0].keys if key in shared]
    columns = [name for name in every[0].columns if all(_is_whole(one, name) for one in every)]
    if len(keys) < 2 or not columns:
        return None

    def aligned(one: PerSample) -> np.ndarray:
        place = {key: i for i, key in enumerate(one.keys)}
        return one.values[[place[key] for key in keys]][:, [one.columns.index(name) for name in columns]]

    return columns, [[aligned(one) for one in own] for own in found]


def _is_whole(samples: PerSample, column: str) -> bool:
    """Whether each sample has a number there."""
    return column in samples.columns and bool(
        np.isfinite(samples.values[:, samples.columns.index(column)]).all()
    )


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
    *,
    derived: bool = False,
) -> Row:
    """One row, from values of single samples (N, K) for each run where there are any, else from the scores alone.

    derived: The values shown are not the scores but means of these samples: of one level, or of fewer.
    """
    first, cells, verdicts = recipes[0], {}, {}
    for i, recipe in enumerate(recipes):
        columns = None if values is None else [run[:, [column]] for run in values[i]]
        cells[recipe.label] = _cell(scores[i], columns if derived else None)
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
        cells=cells,
        verdicts=verdicts,
    )


def _cell(scores: Sequence[Score], columns: Sequence[np.ndarray] | None) -> Cell:
    """columns: values of single samples (N, 1) of each run, where they and not the scores are shown."""
    seen = tuple(score.images_seen for score in scores)
    told = scores[0].protocol.hash
    if columns is None and len(scores) == 1:
        [score] = scores
        return Cell(score.value, score.low, score.high, (score.value,), seen, told)
    if columns is not None and len(scores) == 1:
        one = mean_interval(columns[0][:, 0])
        return Cell(one.value, one.low, one.high, (one.value,), seen, told)
    per_run = (
        tuple(score.value for score in scores) if columns is None else tuple(float(x.mean()) for x in columns)
    )
    mean = float(np.mean(per_run))
    half = float(stats.t.ppf(0.975, len(per_run) - 1) * stats.sem(per_run))
    return Cell(mean, mean - half, mean + half, per_run, seen, told)
