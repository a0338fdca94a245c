"""A checkpoint that all processes write together, each the shares that it holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ldm.training.folders import (
    FILES,
    MANIFEST,
    SHARED_FORMAT,
    divided,
    manifest_text,
    put,
    remove,
    sync_folder,
    write_file,
)
from ldm.training.pieces import taken_apart, write_shares

Records = dict[str, dict[str, Any]]  # file -> size and hash


def write_together(
    checkpoint: Mapping[str, Any], place: Path, *, about: Mapping[str, Any], group: dist.ProcessGroup | None
) -> None:
    """As ``write_checkpoint``, by all processes of ``group``: ``place`` takes its name when the last of them is done.

    Args:
        checkpoint: With tensors and shares on the CPU, see ``copy_to_host``; what is no tensor is the first process's.
        about: Goes into the manifest.
        group: Of processes that share a file system; None for one alone.

    Raises:
        OSError: One of them could not write; on all of them, and nothing is left behind.
    """
    draft = place.with_name(f".tmp-{place.name}")
    first = group is None or dist.get_rank(group) == 0
    try:
        _all_do(lambda: _begin(draft) if first else {}, group)
        files: Records = {}
        rest = dict(checkpoint)
        for name, keys in FILES.items():
            held = {key: rest.pop(key) for key in keys if key in rest}
            skeleton, tensors = taken_apart(held)
            rest |= skeleton
            if tensors:
                folder = draft / Path(name).stem
                own = write_shares(tensors, folder, group=group)
                files |= {f"{folder.name}/{file}": record for file, record in own.items()}
        files = _all_do(lambda: files, group)
        _all_do(lambda: _finish(draft, place, rest, files, about) if first else {}, group)
    except OSError:
        if first:
            shutil.rmtree(draft, ignore_errors=True)
        raise


def _begin(draft: Path) -> Records:
    remove(draft)
    draft.mkdir(parents=True)
    return {}


def _finish(
    draft: Path, place: Path, rest: Mapping[str, Any], files: Records, about: Mapping[str, Any]
) -> Records:
    for name, record in files.items():
        path = draft / name
        if not path.is_file() or path.stat().st_size != record["bytes"]:
            raise OSError(
                f"{path}, which another process wrote, is not here: all must write to one file system, so put "
                f"paths.runs on one that they share"
            )
    files = {**files, **{name: write_file(draft / name, x) for name, x in divided(rest, {}).items()}}
    write_file(draft / MANIFEST, manifest_text({"format": SHARED_FORMAT, **about, "files": files}))
    for folder in {(draft / name).parent for name in files}:
        sync_folder(folder)
    put(draft, place)
    return {}


def _all_do(work: Callable[[], Records], group: dist.ProcessGroup | None) -> Records:
    """The records of all processes; what fails on one fails on all.

    Raises:
        OSError: It failed on at least one.
    """
    found: tuple[Records, str] = ({}, "")
    try:
        found = (work(), "")
    except OSError as error:
        if group is None:
            raise
        found = ({}, str(error))
    if group is None:
        return found[0]
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, found, group=group)
    if problems := [f"process {rank}: {problem}" for rank, (_, problem) in enumerate(every) if problem]:
        raise OSError("; ".join(problems))
    return {name: record for records, _ in every for name, record in records.items()}
