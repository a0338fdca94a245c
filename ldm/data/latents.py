"""Latents made once: which contract they have, where they lie, and how they are made.

A folder of latents::

    contract.json                        by which autoencoder and how they were made
    <shard>-<hash>.safetensors           for each shard, of n samples:
        moments/<height>x<width>         (n', 2C, H, W) float16, for each size that pictures came out in
        row                              (n,) the sample's place in the moments of its size
        sizes                            (n, 6) as in Conditioning.sizes; zeros for a sample that is left out
        source                           (n,) the sample itself, or the one that took a damaged picture's place
        keys, texts                      what stood beside the picture

What is kept are moments, not draws from them: the posterior can still be sampled anew at each visit. Files are written
whole, by any number of processes, and what is there is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ldm.data.bad_samples import Ledger
from ldm.data.cache import Blank, written
from ldm.data.loading import Reader
from ldm.data.order import Request
from ldm.data.parts import Part, missing, parts_of
from ldm.data.pipeline import ShardDataset
from ldm.data.progress import progress
from ldm.data.sample import Stacked
from ldm.data.shards import written_whole
from ldm.data.strings import packed
from ldm.data.transforms import to_floats
from ldm.interfaces import LatentCodec

CONTRACT = "contract.json"
RESAMPLING = 1  # a number for how pictures are decoded and resized; another one when that changes


@dataclass(frozen=True, kw_only=True)
class LatentsContract:
    """What a folder of latents was made with."""

    codec_hash: str  # of the autoencoder
    background: str  # what transparent parts of pictures show
    decode_margin: float  # see ``Preparation``
    original_size_from: tuple[str, ...]
    resampling: int = RESAMPLING

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def folder(self, out: str | Path) -> Path:
        """Where in ``out`` latents with this contract lie: a new autoencoder gets a new place by it."""
        return Path(out) / (self.codec_hash[:12] or "identity") / self.content_hash[:8]

    def check(self, folder: Path) -> None:
        """Refuse a folder of other latents.

        Raises:
            FileNotFoundError: There are no latents.
            ValueError: They were made in another way; the message says in which.
        """
        try:
            said = json.loads((folder / CONTRACT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"no latents in '{folder}'; make them with: ldm encode") from None
        mine = json.loads(json.dumps(asdict(self)))
        wrong = [
            f"{name} was {str(said.get(name))[:12]!r} and is {str(value)[:12]!r}"
            for name, value in mine.items()
            if said.get(name) != value
        ]
        if wrong:
            raise ValueError(
                f"the latents in '{folder}' were made with another contract: {'; '.join(wrong)}; encode anew, or use "
                f"what they were made with"
            )


def contract_for(codec_hash: str, dataset: ShardDataset) -> LatentsContract:
    """The contract that latents of this data set by this codec have.

    Raises:
        ValueError: The data set flips or crops at random: latents are made once, so every visit would see the same.
    """
    preparation = dataset.preparation
    if preparation.flip or preparation.crop != "center":
        raise ValueError("latents are made once per picture: they need flip=false and crop=center")
    return LatentsContract(
        codec_hash=codec_hash,
        background=preparation.background,
        decode_margin=preparation.decode_margin,
        original_size_from=tuple(preparation.original_size_from or ()),
    )


def latent_parts(dataset: ShardDataset) -> list[Part]:
    """One for each shard; their files depend on the sizes that pictures come out in."""
    sizes = np.array([*dataset.assignment.sizes, (0, 0)], np.int32)  # the last for bucket -1
    bucket = dataset.assignment.bucket
    return parts_of(dataset.index, lambda samples: sizes[bucket[samples.start : samples.stop]].tobytes())


@torch.no_grad()
def encode(
    codec: LatentCodec,
    dataset: ShardDataset,
    folder: Path,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    ledger: Ledger | None = None,
) -> int:
    """Write this process's share of the files that are missing; returns how many pictures it has encoded.

    Args:
        codec: on ``device`` already. Precision is the caller's business.
        dataset: without random choices.
        folder: see the top of this file.
        batch_size: pictures at a time.
        device: where the codec is.
        num_workers: processes that decode pictures; 0 decodes in this one.
        rank: of this process, in [0, world_size).
        world_size: processes that share the work, shard by shard.
        ledger: counts bad samples; None keeps one that only stops at too many.

    Raises:
        TooManyBadSamples: more than the ledger's policy bears.
        ValueError: moments that are not finite in float16.
    """
    contract = contract_for(codec.content_hash, dataset)
    mine = latent_parts(dataset)[rank::world_size]
    todo = missing(mine, folder)
    if rank == 0 and not (folder / CONTRACT).exists():
        with written_whole(folder / CONTRACT) as path:
            path.write_text(json.dumps(asdict(contract), indent=1) + "\n", encoding="utf-8")
    if not todo:
        return 0
    requests = _Requests(dataset, todo, batch_size)
    batches = iter(Reader(dataset, requests, ledger=ledger or Ledger(), num_workers=num_workers))
    total = sum(len(part.samples) for part in todo)
    with progress("latents", total=total, shown=rank == 0) as advance:
        for part in todo:
            with written(part.file(folder), _columns(codec, dataset, part), asdict(contract)) as arrays:
                for members in _batches(dataset, part, batch_size):
                    stacked: Stacked = next(batches)
                    _fill(arrays, codec, dataset, part, members, stacked.to(device))
                    advance(len(members))
    return total


class _Requests:
    """What the loader reads, batch by batch: nothing is listed beforehand."""

    def __init__(self, dataset: ShardDataset, parts: list[Part], batch_size: int) -> None:
        self.dataset, self.parts, self.batch_size = dataset, parts, batch_size

    def __iter__(self) -> Iterator[list[Request]]:
        for part in self.parts:
            for members in _batches(self.dataset, part, self.batch_size):
                yield [Request(i, 0) for i in members]


def _batches(dataset: ShardDataset, part: Part, batch_size: int) -> Iterator[list[int]]:
    """The samples of a part, in batches of one size each."""
    bucket = dataset.assignment.bucket[part.samples.start : part.samples.stop]
    for one in range(len(dataset.assignment.sizes)):
        members = (part.samples.start + np.flatnonzero(bucket == one)).tolist()
        yield from (members[at : at + batch_size] for at in range(0, len(members), batch_size))


def _columns(codec: LatentCodec, dataset: ShardDataset, part: Part) -> dict[str, np.ndarray | Blank]:
    """Every array of a part's file; what comes with the pictures is left blank."""
    num, assignment = len(part.samples), dataset.assignment
    bucket = assignment.bucket[part.samples.start : part.samples.stop]
    row = np.zeros(num, np.int32)
    columns: dict[str, np.ndarray | Blank] = {
        "row": row,
        "sizes": (np.int32, (num, 6)),
        "source": (np.int32, (num,)),
    }
    for one, (height, width) in enumerate(assignment.sizes):
        here = bucket == one
        row[here] = np.arange(here.sum())
        if here.any():
            shape = (2 * codec.channels, height // codec.downsample, width // codec.downsample)
            columns[f"moments/{height}x{width}"] = (np.float16, (int(here.sum()), *shape))
    texts = [dataset.captions(i) for i in part.samples]
    fields = sorted({name for said in texts for name in said})
    flat = [(fields.index(name), text) for said in texts for name in fields for text in said.get(name, ())]
    counts = [sum(len(found) for found in said.values()) for said in texts]
    return {
        **columns,
        **packed("keys", [dataset.index.key(i) for i in part.samples]),
        **packed("texts", [text for _, text in flat]),
        **packed("fields", fields),
        "text_field": np.array([field for field, _ in flat], np.int16),
        "said_ends": np.cumsum(counts, dtype=np.int64),
    }


def _fill(
    arrays: dict[str, np.ndarray],
    codec: LatentCodec,
    dataset: ShardDataset,
    part: Part,
    members: list[int],
    stacked: Stacked,
) -> None:
    """One batch into the file."""
    moments = codec.moments(to_floats(stacked.images))
    values = moments.to("cpu", torch.float16).numpy()  # (B, 2C, H, W)
    if not np.isfinite(values).all():
        raise ValueError(
            f"the autoencoder's moments of samples {stacked.keys[0]} to {stacked.keys[-1]} are not finite in float16: "
            f"it has diverged, or its latents are too large"
        )
    rows = np.array(members) - part.samples.start
    sizes = stacked.sizes.cpu().numpy().astype(np.int32)
    height, width = sizes[0, 4:].tolist()
    arrays[f"moments/{height}x{width}"][arrays["row"][rows]] = values
    arrays["sizes"][rows] = sizes
    for row, i, key in zip(rows.tolist(), members, stacked.keys, strict=True):
        found = i if key == dataset.index.key(i) else dataset.index.find(key)
        if found not in part.samples:  # a damaged picture is replaced by one of its shard, while there is one
            raise ValueError(f"the shard {part.name} has hardly a sound picture: leave it out")
        arrays["source"][row] = found - part.samples.start
