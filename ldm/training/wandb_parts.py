"""Offline parts of one run, which every restart begins anew, joined to the run that was never interrupted.

::

    <run>/wandb/offline-run-20260101_101010-<run id>/    one part: run-<run id>.wandb, files/
    <run>/wandb/joined-run-<run id>/                     all of them, as ``wandb sync`` takes it

``wandb sync`` of the parts themselves puts the second over the first, since each counts its rows from 0. Here rows are
counted through, and what a part logged beyond the step where a later one took up again is left out: it was made anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.training.wandb_files import read_records, write_records

STEP = "trainer/global_step"  # what rows are drawn over, and what tells which were made anew
ONCE = ("header", "run", "environment")  # kinds of records that the first part has for all
LAST = ("exit", "final", "footer")  # and the last part


@dataclass(frozen=True)
class Joined:
    """What came of it.

    Args:
        folder: Where it is.
        parts: How many there were.
        rows: How many it has.
        made_anew: Rows of the parts that were left out.
    """

    folder: Path
    parts: int
    rows: int
    made_anew: int


def offline_parts(wandb: Path) -> list[Path]:
    """The files of a run's offline parts, in the order in which they were begun."""
    return sorted(wandb.glob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)


def join(wandb: Path, run_id: str) -> Joined:
    """Write the parts below ``wandb`` as one run; they stay as they are.

    Raises:
        FileNotFoundError: There are none.
        ValueError: One of them is no file of wandb's.
    """
    files = [file for file in offline_parts(wandb) if file.stem == f"run-{run_id}"]
    if not files:
        raise FileNotFoundError(
            f"{wandb} has no offline parts of the run {run_id} (offline-run-*/run-*.wandb)"
        )
    parts = [list(read_records(file)) for file in files]
    place = wandb / f"joined-run-{run_id}"
    draft = wandb / f".tmp-{place.name}"
    for old in (draft, place):
        shutil.rmtree(old, ignore_errors=True)
    draft.mkdir()
    for file in files:
        if (file.parent / "files").is_dir():
            shutil.copytree(file.parent / "files", draft / "files", dirs_exist_ok=True)
    records = list(joined(parts))
    write_records(draft / files[0].name, records)
    draft.rename(place)
    rows = _rows(records)
    return Joined(place, len(files), rows, sum(map(_rows, parts)) - rows)


def joined(parts: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """The records of one run from those of its parts."""
    row, began = 0, None
    seen: set[tuple[str, bytes]] = set()  # definitions that every part repeats
    for number, records in enumerate(parts):
        over = [told for later in parts[number + 1 :] if (told := _first(later)) is not None]
        first_of_later = min(over, key=lambda told: told[0]) if over else None
        beyond = False  # what is logged from here on was made anew
        for record in records:
            kind = str(record.WhichOneof("record_type"))
            content = getattr(record, kind).SerializeToString() if kind != "None" else b""
            if (kind in ONCE and number > 0) or (kind in LAST and number < len(parts) - 1):
                continue
            if kind in ("metric", "telemetry"):
                if (kind, content) in seen:
                    continue
                seen.add((kind, content))
            if kind == "history":
                values = row_of(record)
                if first_of_later and _was_made_anew(values, *first_of_later):
                    beyond = True
                    continue
                began = began if began is not None else float(values.get("_timestamp", 0))
                _renumber(record, row, seconds=float(values.get("_timestamp", 0)) - began)
                row += 1
            elif kind == "summary":
                if beyond:
                    continue
                _set(record.summary.update, "_step", str(row))
            yield record


def row_of(record: Any) -> dict[str, Any]:
    """A row of the history as it was logged."""
    return {
        ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
    }


def _first(records: Sequence[Any]) -> tuple[float, set[str]] | None:
    """The step at which a part takes up again, and what it logs under it; None for one that has logged nothing."""
    rows = [row_of(record) for record in records if record.WhichOneof("record_type") == "history"]
    steps = [float(row[STEP]) for row in rows if STEP in row]
    if not steps:
        return None
    step = min(steps)
    return step, {name for row in rows if row.get(STEP) == step for name in row}


def _was_made_anew(row: Mapping[str, Any], step: float, names: set[str]) -> bool:
    at = float(row.get(STEP, -1))
    return at > step or (at == step and row.keys() <= names)


def _renumber(record: Any, row: int, *, seconds: float) -> None:
    record.history.step.num = row
    _set(record.history.item, "_step", str(row))
    _set(record.history.item, "_runtime", repr(seconds))


def _set(items: Any, name: str, value: str) -> None:
    for item in items:
        if item.key == name or list(item.nested_key) == [name]:
            item.value_json = value


def _rows(records: Sequence[Any]) -> int:
    return sum(record.WhichOneof("record_type") == "history" for record in records)
