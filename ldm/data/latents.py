"""Latents made once, kept in one memory-mapped file, read back as Batch.

A folder of latents::

    moments.npy      (N, 2C, H, W) float16: mean and log-variance of each picture's posterior
    samples.jsonl    a line per row: its key and every text that belongs to it
    contract.json    what they were made with and from; written last, so where it stands all is there

What is kept are moments, not draws from them: the posterior can still be sampled anew at each visit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm.data.pipeline import BatchLoader, GlobalBatches, ShardDataset, in_order, pieces_of
from ldm.data.sample import field
from ldm.data.shards import written_whole
from ldm.data.transforms import pick
from ldm.interfaces import Batch, LatentCodec

MOMENTS, SAMPLES, CONTRACT = "moments.npy", "samples.jsonl", "contract.json"
UNFINISHED = "unfinished.json"  # the contract of what the .partial files are going to be
SECONDS_BETWEEN_SAVES = 5.0


@dataclass(frozen=True, kw_only=True)
class LatentsContract:
    """What a folder of latents was made with and from."""

    codec_hash: str  # of the autoencoder
    shards: str  # fingerprint of the pictures' shards
    image_size: int
    background: str
    count: int


def contract_for(codec_hash: str, dataset: ShardDataset) -> LatentsContract:
    """The contract that latents of this data set by this codec have.

    Raises:
        ValueError: the data set flips or crops at random: latents are made once, so every visit would see the same.
    """
    preparation = dataset.preparation
    if preparation.flip or preparation.crop != "center":
        raise ValueError("latents are made once per picture: they need flip=false and crop=center")
    return LatentsContract(
        codec_hash=codec_hash,
        shards=dataset.index.fingerprint,
        image_size=preparation.image_size,
        background=preparation.background,
        count=len(dataset),
    )


def latents_folder(folder: str | Path, contract: LatentsContract) -> Path:
    """Where in ``folder`` latents with this contract lie: by codec, then by pictures and size.

    A new autoencoder or a changed data set gets a new place by this, and nothing stale is ever read.
    """
    pictures = f"{contract.shards[:12]}-{contract.image_size}px"
    if contract.background != "white":
        pictures += f"-{contract.background.lstrip('#')}"
    return Path(folder) / (contract.codec_hash[:12] or "identity") / pictures


def is_complete(folder: Path, contract: LatentsContract) -> bool:
    """Whether the folder holds all latents of this contract."""
    return _read_contract(folder / CONTRACT) == asdict(contract)


@torch.no_grad()
def encode(
    codec: LatentCodec,
    dataset: ShardDataset,
    folder: Path,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> None:
    """Write the latents of a whole data set, or what an interrupted call has left to write.

    Args:
        codec: on ``device`` already. Precision is the caller's business.
        dataset: without random choices.
        folder: see the top of this file. Latents of another contract that lie there are replaced.
        batch_size: pictures at a time.
        device: where the codec is.
        num_workers: processes that decode pictures; 0 decodes in this one.

    Raises:
        ValueError: moments that are not finite in float16.
    """
    contract = contract_for(codec.content_hash, dataset)
    if is_complete(folder, contract):
        return
    done = _resume(folder, contract, batch_size)
    batches = in_order(dataset, batch_size=batch_size, num_workers=num_workers, start=done)
    bar = (TextColumn("latents"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    moments: np.memmap | None = None
    with (
        (folder / (SAMPLES + ".partial")).open("a", encoding="utf-8") as samples,
        Progress(*bar, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("", total=len(dataset), completed=done)
        lines: list[str] = []
        saved = time.monotonic()
        for batch in batches:
            assert batch.images is not None
            rows = _finite(codec.moments(batch.images.to(device)), batch)  # (B, 2C, H, W)
            if moments is None:
                moments = _open_moments(folder, (len(dataset), *rows.shape[1:]), new=done == 0)
            moments[batch.slots.start : batch.slots.stop] = rows
            lines += [_sample_line(dataset, i, key) for i, key in zip(batch.slots, batch.keys, strict=True)]
            progress.update(task, completed=batch.slots.stop)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES or batch.slots.stop == len(dataset):
                moments.flush()  # before the lines that say that these rows are done
                samples.writelines(lines)
                samples.flush()
                lines, saved = [], time.monotonic()
    for name in (MOMENTS, SAMPLES):
        if (folder / (name + ".partial")).exists():
            (folder / (name + ".partial")).replace(folder / name)
    with written_whole(folder / CONTRACT) as path:
        path.write_text(json.dumps(asdict(contract), indent=1) + "\n")
    (folder / UNFINISHED).unlink()


class LatentDataset:
    """Latents of a folder, read in batches; the file is mapped, so memory is the operating system's business.

    Args:
        folder: that ``encode`` wrote.
        codec_hash: of the codec that will decode what is learned on them.
        caption_field: "txt", or the json's field that holds a caption or several.
        seed: of the choice among several captions.

    Raises:
        FileNotFoundError: no complete latents there.
        ValueError: they were made with another autoencoder, or lack the caption field.
    """

    def __init__(
        self, folder: str | Path, *, codec_hash: str, caption_field: str = "txt", seed: int = 0
    ) -> None:
        folder = Path(folder)
        contract = _read_contract(folder / CONTRACT)
        if contract is None:
            raise FileNotFoundError(f"no complete latents in '{folder}'; make them with: ldm encode")
        if contract["codec_hash"] != codec_hash:
            raise ValueError(
                f"the latents in '{folder}' were made with autoencoder {str(contract['codec_hash'])[:12]}, but the "
                f"codec here is {codec_hash[:12]}; encode anew, or use the autoencoder they were made with"
            )
        self.seed = seed
        self.moments = np.load(folder / MOMENTS, mmap_mode="r")  # (N, 2C, H, W) float16
        self.keys: list[str] = []
        self.captions: list[list[str]] = []
        with (folder / SAMPLES).open(encoding="utf-8") as lines:
            for sample in map(json.loads, lines):
                self.keys.append(sample["key"])
                self.captions.append(field(sample["captions"], caption_field, sample["key"]))
        if len(self.keys) != len(self.moments):
            raise ValueError(
                f"'{folder}' has {len(self.moments)} latents but {len(self.keys)} samples; encode anew"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, indices: Sequence[int], visits: Sequence[int], *, slots: range, num_slots: int) -> Batch:
        """The samples at ``indices`` (B,) at their ``visits`` (B,), with a caption drawn for each."""
        keys = [self.keys[i] for i in indices]
        return Batch(
            captions=[
                pick(self.captions[i], seed=self.seed, key=key, visit=visit)
                for i, key, visit in zip(indices, keys, visits, strict=True)
            ],
            images=None,
            moments=torch.from_numpy(self.moments[np.asarray(indices)]).float(),  # (B, 2C, H, W)
            keys=keys,
            visits=list(visits),
            slots=slots,
            num_slots=num_slots,
        )

    def endless(self, order: GlobalBatches) -> Iterator[Batch]:
        """Training batches in the order given; read in this process, for handing over costs more than reading."""
        for requests in order:
            indices, visits = zip(*requests, strict=True)
            yield self.batch(indices, visits, slots=order.slots, num_slots=order.global_batch)

    def in_order(self, *, batch_size: int) -> BatchLoader:
        """Every sample once, at visit 0; see ``pipeline.in_order``."""
        pieces = pieces_of(len(self), batch_size=batch_size)

        def batches() -> Iterator[Batch]:
            for piece in pieces:
                yield self.batch(piece, [0] * len(piece), slots=piece, num_slots=len(self))

        return BatchLoader(batches, num_batches=len(pieces))


def _resume(folder: Path, contract: LatentsContract, batch_size: int) -> int:
    """How many rows an interrupted call left, in whole batches; what belongs to another contract is cleared away."""
    folder.mkdir(parents=True, exist_ok=True)
    samples, moments = folder / (SAMPLES + ".partial"), folder / (MOMENTS + ".partial")
    lines: list[str] = []
    if _read_contract(folder / UNFINISHED) == asdict(contract) and samples.exists() and moments.exists():
        lines = samples.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = sum(line.endswith("\n") for line in lines)
        lines = lines[: whole // batch_size * batch_size if whole < contract.count else whole]
    for path in (folder / CONTRACT, *([] if lines else [moments])):
        path.unlink(missing_ok=True)
    samples.write_text("".join(lines), encoding="utf-8")
    with written_whole(folder / UNFINISHED) as path:
        path.write_text(json.dumps(asdict(contract)))
    return len(lines)


def _open_moments(folder: Path, shape: tuple[int, ...], *, new: bool) -> np.memmap:
    path = folder / (MOMENTS + ".partial")
    if new:
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    return np.lib.format.open_memmap(path, mode="r+")


def _finite(moments: torch.Tensor, batch: Batch) -> np.ndarray:
    rows = moments.to("cpu", torch.float16).numpy()
    if not np.isfinite(rows).all():
        raise ValueError(
            f"the autoencoder's moments of samples {batch.keys[0]} to {batch.keys[-1]} are not finite in float16: "
            f"it has diverged, or its latents are too large"
        )
    return rows


def _sample_line(dataset: ShardDataset, i: int, key: str) -> str:
    """Row i's line; its key differs from sample i's where another took the place of a damaged picture."""
    if key != dataset.index.key(i):
        i = dataset.index.find(key)
    return json.dumps({"key": key, "captions": dataset.captions(i)}, ensure_ascii=False) + "\n"


def _read_contract(path: Path) -> dict[str, object] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
