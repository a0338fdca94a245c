"""A checkpoint on disk: a folder that is whole or is not there.

::

    images_000020000/   named by the pictures seen
        weights.pt      the trained module's state_dict
        averages.pt     its averages, where there are any
        optimizer.pt    states of the optimizers
        state.json      counters, and what callbacks remember
        tensors.pt      what else there is that JSON cannot hold
        manifest.json   size and sha256 of each of these, versions, world size; written last

Where several processes each hold a share of the tensors (FSDP), the files named .pt, but for tensors.pt, are folders
with a file of each process: see ``pieces.py``.

It is written beside its place as ``.tmp-images_000020000``, flushed to the disk file by file, and renamed once: a
reader or a power cut finds all of it or nothing. Every bit is under a hash, the manifest's own included, and is
compared before it is used. All of it is plain data that loads with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch

from ldm.training.hashing import Hashing, file_hash
from ldm.training.pieces import put_together, read_shares

MANIFEST, STATE, OTHERS = "manifest.json", "state.json", "tensors.pt"
FILES = {"weights.pt": ("state_dict",), "averages.pt": ("ema", "other_averages")} | {
    "optimizer.pt": ("optimizer_states", "lr_schedulers")
}
OPTIMIZER = "optimizer.pt"  # what only a training that goes on needs
FORMAT, SHARED_FORMAT = 1, 2
_NAME = re.compile(r"images_(\d+)")


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written."""


def folder_name(images_seen: int) -> str:
    return f"images_{images_seen:09d}"


def images_of(place: Path) -> int | None:
    """The pictures that a checkpoint's name tells; None where it is no checkpoint's name."""
    found = _NAME.fullmatch(place.name)
    return int(found[1]) if found else None


def whole_folders(checkpoints: Path) -> list[Path]:
    """The checkpoint folders under their final names, those with most pictures first; not yet verified."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if images_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: images_of(path) or 0, reverse=True)


# ---------------------------------------------------------------------------------------------------------- write


def write_checkpoint(checkpoint: Mapping[str, Any], place: Path, *, about: Mapping[str, Any]) -> None:
    """Write ``checkpoint`` as the folder ``place``, which takes its name only when everything is on the disk.

    Args:
        about: Goes into the manifest: versions, world size, counters.

    Raises:
        OSError: It could not be written; nothing is left behind, and what stood there before still does.
    """
    draft = place.with_name(f".tmp-{place.name}")
    try:
        remove(draft)
        draft.mkdir(parents=True)
        files = {name: write_file(draft / name, content) for name, content in divided(checkpoint).items()}
        write_file(draft / MANIFEST, manifest_text({"format": FORMAT, **about, "files": files}))
        sync_folder(draft)
        put(draft, place)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def put(draft: Path, place: Path) -> None:
    """Give a finished folder its name. One that has the name already steps aside first and is removed last."""
    former = place.with_name(f".old-{place.name}")
    remove(former)
    if place.exists():
        os.rename(place, former)
    os.rename(draft, place)
    sync_folder(place.parent)
    remove(former)


def remove(path: Path) -> None:
    """A file, link or folder, if it is there. A folder loses its name first: half of one must not pass for a whole."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.is_dir():
        if images_of(path) is not None:
            hidden = path.with_name(f".old-{path.name}")
            shutil.rmtree(hidden, ignore_errors=True)
            os.rename(path, hidden)
            path = hidden
        shutil.rmtree(path)


def point(link: Path, target: str) -> None:
    """Let ``link`` lead to its neighbour ``target``, in one go: a reader finds the old link or the new one."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    fresh = link.with_name(f".tmp-{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target, target_is_directory=True)
    os.replace(fresh, link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Names are data too: until their folder is flushed a power cut may take them back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def divided(checkpoint: Mapping[str, Any], groups: Mapping[str, Sequence[str]] = FILES) -> dict[str, Any]:
    """File name -> what it holds: dictionaries for torch.save, text for JSON.

    Args:
        groups: File name -> the entries that it is for; others go where they can.
    """
    left = dict(checkpoint)
    files: dict[str, Any] = {}
    for name, keys in groups.items():
        if held := {key: left.pop(key) for key in keys if key in left}:
            files[name] = held
    plain = {key: value for key, value in left.items() if is_json(value)}
    if others := {key: value for key, value in left.items() if key not in plain}:
        files[OTHERS] = others
    files[STATE] = json.dumps(plain, indent=1) + "\n"
    return files


def group_of(file: str) -> str:
    """The name in ``FILES`` that a file's content has: "weights.pt" for weights/shard-00001-....safetensors, too."""
    folder, slash, _ = file.partition("/")
    return f"{folder}.pt" if slash else file


def is_json(value: Any) -> bool:
    """Whether JSON gives back the very same: no tensors, tuples, keys that are numbers, or numbers that are none."""
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and is_json(x) for key, x in value.items())
    if type(value) is list:
        return all(map(is_json, value))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))


def write_file(path: Path, content: Any) -> dict[str, Any]:
    with path.open("wb", buffering=1 << 20) as file:
        hashing = Hashing(file)
        if isinstance(content, str):
            hashing.write(content.encode())
        else:
            try:
                torch.save(content, cast(IO[bytes], hashing))
            except RuntimeError as error:
                raise (hashing.failure or error) from None
        file.flush()
        os.fsync(file.fileno())
    return hashing.record()


def manifest_text(content: Mapping[str, Any]) -> str:
    """Its last line is the hash of the rest, so that it vouches for itself as well."""
    body = json.dumps(content, indent=1)
    return json.dumps({**content, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1) + "\n"


# ----------------------------------------------------------------------------------------------------------- read


def read_manifest(place: Path) -> dict[str, Any]:
    """
    Raises:
        DamagedCheckpoint: It is missing or was changed.
    """
    try:
        text = (place / MANIFEST).read_bytes()
        content = json.loads(text)
        content.pop("sha256")
        same = manifest_text(content).encode() == text
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise DamagedCheckpoint(f"{place}: {MANIFEST} is missing or damaged") from None
    if not same:
        raise DamagedCheckpoint(f"{place}: {MANIFEST} is not as it was written")
    if content["format"] not in (FORMAT, SHARED_FORMAT):
        raise DamagedCheckpoint(
            f"{place} has format {content['format']}, this version of ldm reads {FORMAT} and {SHARED_FORMAT}: use the "
            f"one that wrote it"
        )
    return content


def verify(place: Path, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Compare every file with the manifest, and return the manifest.

    Raises:
        DamagedCheckpoint: A file is missing, cut off or changed; it is named.
    """
    manifest = read_manifest(place)
    for name, told in manifest["files"].items():
        path = place / name
        if group_of(name) in without:
            continue
        if not path.is_file():
            raise DamagedCheckpoint(f"{place}: {name} is missing")
        if path.stat().st_size != told["bytes"]:
            raise DamagedCheckpoint(
                f"{place}: {name} has {path.stat().st_size:,} bytes, {told['bytes']:,} were written"
            )
        if file_hash(path) != told["sha256"]:
            raise DamagedCheckpoint(f"{place}: {name} is not as it was written")
    return manifest


def read_folder(
    place: Path, *, optimizer: bool = True, verified: bool = False, shares: bool = False
) -> dict[str, Any]:
    """The checkpoint as it was given to ``write_checkpoint``, tensors mapped from the files until they are used.

    Args:
        optimizer: False leaves out what only a training needs: a third of the bytes remain.
        verified: It has been compared just now.
        shares: Leave tensors that were written in shares on the disk, as ``pieces.Stored``: for a process that needs
            a share. False reads them whole.

    Raises:
        DamagedCheckpoint: It is not what was written.
    """
    without = () if optimizer else (OPTIMIZER,)
    manifest = read_manifest(place) if verified else verify(place, without=without)
    found: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    for name in dict.fromkeys(map(group_of, manifest["files"])):
        if name == STATE:
            found |= json.loads((place / name).read_bytes())
        elif name in without:
            continue
        elif (folder := place / Path(name).stem).is_dir():
            try:
                own = read_shares(folder)
            except ValueError as error:
                raise DamagedCheckpoint(str(error)) from None
            stored |= own if shares else {key: x.whole() for key, x in own.items()}
        else:
            found |= torch.load(place / name, map_location="cpu", weights_only=True, mmap=True)
    if manifest["format"] == SHARED_FORMAT:
        for key in [key for name in without for key in FILES[name]]:
            found.pop(key, None)
        found = put_together(found, stored)
    return found
