"""What a training reads from disk and writes to it, reckoned from its config for a plan and a check-up alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from ldm.commands.blueprint import averages
from ldm.data.shard_index import read_header_of
from ldm.data.shards import find_shards
from ldm.interfaces import TextEncoder
from ldm.planning.memory import State
from ldm.planning.subjects import DiffusionSubject, Subject

BYTES_PER_PIXEL = 0.3  # of a JPEG of good quality; only where the shards are not there to be measured
BYTES_PER_DRAWN_PIXEL = 3  # of a PNG, at the most
BYTES_PER_LOGGED_ROW = 200  # of metrics.csv: a row of shapes_vae has 100, one of shapes_dit more columns


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Files of one kind.

    Attributes:
        what: In words.
        size: Bytes, all together; None where nobody can know.
        place: The folder that they are written into; None for what is only read.
        remedy: What makes an unknown size known.
    """

    what: str
    size: int | None
    place: Path | None
    remedy: str = ""


def amounts(config: DictConfig, subject: Subject, state: State, *, num_pictures: int | None) -> list[Amount]:
    """Everything that a training reads and writes.

    Args:
        config: A training's, checked.
        subject: What it trains.
        state: What it keeps between steps.
        num_pictures: In the data set; None counts what is there.
    """
    runs = Path(config.paths.runs)
    shards = shards_of(config)
    found = [read(config, shards, num_pictures)]
    counted = num_pictures if num_pictures is not None else pictures_in(shards)
    found += caches(config, subject, counted)
    found += [checkpoints(config, state, runs), *snapshots(config, state, runs)]
    return [*found, drawn(config, runs), logged(config, runs)]


def read(config: DictConfig, shards: list[Path], num_pictures: int | None) -> Amount:
    """The shards, as they are or as they would be."""
    if shards:
        size = sum(shard.stat().st_size for shard in shards)
        return Amount(what="shards, as they are", size=size, place=None)
    estimated = None
    if num_pictures is not None:
        estimated = int(num_pictures * int(config.data.image_size) ** 2 * BYTES_PER_PIXEL)
    return Amount(what="shards, estimated", size=estimated, place=None, remedy="num_pictures=...")


def caches(config: DictConfig, subject: Subject, num_pictures: int | None) -> Iterator[Amount]:
    """Latents and embeddings of captions that are made once; see ldm/data/latents.py and text_cache.py."""
    if "folder" not in config.data or not isinstance(subject, DiffusionSubject):
        return
    remedy = "num_pictures=..., or ldm index"
    channels, height, width = subject.latents
    moments = 2 * channels * height * width * 2  # float16
    yield Amount(
        what="latents",
        size=None if num_pictures is None else num_pictures * moments,
        place=Path(config.data.folder),
        remedy=remedy,
    )
    if config.data.get("text_folder"):
        encoder = cast(TextEncoder, subject.text_encoder)
        embedding = 2 * (encoder.length * encoder.width + encoder.pooled_width) + encoder.length
        fields = config.data.get("caption_field", "txt")
        captions = len(fields) if isinstance(fields, DictConfig) else 1  # a field may hold several, though
        yield Amount(
            what=f"text, {captions} captions a picture",
            size=None if num_pictures is None else num_pictures * captions * embedding,
            place=Path(config.data.text_folder),
            remedy=remedy,
        )


def checkpoints(config: DictConfig, state: State, runs: Path) -> Amount:
    """Weights, all averages and the optimizer's state, as often as they are kept; see ldm/training/saving.py."""
    kept = 0
    for one in callbacks(config):
        if "keep_every_num_images" in one:
            every = one.keep_every_num_images
            kept += int(one.get("keep_last", 2)) + (one.get("monitor") is not None)
            kept += int(config.num_images) // int(every) if every else 0
    size = state.trained * 4 * (1 + averages(config, on_device=False)) + state.optimizer
    return Amount(what=f"{kept} checkpoints", size=kept * size, place=runs)


def snapshots(config: DictConfig, state: State, runs: Path) -> Iterator[Amount]:
    """Power-function averages that are kept on the way; see ldm/training/power_ema.py."""
    for one in callbacks(config):
        if "snapshot_every_num_images" in one:
            number = int(config.num_images) // int(one.snapshot_every_num_images) + 1  # one at the end
            each = state.trained * len(one.sigma_rels) * (2 if one.get("half", True) else 4)
            yield Amount(what=f"{number} snapshots of averages", size=number * each, place=runs)


def drawn(config: DictConfig, runs: Path) -> Amount:
    """Sample grids and reconstructions: PNGs, one for each time."""
    total, num_images, side = 0, int(config.num_images), int(config.data.image_size)
    validated = [int(one.num_images) for one in callbacks(config) if "ValidateEvery" in one["_target_"]]
    for one in callbacks(config):
        if "prompts" in one:
            every = one.get("every_num_images")
            total += len(one.prompts) * (max(1, num_images // int(every)) if every else 1)
        elif "num_pictures" in one:  # an original and its reconstruction, at each validation
            total += 2 * int(one.num_pictures) * sum(num_images // every for every in validated)
    return Amount(what="samples", size=total * side**2 * BYTES_PER_DRAWN_PIXEL, place=runs)


def logged(config: DictConfig, runs: Path) -> Amount:
    steps = int(config.num_images) // int(config.data.batch_size)
    rows = steps // int(config.trainer.get("log_every_n_steps") or 50) + 1
    loggers = sum(one is not None for one in config.logger.values())
    return Amount(what="logs", size=rows * loggers * BYTES_PER_LOGGED_ROW, place=runs)


def callbacks(config: DictConfig) -> list[Any]:
    return [one for one in config.callbacks.values() if one is not None]


def shards_of(config: DictConfig) -> list[Path]:
    """All shards of a training that are there."""
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    places = [data.get("train_shards"), data.get("val_shards")]
    places += [source["shards"] for source in data.get("sources") or ()]
    found: list[Path] = []
    for place in places:
        with suppress(FileNotFoundError, ValueError):  # ``ldm doctor`` says so
            found += find_shards(place) if place else []
    return found


def pictures_in(shards: list[Path]) -> int | None:
    """As their indices say; None where there are none, or one of them lacks its index."""
    headers = [read_header_of(shard, check=False) for shard in shards]
    counts = [header.count for header in headers if header is not None]
    return sum(counts) if shards and len(counts) == len(shards) else None
