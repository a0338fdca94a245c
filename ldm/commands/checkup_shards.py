"""The first samples of a shard, read without an index: enough to see whether it is what a training expects."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

PICTURES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "avif", "ppm"})


@dataclass
class Sample:
    """What stands under one key."""

    has_picture: bool = False
    fields: set[str] = field(default_factory=set)  # "txt", and the json's fields that hold a text or texts


def first_samples(shard: Path, *, number: int = 16) -> list[Sample]:
    """Up to ``number`` samples; none where the file is no tar."""
    found: dict[str, Sample] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.rpartition("/")[2].partition(".")
                if key not in found and len(found) == number:
                    break
                sample = found.setdefault(key, Sample())
                extension = extension.lower()
                sample.has_picture |= extension in PICTURES
                if extension == "txt" and member.size:
                    sample.fields.add("txt")
                elif extension == "json":
                    reader = tar.extractfile(member)
                    sample.fields |= _texts(reader.read() if reader else b"")
    except (tarfile.TarError, OSError, EOFError):
        pass  # a damaged tail: what came before it counts
    return list(found.values())


def _texts(data: bytes) -> set[str]:
    try:
        fields = json.loads(data)
    except ValueError:
        return set()
    if not isinstance(fields, dict):
        return set()
    return {name for name, value in fields.items() if value and isinstance(value, str | list)}
