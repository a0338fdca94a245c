"""Better, worse, or not to be told apart: differences put into words, for all of a table together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ldm.commands.compare_table_data import Recipe, Row
from ldm.evaluation.significance import PICTURES, Difference, holm

ALIKE = "not distinguishable"
SAME = f"{ALIKE}: one recipe"
UNKNOWN = "cannot be told: no interval"
LEVEL = 0.05


def judged(rows: Sequence[Row], recipes: Sequence[Recipe]) -> list[Row]:
    """With words, p-values adjusted for the whole table and, apart from it, for the levels of each metric."""
    alike = {recipe.label for recipe in recipes if recipe.runs[0].recipe == recipes[0].runs[0].recipe}
    whole = _worded(rows, alike)
    return [replace(row, levels=tuple(_worded(row.levels, alike))) for row in whole]


def _worded(family: Sequence[Row], alike: set[str]) -> list[Row]:
    places = [
        (i, label)
        for i, row in enumerate(family)
        for label, verdict in row.verdicts.items()
        if verdict.difference.p is not None and label not in alike
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
