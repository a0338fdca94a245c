"""What people have: a folder of pictures and their captions in a table or beside them -> a list to pack.

Nothing is decoded here, and nothing is lost silently: whatever cannot be packed is listed with its reason.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
CAPTION_COLUMNS = ("caption", "text", "captions", "prompt", "description")

UNREADABLE = "unreadable picture"
NO_CAPTION = "no caption"
NO_PICTURE = "caption without picture"
DUPLICATE = "duplicate picture"
BAD_ROW = "unreadable caption"


@dataclass(frozen=True)
class Problem:
    """Something that is not packed."""

    kind: str  # one of the names above
    file: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A picture to pack."""

    file: str  # relative to the folder of pictures, with forward slashes
    captions: tuple[str, ...]  # at least one, none empty


@dataclass
class Sources:
    """What a folder and its captions amount to."""

    pictures: list[Source] = field(default_factory=list)  # by name
    problems: list[Problem] = field(default_factory=list)


Row = tuple[str, list[str]]
"""(file as the table names it, its captions)"""


def find_sources(
    images: Path,
    captions: Path | None,
    *,
    file_column: str | None = None,
    caption_column: str | None = None,
    skip_duplicates: bool = True,
) -> Sources:
    """Bring pictures and captions together.

    Args:
        images: folder of pictures, searched with all its subfolders.
        captions: a .csv, .tsv, .jsonl or .parquet table; None for a .txt beside each picture. Several rows for one
            picture, or a list in a row, are several captions.
        file_column: the table's column that names the picture, relative to ``images`` or to the table's own folder;
            None to take the first of ``FILE_COLUMNS`` that is there.
        caption_column: the same for captions and ``CAPTION_COLUMNS``.
        skip_duplicates: of pictures that agree in every byte keep the first, with the captions of all.

    Raises:
        FileNotFoundError: no such folder, or no such table.
        ValueError: a table of unknown kind, without these columns, or not in UTF-8.
    """
    if not images.is_dir():
        raise FileNotFoundError(f"images='{images}' is no folder")
    sources = Sources()
    files = {path.relative_to(images).as_posix() for path in _pictures_below(images)}
    if captions is None:
        found, without = _captions_beside(images, files)
    else:
        rows = _table(captions, file_column, caption_column, sources.problems)
        found = _captions_in(rows, captions.parent, images, sources.problems)
        without = dict.fromkeys(files - found.keys(), f"not in {captions.name}")
    sources.problems += [Problem(NO_CAPTION, file, reason) for file, reason in sorted(without.items())]
    for file, texts in sorted(found.items()):
        kept = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
        if kept:
            sources.pictures.append(Source(file, kept))
        else:
            sources.problems.append(Problem(NO_CAPTION, file, "its caption is empty"))
    if skip_duplicates:
        sources.pictures = _without_duplicates(images, sources.pictures, sources.problems)
    return sources


def _pictures_below(folder: Path) -> Iterator[Path]:
    extensions = Image.registered_extensions()  # whatever the installed PIL can open
    for path in folder.rglob("*"):
        if path.suffix.lower() in extensions and not path.name.startswith(".") and path.is_file():
            yield path


def _captions_beside(images: Path, files: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions by picture, and why the other pictures have none."""
    found, without = {}, {}
    for file in files:
        try:
            found[file] = [(images / file).with_suffix(".txt").read_text(encoding="utf-8-sig")]
        except FileNotFoundError:
            without[file] = "no .txt beside it"
        except (UnicodeDecodeError, OSError) as error:
            without[file] = f"the .txt beside it cannot be read: {error}"
    return found, without


def _captions_in(
    rows: Iterable[Row], beside: Path, images: Path, problems: list[Problem]
) -> dict[str, list[str]]:
    """Captions by picture; a table may count its paths from the pictures' folder or from its own."""
    found: dict[str, list[str]] = defaultdict(list)
    root = Path(os.path.abspath(images))  # not resolve(): a folder of links to pictures is fine
    for name, texts in rows:
        for path in (Path(os.path.abspath(folder / name)) for folder in (images, beside)):
            if path.is_relative_to(root) and path.is_file():
                found[path.relative_to(root).as_posix()] += texts
                break
        else:
            problems.append(Problem(NO_PICTURE, name, f"no such file in {images}"))
    return found


def _without_duplicates(images: Path, pictures: list[Source], problems: list[Problem]) -> list[Source]:
    """Only files of equal size are read and compared, so this is nearly free where all differ."""
    by_size: dict[int, list[Source]] = defaultdict(list)
    for picture in pictures:
        by_size[(images / picture.file).stat().st_size].append(picture)
    first: dict[bytes, str] = {}
    captions: dict[str, tuple[str, ...]] = {}
    for alike in by_size.values():
        for picture in alike:
            digest = _digest(images / picture.file) if len(alike) > 1 else picture.file.encode()
            kept = first.setdefault(digest, picture.file)
            captions[kept] = tuple(dict.fromkeys((*captions.get(kept, ()), *picture.captions)))
            if kept != picture.file:
                reason = f"same bytes as {kept}, which gets its caption too"
                problems.append(Problem(DUPLICATE, picture.file, reason))
    return [Source(file, captions[file]) for file in sorted(captions)]


def _digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes()).digest()
    except OSError:
        return str(path).encode()  # reported as unreadable when it is packed


def _table(
    path: Path, file_column: str | None, caption_column: str | None, problems: list[Problem]
) -> Iterator[Row]:
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if not path.is_file():
        raise FileNotFoundError(f"captions='{path}' is no file")
    if path.suffix.lower() not in readers:
        raise ValueError(f"captions='{path}' is none of {', '.join(readers)}")
    try:
        rows = list(readers[path.suffix.lower()](path, problems))
    except UnicodeDecodeError as error:
        raise ValueError(f"captions='{path}' is not UTF-8 ({error}); save it as UTF-8") from None
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    file = _column(columns, file_column, FILE_COLUMNS, path)
    caption = _column(columns, caption_column, CAPTION_COLUMNS, path)
    for place, row in rows:
        name, texts = row.get(file), row.get(caption)
        if isinstance(name, str) and name:
            yield (
                name,
                [str(text) for text in (texts if isinstance(texts, list) else [texts]) if text is not None],
            )
        else:
            problems.append(Problem(BAD_ROW, f"{path.name}, {place}", "it names no file"))


def _column(columns: Sequence[str], asked: str | None, usual: Sequence[str], path: Path) -> str:
    names = usual if asked is None else (asked,)
    for name in names:
        if name in columns:
            return name
    raise ValueError(
        f"captions='{path}' has no column {' or '.join(names)}, only {', '.join(columns) or 'nothing'}; "
        f"name its columns by file_column=... and caption_column=..."
    )


Rows = Iterator[tuple[str, dict[str, object]]]


def _csv(path: Path, problems: list[Problem]) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for row in reader:
            yield f"line {reader.line_num}", {name: text for name, text in row.items() if name is not None}


def _jsonl(path: Path, problems: list[Problem]) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                problems.append(Problem(BAD_ROW, f"{path.name}, line {number}", str(error)))
                continue
            if isinstance(row, dict):
                yield f"line {number}", row
            else:
                problems.append(Problem(BAD_ROW, f"{path.name}, line {number}", "it is no JSON object"))


def _parquet(path: Path, problems: list[Problem]) -> Rows:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"captions='{path}' is no readable parquet file: {error}") from None
    for number, row in enumerate(rows):
        yield f"row {number}", row
