"""Several sources of shards as one data set, and the order that it is trained on in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.data.bucket_order import BucketBatches, buckets_of
from ldm.data.mixture import Mixture
from ldm.data.order import WINDOW, GlobalBatches, Order, Shuffled, Walk

if TYPE_CHECKING:
    from ldm.data.pipeline import ShardDataset


@dataclass(frozen=True, kw_only=True)
class Source:
    """Shards that are drawn from in a fixed proportion to others.

    Args:
        shards: a folder, a pattern or a list of them.
        weight: how often it is drawn, relative to the others.
        caption_field: where its captions are, if not where the others' are.
        filters: conditions that its samples must fulfil, like "aesthetic > 5".
        name: in keys and logs; None takes its number. Keys are what randomness is tied to, so with names sources can
            be put in another order, or left out, without changing the others' crops and noise.
    """

    shards: str | Sequence[str]
    weight: float = 1.0
    caption_field: str | Mapping[str, float] | None = None
    filters: Sequence[str] = ()
    name: str | None = None

    @classmethod
    def of(cls, said: Mapping[str, Any], place: str) -> Source:
        """From a config's mapping.

        Raises:
            ValueError: it has no shards, or something else that a source has not.
        """
        known = [one.name for one in fields(cls)]
        for key in said:
            if key not in known:
                raise ValueError(f"{place} has a '{key}'; a source has {', '.join(known)}")
        if "shards" not in said:
            raise ValueError(f"{place} has no shards")
        if "/" in str(said.get("name") or ""):
            raise ValueError(f"{place}.name is '{said['name']}'; a name has no /, for it stands before keys")
        return cls(**said)


def sources_of(said: Sequence[Mapping[str, Any]]) -> list[Source]:
    """The sources of a config, each with a name of its own.

    Raises:
        ValueError: one that is none, or two of one name.
    """
    found = [Source.of(one, f"sources[{number}]") for number, one in enumerate(said)]
    names = [one.name or str(number) for number, one in enumerate(found)]
    if len(set(names)) < len(names):
        raise ValueError(f"two sources have the same name, of {', '.join(names)}")
    return [
        Source(**{**{x.name: getattr(one, x.name) for x in fields(one)}, "name": name})
        for one, name in zip(found, names, strict=True)
    ]


def order_of(
    data: ShardDataset,
    *,
    num: int,
    global_batch: int,
    window: int = WINDOW,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    start: int = 0,
) -> Order:
    """The order in which a data set is trained on.

    Args:
        data: the pictures.
        num: train on the first so many only; of several sources, all.
        global_batch: samples per step, over all processes.
        window: samples that are shuffled among each other; see ``Shuffled``.
        rank: of this process.
        world_size: how many processes there are.
        seed: of the order.
        start: how many samples the run has taken already.

    Raises:
        ValueError: some of several sources, or a batch that cannot be shared equally.
    """
    several = len(data.sources) > 1
    if several and num < len(data):
        raise ValueError(f"num_pictures={num} is for one source; give each of several a filter instead")
    place: dict[str, int] = {
        "global_batch": global_batch,
        "rank": rank,
        "world_size": world_size,
        "start": start,
    }
    assignment = data.assignment.first(num)
    counts = _first(data.index.counts, num)
    weights = [source.weight for source in data.sources]
    sizes = np.diff(data.source_ends, prepend=0).tolist()
    if len(assignment.sizes) > 1 or assignment.left_out:
        buckets = buckets_of(
            assignment,
            counts.tolist(),
            seed=seed,
            window=window,
            sources=sizes if several else None,
            weights=weights if several else None,
        )
        return BucketBatches(buckets=buckets, seed=seed, **place)
    if not several:
        return GlobalBatches(walk=Shuffled(counts=counts.tolist(), seed=seed, window=window), **place)
    begins = (
        np.searchsorted(data.index.ends, data.source_ends, side="left") + 1
    )  # shards up to each source's end
    walks: list[Walk] = [
        Shuffled(counts=of_source.tolist(), seed=seed, window=window, purpose=f"order of {source.name}")
        for source, of_source in zip(data.sources, np.split(counts, begins[:-1]), strict=True)
    ]
    return GlobalBatches(walk=Mixture(walks=walks, sizes=sizes, weights=weights, seed=seed), **place)


def _first(counts: np.ndarray, num: int) -> np.ndarray:
    """Samples in each shard, of the first ``num`` only."""
    before = np.cumsum(counts) - counts
    return np.clip(num - before, 0, counts)
