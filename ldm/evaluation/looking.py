"""One walk over a set of pictures, shared by processes and by all networks that want to see them.

Whole batches are looked at, the very ones that one process would see one after another, so features do not depend on
how many processes there are. What was looked at can be kept on disk batch by batch: an interrupted walk goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.evaluation.features import Features
from ldm.evaluation.frechet import FeatureSums
from ldm.evaluation.together import Together

WHOLE = "features.safetensors"


class Pictures(Protocol):
    """A set of pictures in batches, each of which can be made without the others."""

    @property
    def sizes(self) -> Sequence[int]:
        """How many pictures are in each batch."""
        ...

    @property
    def keys(self) -> Sequence[str]:
        """A name for each picture, in order."""
        ...

    @property
    def content_hash(self) -> str:
        """Of all that the pictures depend on."""
        ...

    @property
    def title(self) -> str:
        """For people: "samples", "validation set"."""
        ...

    def batches(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """These batches, each (B, 3, H, W) uint8 on the CPU."""
        ...


OnBatch = Callable[[int, int], None]
"""Called with how many pictures were looked at, by all processes, and how many there are."""


def look(
    pictures: Pictures,
    networks: Mapping[str, Features],
    *,
    together: Together,
    keep: Path | None = None,
    on_batch: OnBatch | None = None,
) -> dict[str, Tensor]:
    """What each network makes of each picture: by name (N, ...), in order, the same on every process.

    All processes look at the same number of batches, some again at what others see: networks that are spread over the
    processes need all of them at each step.

    Args:
        pictures: The set.
        networks: By any names.
        together: This process among the others.
        keep: A folder for what was looked at; what is there already is read.
        on_batch: Told after each batch.
    """
    whole = {} if keep is None else _read(keep / WHOLE, networks)
    if together.all(len(whole) == len(networks)):
        return whole
    num = len(pictures.sizes)
    rows: dict[int, dict[str, Tensor]] = {}
    if keep is not None and together.is_main:  # what an earlier walk left is read once
        rows = {i: there for i in range(num) if (there := _read(_part(keep, i), networks))}
    done = set(together.told(list(rows)))
    for i, images in _share(pictures, [i for i in range(num) if i not in done], together, on_batch):
        rows[i] = {name: network(images) for name, network in networks.items()}
        if keep is not None:
            _write(_part(keep, i), rows[i], networks)
    found = _in_order(rows, networks, together)
    if keep is not None and together.is_main:
        for part in keep.glob("*.part"):
            part.unlink(missing_ok=True)  # another job may be looking at the same set
        _write(keep / WHOLE, found, networks)
    return found


def add_up(
    pictures: Pictures, network: Features, *, together: Together, on_batch: OnBatch | None = None
) -> FeatureSums:
    """Sums over the features of all pictures, by one all-reduce at the end: nothing grows with their number."""
    sums: FeatureSums | None = None
    for _, images in _share(pictures, range(len(pictures.sizes)), together, on_batch):
        found = FeatureSums.of(network(images))
        sums = found if sums is None else sums + found
    if sums is None:  # more processes than batches: still one of those that add up
        width = network(next(iter(pictures.batches([0])))).shape[1]
        zeros = torch.zeros(width, dtype=torch.float64)
        sums = FeatureSums(0, zeros, torch.zeros(width, width, dtype=torch.float64))
    return FeatureSums.unpacked(together.sum(sums.packed()))


def forget(keep: Path) -> None:
    """Remove what was kept."""
    shutil.rmtree(keep, ignore_errors=True)


def _share(
    pictures: Pictures, numbers: Sequence[int], together: Together, on_batch: OnBatch | None
) -> Iterator[tuple[int, Tensor]]:
    """This process's batches, with their numbers; a batch that another process has too is looked at and not yielded."""
    rounds = -(-len(numbers) // together.size)
    places = [i * together.size + together.rank for i in range(rounds)]
    mine = [numbers[min(place, len(numbers) - 1)] for place in places]
    total = sum(pictures.sizes)
    seen = total - sum(pictures.sizes[i] for i in numbers)
    for turn, (place, images) in enumerate(zip(places, pictures.batches(mine), strict=True)):
        if place < len(numbers):
            yield numbers[place], images
        everyone = numbers[turn * together.size : (turn + 1) * together.size]
        seen += sum(pictures.sizes[i] for i in everyone)
        if on_batch is not None:
            on_batch(seen, total)


def _in_order(
    rows: Mapping[int, Mapping[str, Tensor]], names: Mapping[str, Features], together: Together
) -> dict[str, Tensor]:
    """Batches of all processes, by their numbers."""
    numbers = sorted(rows)
    lengths = [len(next(iter(rows[i].values()))) for i in numbers]
    places = torch.tensor([i for i, length in zip(numbers, lengths, strict=True) for _ in range(length)])
    order = torch.cat(together.gather(places.long())).argsort(stable=True)
    some = together.told({name: next(iter(rows.values()))[name][:0] for name in names} if rows else {})
    found = {}
    for name in names:
        own = torch.cat([rows[i][name] for i in numbers]) if numbers else some[name]
        found[name] = torch.cat(together.gather(own))[order]
    return found


# ------------------------------------------------------------------------------------------------------ on the disk


def _part(keep: Path, number: int) -> Path:
    return keep / f"{number:06d}.part"


def _write(path: Path, features: Mapping[str, Tensor], networks: Mapping[str, Features]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    save_file({networks[name].key: x.contiguous() for name, x in features.items()}, draft)
    os.replace(draft, path)


def _read(path: Path, networks: Mapping[str, Features]) -> dict[str, Tensor]:
    """By name; nothing where one is missing."""
    if not path.is_file():
        return {}
    held = load_file(path)
    wanted = {name: network.key for name, network in networks.items()}
    return {name: held[hash_] for name, hash_ in wanted.items()} if set(wanted.values()) <= set(held) else {}
