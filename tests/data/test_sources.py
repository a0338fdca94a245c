"""Pictures and captions find each other in every kind of table; what does not is listed with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from ldm.data.sources import Sources, find_sources

TABLE = [("a.png", "an a"), ("sub/b.jpg", "a b"), ("sub/b.jpg", "also a b")]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "sub/b.jpg", "c.PNG")):
        (tmp_path / "images" / name).write_bytes(b"x" * (i + 1))
    (tmp_path / "images" / "notes.md").write_text("no picture")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")
    return tmp_path / "images"


def found(sources: Sources) -> dict[str, tuple[str, ...]]:
    return {picture.file: picture.captions for picture in sources.pictures}


def problems(sources: Sources) -> set[tuple[str, str]]:
    return {(problem.kind, problem.file) for problem in sources.problems}


def write(path: Path, rows: list[tuple[str, object]], columns: tuple[str, str] = ("file", "caption")) -> Path:
    frame = pandas.DataFrame(rows, columns=list(columns))
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",", encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("columns", [("file", "caption"), ("file_name", "text")])
def test_every_kind_of_table(images: Path, kind: str, columns: tuple[str, str]) -> None:
    sources = find_sources(images, write(images.parent / f"captions{kind}", TABLE, columns))
    assert found(sources) == {"a.png": ("an a",), "sub/b.jpg": ("a b", "also a b")}
    assert problems(sources) == {("no caption", "c.PNG")}


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_a_row_may_hold_several_captions(images: Path, kind: str) -> None:
    table = write(images.parent / f"captions{kind}", [("a.png", ["one", " two ", "one", ""])])
    assert found(find_sources(images, table)) == {"a.png": ("one", "two")}


def test_captions_beside_the_pictures(images: Path) -> None:
    (images / "a.txt").write_text(" an a\n")
    (images / "sub" / "b.txt").write_bytes(b"\xff\xfe broken")
    sources = find_sources(images, None)
    assert found(sources) == {"a.png": ("an a",)}
    reasons = {problem.file: problem.reason for problem in sources.problems}
    assert reasons["c.PNG"] == "no .txt beside it" and "cannot be read" in reasons["sub/b.jpg"]


def test_paths_may_count_from_the_table(images: Path) -> None:
    table = write(
        images.parent / "captions.csv", [("images/a.png", "an a"), (str(images / "sub/b.jpg"), "a b")]
    )
    assert found(find_sources(images, table)) == {"a.png": ("an a",), "sub/b.jpg": ("a b",)}


def test_a_table_cannot_reach_out_of_the_folder(images: Path) -> None:
    (images.parent / "secret.png").write_bytes(b"")
    table = write(images.parent / "captions.csv", [("../secret.png", "x"), ("secret.png", "x")])
    sources = find_sources(images, table)
    assert not sources.pictures
    assert ("caption without picture", "../secret.png") in problems(sources)


def test_links_to_pictures_elsewhere_are_fine(images: Path) -> None:
    (images.parent / "elsewhere.png").write_bytes(b"elsewhere")
    (images / "link.png").symlink_to(images.parent / "elsewhere.png")
    assert "link.png" in found(find_sources(images, write(images.parent / "c.csv", [("link.png", "x")])))


def test_empty_missing_and_foreign_rows_are_listed(images: Path) -> None:
    table = images.parent / "captions.jsonl"
    rows = [
        {"file": "a.png", "caption": "  "},
        {"file": "gone.png", "caption": "x"},
        {"caption": "x"},
        {"file": "c.PNG"},
    ]
    table.write_text("\n".join([*map(json.dumps, rows), "{broken", "[1]", ""]))
    sources = find_sources(images, table)
    assert not sources.pictures
    assert problems(sources) == {
        ("no caption", "a.png"),
        ("no caption", "c.PNG"),
        ("no caption", "sub/b.jpg"),
        ("caption without picture", "gone.png"),
        ("unreadable caption", "captions.jsonl, line 3"),
        ("unreadable caption", "captions.jsonl, line 5"),
        ("unreadable caption", "captions.jsonl, line 6"),
    }


def test_equal_pictures_are_kept_once_with_all_captions(images: Path) -> None:
    (images / "z.png").write_bytes((images / "a.png").read_bytes())
    (images / "y.png").write_bytes(b"y")  # as long as a.png, but another
    table = write(images.parent / "c.csv", [("a.png", "an a"), ("z.png", "a z"), ("y.png", "a y")])
    sources = find_sources(images, table)
    assert found(sources) == {"a.png": ("an a", "a z"), "y.png": ("a y",)}
    assert ("duplicate picture", "z.png") in problems(sources)
    assert len(find_sources(images, table, skip_duplicates=False).pictures) == 3


def test_wrong_places_and_columns_are_named(images: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"images='.*nowhere' is no folder"):
        find_sources(images / "nowhere", None)
    with pytest.raises(FileNotFoundError, match=r"captions='nowhere.csv' is no file"):
        find_sources(images, Path("nowhere.csv"))
    with pytest.raises(ValueError, match=r"is none of .csv, .tsv, .jsonl, .parquet"):
        find_sources(images, images / "notes.md")
    table = write(images.parent / "captions.csv", TABLE, ("bild", "caption"))
    with pytest.raises(
        ValueError, match=r"no column file or .*, only bild, caption; name its columns by file_column"
    ):
        find_sources(images, table)
    assert len(find_sources(images, table, file_column="bild").pictures) == 2
    table.write_bytes("file,caption\na.png,größe\n".encode("cp1252"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        find_sources(images, table)
    (images.parent / "bad.parquet").write_bytes(b"bad")
    with pytest.raises(ValueError, match="no readable parquet"):
        find_sources(images, images.parent / "bad.parquet")
