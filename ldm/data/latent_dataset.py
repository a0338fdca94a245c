"""Latents, and perhaps text, made beforehand and read back as Batch: the same batches as from the pictures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ldm.data.buckets import Assignment
from ldm.data.cache import CacheFile
from ldm.data.latents import contract_for, latent_parts
from ldm.data.loading import BatchLoader
from ldm.data.memory import Memory
from ldm.data.order import Order
from ldm.data.parts import Part, missing
from ldm.data.pipeline import ShardDataset, pieces_of
from ldm.data.strings import Strings, spans
from ldm.data.text_cache import TextCache
from ldm.interfaces import Batch

MOST_OPEN = 8192  # maps at a time; an operating system allows about 65,000


class LatentDataset:
    """Latents by sample number, read in batches; files are mapped, so memory is the operating system's business.

    Args:
        folder: that ``ldm.data.latents.encode`` wrote.
        pictures: the data set they were made from; says what captions are drawn, too.
        codec_hash: of the codec that will decode what is learned on them.
        text: embeddings of the captions, made beforehand; None where captions are encoded in training.

    Raises:
        FileNotFoundError: latents are missing.
        ValueError: they were made with another autoencoder, or in another way.
    """

    def __init__(
        self, folder: str | Path, pictures: ShardDataset, *, codec_hash: str, text: TextCache | None = None
    ) -> None:
        self.folder = Path(folder)
        contract_for(codec_hash, pictures).check(self.folder)
        self.parts = latent_parts(pictures)
        lacking = missing(self.parts, self.folder)
        if lacking:
            raise FileNotFoundError(
                f"the latents of {len(lacking)} of {len(self.parts)} shards are missing in '{self.folder}', the first "
                f"of them {lacking[0].file(self.folder).name}: they were not encoded yet, or their shards, filters or "
                f"sizes have changed since; make them with: ldm encode"
            )
        self.text = text
        self.assignment: Assignment = pictures.assignment
        self.preparations = [
            pictures.preparation_of(part.samples.start) for part in self.parts
        ]  # of each part
        self._ends = np.array([part.samples.stop for part in self.parts])  # (number of parts,)
        self._starts = np.array([part.samples.start for part in self.parts])
        self._open: OrderedDict[int, _OpenPart] = OrderedDict()
        self._memory = Memory()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Sequence[int], visits: Sequence[int], *, slots: range, num_slots: int) -> Batch:
        """The samples at ``indices`` (B,), all of one size, at their ``visits`` (B,), with a caption drawn for each."""
        numbers = np.searchsorted(self._ends, indices, side="right")  # (B,) of each one's part
        rows = np.asarray(indices) - self._starts[numbers]
        first = self._part(int(numbers[0]))
        height, width = first.sizes[rows[0], 4:].tolist()
        shape = first.moments[height, width].shape[1:]
        moments = self._memory.empty(len(rows), *shape, dtype=torch.float16)  # (B, 2C, H, W)
        filled = moments.numpy()
        sizes = np.empty((len(rows), 6), np.float32)
        sources = np.empty(len(rows), np.int64)
        keys, captions, places = [""] * len(rows), [""] * len(rows), [0] * len(rows)
        shares = shares_of(numbers)
        for number, here in shares:
            part = self._part(number)
            filled[here] = part.moments[height, width][part.row[rows[here]]]
            sizes[here] = part.sizes[rows[here]]
            source = part.source[rows[here]]
            sources[here] = source
            preparation = self.preparations[number]
            recipe, fields, seed = preparation.captions, preparation.fields, preparation.seed
            names = part.keys.take(source)
            texts = part.only_texts(source) if recipe.as_written else None
            if texts is not None:  # nothing to draw, nearly always
                for b, key, text in zip(here.tolist(), names, texts, strict=True):
                    keys[b], captions[b] = key, text
                continue
            for b, key, (said, counts) in zip(here.tolist(), names, part.said(source), strict=True):
                visit = visits[b]
                place = recipe.place(counts, fields, seed=seed, key=key, visit=visit)
                captions[b] = recipe.caption(said, place, seed=seed, key=key, visit=visit)
                keys[b], places[b] = key, place
        return Batch(
            captions=captions,
            images=None,
            moments=moments,
            keys=keys,
            visits=list(visits),
            slots=slots,
            num_slots=num_slots,
            sizes=torch.from_numpy(sizes),
            text=None if self.text is None else self.text.batch(shares, sources, np.array(places)),
        )

    def endless(self, order: Order) -> Iterator[Batch]:
        """Training batches in the order given; read in this process, for handing over costs more than reading."""
        for requests in order:
            indices, visits, _ = zip(*requests, strict=True)
            yield self.batch(indices, visits, slots=order.slots, num_slots=order.global_batch)

    def in_order(self, *, batch_size: int) -> BatchLoader:
        """Every sample once, at visit 0; see ``pipeline.in_order``."""
        pieces = pieces_of(self.assignment, batch_size=batch_size)
        total = sum(len(members) for members in pieces)

        def batches() -> Iterator[Batch]:
            first = 0
            for members in pieces:
                slots = range(first, first + len(members))
                yield self.batch(members, [0] * len(members), slots=slots, num_slots=total)
                first = slots.stop

        return BatchLoader(batches, num_batches=len(pieces))

    def _part(self, number: int) -> _OpenPart:
        found = self._open.get(number)
        if found is None:
            found = self._open[number] = _OpenPart(
                self.parts[number], self.folder, self.preparations[number].fields
            )
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return found


def shares_of(numbers: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each of the numbers (n,) once, rising, with the places where it stands."""
    places = np.argsort(numbers, kind="stable")
    ordered = numbers[places]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    return list(zip(ordered[begins].tolist(), np.split(places, begins[1:]), strict=True))


class _OpenPart:
    """The columns of one file, mapped."""

    def __init__(self, part: Part, folder: Path, fields: Iterable[str]) -> None:
        columns = CacheFile(part.file(folder)).arrays
        self.row, self.source, self.sizes = columns["row"], columns["source"], columns["sizes"]
        named = {
            name.removeprefix("moments/"): x for name, x in columns.items() if name.startswith("moments/")
        }
        self.moments: dict[tuple[int, ...], np.ndarray] = {
            tuple(map(int, name.split("x"))): x for name, x in named.items()
        }  # (height, width) -> (n', 2C, H, W)
        self.keys, self.texts = Strings(columns, "keys"), Strings(columns, "texts")
        known = {name: number for number, name in enumerate(Strings(columns, "fields"))}
        self._wanted = [known.get(name, -1) for name in fields]
        self._ends, self._field = columns["said_ends"], columns["text_field"]
        # Each sample has one text and that is wanted, as nearly always: then its place is the sample's.
        self._single = (
            len(self._wanted) == 1
            and len(self._field) == len(self._ends)
            and bool((np.diff(self._ends, prepend=0) == 1).all())
            and bool((self._field == self._wanted[0]).all())
        )

    def only_texts(self, rows: np.ndarray) -> list[str] | None:
        """The texts of samples (n,), where every sample has only one and that in the field; None otherwise."""
        return self.texts.take(rows) if self._single else None

    def said(self, rows: np.ndarray) -> Iterator[tuple[list[str], list[int]]]:
        """The texts of samples (n,) in the fields, and how many there are in each."""
        for begin, end in zip(*(places.tolist() for places in spans(self._ends, rows)), strict=True):
            codes = self._field[begin:end].tolist()
            of_field = [
                [self.texts[j] for j, code in enumerate(codes, start=begin) if code == number]
                for number in self._wanted
            ]
            yield [text for texts in of_field for text in texts], [len(texts) for texts in of_field]
