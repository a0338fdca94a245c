"""A comparison as one HTML file that needs nothing but itself: pictures inside, no scripts, no addresses."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ldm.commands.compare_pictures import draw_levels, draw_progress
from ldm.commands.compare_runs import pictures
from ldm.commands.compare_table_data import Recipe, Row
from ldm.commands.compare_tables import SPEED_COLUMNS, changed, difference, number, shown, speeds
from ldm.evaluation.protocol import Protocol

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } caption { text-align: left; color: #666; padding-bottom: .3rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
small { color: #666; white-space: normal; } .better { color: #00664a; } .worse { color: #a03c00; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; } figcaption { color: #444; }
img { max-width: 100%; } details { margin: .4rem 0; } code, pre { font-size: .85rem; }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #ddd; } th, td { border-color: #333; } small, caption, figcaption { color: #999; }
  .better { color: #54c59f; } .worse { color: #f0925a; } img { background: #fff; }
}
"""


def make_page(
    recipes: Sequence[Recipe],
    rows: Sequence[Row],
    *,
    notes: Sequence[str],
    lacking: Sequence[str],
    title: str,
) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        _list("notes", notes),
        _section("Scores", _scores(recipes, rows)),
        *(
            _section(f"{row.metric} by log-SNR, {row.way}", _levels(recipes, row))
            for row in rows
            if row.levels
        ),
        _section("Over images seen", _progress(recipes, rows)),
        _section("Samples", _samples(recipes)),
        _section("Config", _changes(recipes)),
        _section("Training", _table(SPEED_COLUMNS, speeds(recipes), numbers=range(1, 7))),
        _section("Not compared", _list("lacking", lacking) if lacking else ""),
        _section("How it was measured", _passports(recipes, rows)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _scores(recipes: Sequence[Recipe], rows: Sequence[Row]) -> str:
    head = ["metric", *(recipe.label for recipe in recipes)]
    body = []
    for row in rows:
        arrow = {True: " ↓", False: " ↑", None: ""}[row.lower_is_better]
        cells = [f"{escape(row.metric)}{arrow}<br><small>{escape(row.way)}</small>"]
        for recipe in recipes:
            text = escape(shown(row.cells[recipe.label]))
            if verdict := row.verdicts.get(recipe.label):
                word = verdict.text.split(",")[0]
                kind = word if word in ("better", "worse") else ""
                text += (
                    f'<br><span class="{kind}">{escape(verdict.text)}</span>'
                    f"<br><small>{escape(difference(verdict))}</small>"
                )
            cells.append(text)
        body.append(cells)
    return _table(head, body, numbers=range(1, len(head)), raw=True)


def _levels(recipes: Sequence[Recipe], row: Row) -> str:
    head = [
        "log-SNR",
        recipes[0].label,
        *(f"{recipe.label} less {recipes[0].label}" for recipe in recipes[1:]),
    ]
    body = [
        [
            level.metric.rpartition("/")[2],
            number(level.cells[recipes[0].label].value),
            *(
                f"{difference(level.verdicts[recipe.label])} {level.verdicts[recipe.label].text}"
                for recipe in recipes[1:]
            ),
        ]
        for level in row.levels
    ]
    picture = _picture(draw_levels(recipes, row), f"{row.metric} over log-SNR and its differences")
    return picture + _table(head, body, numbers=range(0, len(head)))


def _progress(recipes: Sequence[Recipe], rows: Sequence[Row]) -> str:
    drawn = [(row, draw_progress(recipes, row)) for row in rows]
    return "".join(
        f"<figure>{_picture(png, f'{row.metric} over images seen')}</figure>" for row, png in drawn if png
    )


def _samples(recipes: Sequence[Recipe]) -> str:
    records = [run for recipe in recipes for run in recipe.runs]
    found = pictures(records)
    if not found:
        return ""
    same = len({record.prompts for record in records if record.label in found}) == 1
    told = (
        "the same prompts from the same noise" if same else "other prompts or other noise: not to be compared"
    )
    figures = "".join(
        f"<figure>{_picture(path.read_bytes(), f'samples of {label}')}"
        f"<figcaption>{escape(label)}, {int(path.stem):,} images seen</figcaption></figure>"
        for label, path in found.items()
    )
    return f"<p>{told}</p>{figures}"


def _changes(recipes: Sequence[Recipe]) -> str:
    entries = [[label, key, str(before), str(now)] for label, key, before, now in changed(recipes)]
    return (
        _table(("recipe", "key", f"in {recipes[0].label}", "here"), entries)
        if entries
        else "<p>no difference</p>"
    )


def _passports(recipes: Sequence[Recipe], rows: Sequence[Row]) -> str:
    """Each row's protocol, as the first run's score tells it, and with what each run's was made."""
    out = []
    for row in rows:
        for score in recipes[0].runs[0].scores:
            if score.protocol.hash == row.cells[recipes[0].label].protocol_hash:
                out.append(_passport(row, score.protocol, score.interval))
                break
    return "\n".join(out)


def _passport(row: Row, protocol: Protocol, interval: str) -> str:
    told = {name: value for name, value in protocol.to_plain().items() if value not in ("", None, {}, [])}
    entries = [[name, str(value)] for name, value in told.items()]
    entries.append(["interval of each score", interval or "none"])
    head = f"{escape(row.metric)}, {escape(row.way)}: <code>{protocol.hash[:12]}</code>"
    return f"<details><summary>{head}</summary>{_table(('field', 'value'), entries)}</details>"


def _table(
    head: Sequence[str], body: Iterable[Sequence[str]], *, numbers: Iterable[int] = (), raw: bool = False
) -> str:
    """raw: The cells of the body are HTML already."""
    right = set(numbers)

    def cell(tag: str, i: int, text: str) -> str:
        kind = ' class="number"' if i in right else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    top = "".join(cell("th", i, escape(text)) for i, text in enumerate(head))
    lines = [
        "<tr>"
        + "".join(cell("td", i, text if raw else escape(text)) for i, text in enumerate(line))
        + "</tr>"
        for line in body
    ]
    return f'<div class="wide"><table>\n<tr>{top}</tr>\n' + "\n".join(lines) + "\n</table></div>"


def _list(kind: str, entries: Sequence[str]) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(entry)}</li>" for entry in entries) + "</ul>"


def _picture(png: bytes, about: str) -> str:
    return f'<img alt="{escape(about)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def write_page(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
