"""A comparison as tables: on the terminal, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ldm.commands.compare_runs import changes
from ldm.commands.compare_table_data import Cell, Recipe, Row, Verdict

COLUMNS = (
    *("metric", "measured", "recipe", "value", "low", "high", "runs", "images_seen"),
    *("difference", "difference_low", "difference_high", "p", "p_holm", "over", "verdict", "protocol"),
)
LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "_": r"\_",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
    }
    | {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def score_table(recipes: Sequence[Recipe], rows: Sequence[Row]) -> Table:
    """The scores for people: a column for each recipe, beneath each score the verdict beside the first one."""
    table = Table(title="scores with 95 % intervals")
    table.add_column("metric")
    for recipe in recipes:
        table.add_column(recipe.label, justify="right", overflow="fold")
    for row in rows:
        cells = [shown(row.cells[recipe.label]) for recipe in recipes]
        said = [row.verdicts[recipe.label].text if recipe.label in row.verdicts else "" for recipe in recipes]
        arrow = {True: " ↓", False: " ↑", None: ""}[row.lower_is_better]
        name = f"{row.metric}{arrow}" + (f"\n{row.way}" if row.way else "")
        table.add_row(name, *(f"{cell}\n{text}".rstrip() for cell, text in zip(cells, said, strict=True)))
    return table


def level_table(recipes: Sequence[Recipe], row: Row) -> Table:
    """Differences to the first recipe, column by column of a metric that has several."""
    table = Table(title=f"{row.metric} less that of {recipes[0].label}, by log-SNR ({row.way})")
    table.add_column("log-SNR", justify="right")
    table.add_column(recipes[0].label, justify="right", overflow="fold")
    for recipe in recipes[1:]:
        table.add_column(recipe.label, justify="right", overflow="fold")
    for level in row.levels:
        verdicts = [level.verdicts[recipe.label] for recipe in recipes[1:]]
        table.add_row(
            level.metric.rpartition("/")[2],
            number(level.cells[recipes[0].label].value),
            *(f"{difference(one)}\n{one.text}" for one in verdicts),
        )
    return table


def change_table(recipes: Sequence[Recipe]) -> Table:
    """What the recipes were told otherwise than the first one."""
    table = Table(title=f"config, beside {recipes[0].label}")
    table.add_column("recipe", overflow="fold")
    table.add_column("key", overflow="fold")
    table.add_column("there", overflow="fold")
    table.add_column("here", overflow="fold")
    for label, key, before, now in changed(recipes):
        table.add_row(label, key, str(before), str(now))
    return table


def speed_table(recipes: Sequence[Recipe]) -> Table:
    """What the trainings took; of several runs the mean."""
    table = Table(
        title="training", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )  # nine columns into 80 characters
    for name in SPEED_COLUMNS:
        left = name == "run"
        table.add_column(
            name, justify="left" if left else "right", overflow="fold", no_wrap=name == "images/s"
        )
    for entry in speeds(recipes):
        table.add_row(*entry)
    return table


SPEED_COLUMNS = ("run", "seed", "images", "images/s", "device hours", "memory, GiB", "MFU", "device", "state")


def speeds(recipes: Sequence[Recipe]) -> Iterator[tuple[str, ...]]:
    """A row of ``SPEED_COLUMNS`` for each run; "-" where a run did not note it."""
    for run in (run for recipe in recipes for run in recipe.runs):
        speed = run.speed
        yield (
            run.label,
            str(run.seed),
            f"{run.images_seen:,}",
            f"{speed.images_per_second:.4g}" if speed else "-",
            f"{speed.device_hours(run.images_seen):.3g}" if speed else "-",
            f"{speed.peak_memory_gib:.3g}" if speed and speed.peak_memory_gib is not None else "-",
            f"{100 * speed.mfu:.1f} %" if speed and speed.mfu is not None else "-",
            run.device,
            "finished" if run.finished else "unfinished",
        )


def changed(recipes: Sequence[Recipe]) -> Iterator[tuple[str, str, Any, Any]]:
    """(label, key, in the first recipe, in this one); seeds are no part of a recipe."""
    for recipe in recipes[1:]:
        for key, before, now in changes(recipes[0].runs[0], recipe.runs[0]):
            if key != "seed" or len(recipe.runs) == 1:
                yield recipe.label, key, before, now


def write_csv(rows: Sequence[Row]) -> str:
    """All numbers, unrounded: a line for each metric and recipe, levels included."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in (each for whole in rows for each in (whole, *whole.levels)):
        for label, cell in row.cells.items():
            verdict = row.verdicts.get(label)
            told = () if verdict is None else _told(verdict)
            seen = " ".join(map(str, sorted(set(cell.images_seen))))
            ends = ["" if x is None else x for x in (cell.low, cell.high)]
            own = [row.metric, row.way, label, cell.value, *ends, len(cell.per_run), seen]
            writer.writerow([*own, *(told or [""] * 7), cell.protocol_hash])
    return text.getvalue()


def markdown(recipes: Sequence[Recipe], rows: Sequence[Row], *, notes: Sequence[str]) -> str:
    """The table of a paper's README: recipes down, metrics across, what is distinguishable in bold."""
    head = ["", *(_heading(row) for row in rows)]
    lines = [head, ["---", *["---:"] * len(rows)]]
    for recipe in recipes:
        cells = [_marked(row, recipe.label, "**{}**", shown(row.cells[recipe.label])) for row in rows]
        lines.append([recipe.label, *cells])
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return table + "\n\n" + "\n".join(f"{note}  " for note in notes) + "\n"


def latex(recipes: Sequence[Recipe], rows: Sequence[Row], *, notes: Sequence[str]) -> str:
    """The same for the paper itself, with booktabs; values with half the interval's width."""
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * len(rows)}}}",
        "\\toprule",
        " & ".join(["", *(_heading(row, latex=True) for row in rows)]) + r" \\",
        "\\midrule",
    ]
    for recipe in recipes:
        cells = [
            _marked(row, recipe.label, "\\textbf{{{}}}", _plus_minus(row.cells[recipe.label])) for row in rows
        ]
        lines.append(" & ".join([recipe.label.translate(LATEX), *cells]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}", *(f"% {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def shown(cell: Cell) -> str:
    """ "0.512 [0.498, 0.527]"; over several runs with their number."""
    ends = "" if cell.low is None or cell.high is None else f" [{number(cell.low)}, {number(cell.high)}]"
    return f"{number(cell.value)}{ends}"


def difference(verdict: Verdict) -> str:
    one = verdict.difference
    ends = "" if one.low is None or one.high is None else f" [{one.low:+.3g}, {one.high:+.3g}]"
    return f"{one.value:+.3g}{ends}"


def number(value: float) -> str:
    return f"{value:.4g}"


def _told(verdict: Verdict) -> list[Any]:
    one = verdict.difference
    numbers = [one.value, one.low, one.high, one.p, verdict.adjusted]
    return [*("" if x is None else x for x in numbers), one.over, verdict.text]


def _heading(row: Row, *, latex: bool = False) -> str:
    arrows = ("$\\downarrow$", "$\\uparrow$") if latex else ("↓", "↑")
    arrow = "" if row.lower_is_better is None else f" {arrows[0 if row.lower_is_better else 1]}"
    name = f"{row.metric}, {row.way}" if row.way else row.metric
    return (name.translate(LATEX) if latex else name) + arrow


def _marked(row: Row, label: str, mark: str, text: str) -> str:
    """In bold where it is better than the first recipe beyond doubt; worse ones with a dagger."""
    verdict = row.verdicts.get(label)
    if verdict is None:
        return text
    if verdict.text.startswith("better"):
        return mark.format(text)
    return (
        f"{text} †"
        if verdict.text.startswith("worse") and "\\" not in mark
        else (f"{text}$^\\dagger$" if verdict.text.startswith("worse") else text)
    )


def _plus_minus(cell: Cell) -> str:
    if cell.low is None or cell.high is None:
        return f"${number(cell.value)}$"
    return f"${number(cell.value)} \\pm {(cell.high - cell.low) / 2:.2g}$"
