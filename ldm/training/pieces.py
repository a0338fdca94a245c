"""A checkpoint's tensors in the shares that processes hold: written by torch's distributed checkpoint, read in parts.

::

    weights/shard-00001-model-00001-of-00001.safetensors      what the first process wrote, and so on

Each process writes what it holds and nobody holds the whole: no process needs the memory for it, and all write at
once. torch decides who writes what several hold (``torch.distributed.checkpoint`` and its ``hf_storage``); the header
of a file says where in the whole its tensors belong. Read is what is asked for: a process that goes on with a share of
a tensor reads that share, however many processes wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from ldm.training.hashing import Hashing
from ldm.training.sharded import Share, Stored

PLACEHOLDER = "tensor in the files of shares"  # its only key marks a dictionary that stands for a tensor
OFFSETS = "DCP_SHARDING_INFO"  # in the header of a file, as torch calls it


# ------------------------------------------------------------------------------------------------------ taken apart


def taken_apart(value: Any, where: str = "") -> tuple[Any, dict[str, Tensor | Share]]:
    """``value`` with a placeholder for each tensor, and the tensors by their places in it."""
    if isinstance(value, Tensor | Share):
        return {PLACEHOLDER: where}, {where: value}
    if not isinstance(value, dict | list):
        return value, {}
    found: dict[str, Tensor | Share] = {}
    entries = list(value.items() if isinstance(value, dict) else enumerate(value))
    rest = []
    for key, entry in entries:
        plain, tensors = taken_apart(entry, f"{where}/{key}" if where else str(key))
        rest.append(plain)
        found |= tensors
    if isinstance(value, dict):
        return dict(zip(value, rest, strict=True)), found
    return rest, found


def put_together(value: Any, tensors: Mapping[str, Any]) -> Any:
    """What ``taken_apart`` was given, with ``tensors`` in their places."""
    if isinstance(value, dict):
        if value.keys() == {PLACEHOLDER}:
            return tensors[value[PLACEHOLDER]]
        return {key: put_together(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list):
        return [put_together(entry, tensors) for entry in value]
    return value


# ------------------------------------------------------------------------------------------------------------ write


def write_shares(
    tensors: Mapping[str, Tensor | Share], folder: Path, *, group: dist.ProcessGroup | None
) -> dict[str, dict[str, Any]]:
    """Write what this process holds; by all processes of ``group`` together.

    Args:
        tensors: On the CPU, by name. Whole tensors are the same on all processes and are written by one of them.
        folder: Is made where it is not there.
        group: None for a process alone.

    Returns:
        File name -> size and sha256, of the files that this process wrote.

    Raises:
        OSError: A process could not write; on all of them.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writer.fs = files = _HashedFiles()
    pieces = {name: x if isinstance(x, Share) else Share.whole(x) for name, x in tensors.items()}
    try:
        dcp.save(
            cast(dict[str, Any], {name: _Writable(piece) for name, piece in pieces.items()}),
            storage_writer=writer,
            planner=_Planner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:
        rank, (problem, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {type(problem).__name__}: {problem}") from None
    return files.written


@dataclass(frozen=True)
class _Writable:
    """A share in the words of ``torch.distributed.checkpoint``."""

    share: Share

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        held, offsets = self.share.held, torch.Size(self.share.offsets)
        if not held.numel() and self.share.shape.numel():  # fewer rows than processes: this one has none
            return []
        chunk = ChunkStorageMetadata(offsets=offsets, sizes=held.shape)
        data = TensorWriteData(
            chunk=chunk, properties=TensorProperties.create_from_tensor(held), size=self.share.shape
        )
        return [WriteItem(index=MetadataIndex(name, offsets), type=WriteItemType.SHARD, tensor_data=data)]


class _Planner(dcp.DefaultSavePlanner):
    """torch's own, for what is no tensor of torch's; made to be extended in this one method."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self.state_dict[index.fqn].share.held


class _HashedFiles(FileSystem):
    """Hashes what is written on its way to the disk: compared later is what was meant, not what arrived."""

    def __init__(self) -> None:
        self.written: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with Path(path).open(mode) as file:
            hashing = Hashing(cast(Any, file))
            yield hashing
            self.written[Path(path).name] = hashing.record()


# ------------------------------------------------------------------------------------------------------------- read


def read_shares(folder: Path) -> dict[str, Stored]:
    """The tensors in a folder of ``write_shares``; nothing but headers is read.

    Raises:
        ValueError: Pieces are missing.
    """
    pieces: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], Any]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = safe_open(path, framework="pt")
        offsets = json.loads(file.metadata()[OFFSETS])
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            begin = tuple(offsets[name]["saved_offsets"])
            pieces.setdefault(name, []).append((begin, tuple(file.get_slice(name).get_shape()), file))
    found = {}
    for name, own in pieces.items():
        ends = zip(
            *([a + n for a, n in zip(begin, size, strict=True)] for begin, size, _ in own), strict=True
        )
        shape = torch.Size([max(end) for end in ends])
        if sum(prod(size) for _, size, _ in own) != shape.numel():
            raise ValueError(f"{folder}: pieces of {name} are missing")
        found[name] = Stored(name, shape, own)
    return found
