"""Embeddings of captions, made once by a frozen text encoder and read back in training, which then needs no encoder.

A folder of embeddings::

    contract.json                    the text contract, and which captions a sample may be given
    null.safetensors                 the null condition: what the encoder says of the empty caption
    <shard>-<hash>.safetensors       for each shard:
        tokens  mask  pooled         (M, L, D) float16, (M, L) bool, (M, P) float16: each different caption once
        captions  captions_ends      where each of a sample's captions is among them, in the order of ``CaptionRecipe``

A caption that is dropped becomes the null condition, and of several captions each visit is given the one it would have
been given without a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.data.cache import Blank, CacheFile, written
from ldm.data.memory import Memory
from ldm.data.parts import Part, missing, parts_of
from ldm.data.pipeline import ShardDataset
from ldm.data.progress import progress
from ldm.data.shards import written_whole
from ldm.interfaces import Conditioning, EncodedText, TextEncoder

CONTRACT, NULL = "contract.json", "null.safetensors"
MOST_OPEN = 8192


def text_contract(encoder: TextEncoder, dataset: ShardDataset) -> dict[str, Any]:
    """What embeddings depend on besides the samples' texts.

    Raises:
        ValueError: The encoder is trained with the denoiser, or captions cannot be listed beforehand.
    """
    trained = isinstance(encoder, torch.nn.Module) and any(p.requires_grad for p in encoder.parameters())
    if trained or not encoder.content_hash:
        raise ValueError(
            f"{type(encoder).__name__} is trained together with the denoiser, so its embeddings cannot be made "
            f"beforehand: choose a pretrained text_encoder, or cache latents only"
        )
    preparation = dataset.preparation
    preparation.captions.every([])  # refuses what is another caption each time
    return {
        "encoder_hash": encoder.content_hash,
        "encoder": dict(encoder.contract),
        "templates": None if preparation.captions.templates is None else list(preparation.captions.templates),
    }


def text_folder(out: str | Path, contract: dict[str, Any]) -> Path:
    """Where in ``out`` embeddings with this contract lie."""
    templates = hashlib.sha256(json.dumps(contract["templates"]).encode()).hexdigest()[:8]
    return Path(out) / contract["encoder_hash"][:12] / (templates if contract["templates"] else "as_written")


def text_parts(dataset: ShardDataset) -> list[Part]:
    """One for each shard; their files depend on the fields that captions come from."""

    def fields(samples: range) -> bytes:
        return json.dumps(list(dataset.preparation_of(samples.start).fields)).encode()

    return parts_of(dataset.index, fields)


@torch.no_grad()
def encode_text(
    encoder: TextEncoder,
    dataset: ShardDataset,
    folder: Path,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Write this process's share of the files that are missing; returns how many captions it has encoded.

    Args:
        encoder: On its device already.
        dataset: Its captions and what may be done to them.
        folder: See the top of this file.
        batch_size: Captions at a time.
        rank: Of this process, in [0, world_size).
        world_size: Processes that share the work, shard by shard.

    Raises:
        ValueError: Embeddings that are not finite in float16.
    """
    contract = text_contract(encoder, dataset)
    todo = missing(text_parts(dataset)[rank::world_size], folder)
    if rank == 0 and not (folder / CONTRACT).exists():
        _write(folder / NULL, [""], encoder, batch_size, {})
        with written_whole(folder / CONTRACT) as path:
            path.write_text(json.dumps(contract, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    num = 0
    with progress("text", total=sum(len(part.samples) for part in todo), shown=rank == 0) as advance:
        for part in todo:
            preparation = dataset.preparation_of(part.samples.start)
            place: dict[str, int] = {}
            rows: list[int] = []
            ends = []
            for i in part.samples:
                texts = dataset.captions(i)
                said = [text for name in preparation.fields for text in texts.get(name, ())]
                rows += [place.setdefault(text, len(place)) for text in preparation.captions.every(said)]
                ends.append(len(rows))
            columns = {"captions": np.array(rows, np.int32), "captions_ends": np.array(ends, np.int64)}
            _write(part.file(folder), list(place), encoder, batch_size, columns)
            num += len(place)
            advance(len(part.samples))
    return num


def _write(
    path: Path,
    captions: Sequence[str],
    encoder: TextEncoder,
    batch_size: int,
    columns: Mapping[str, Any],
) -> None:
    first = encoder(captions[:batch_size])
    if first.labels is not None:
        raise ValueError(f"{type(encoder).__name__} tells class labels: there is nothing to make beforehand")
    num, shapes = len(captions), (first.tokens.shape[1:], first.mask.shape[1:], first.pooled.shape[1:])
    blank: dict[str, np.ndarray | Blank] = {
        "tokens": (np.float16, (num, *shapes[0])),
        "mask": (np.bool_, (num, *shapes[1])),
        "pooled": (np.float16, (num, *shapes[2])),
    }
    with written(path, {**columns, **blank}, {}) as arrays:
        for at in range(0, num, batch_size):
            part = captions[at : at + batch_size]
            cond = first if at == 0 else encoder(part)
            for name in blank:
                values = (
                    getattr(cond, name).to("cpu", torch.bool if name == "mask" else torch.float16).numpy()
                )
                if not np.isfinite(values).all():
                    raise ValueError(
                        f"{name} of the caption '{part[0][:60]}' or one after it are not finite in float16"
                    )
                arrays[name][at : at + len(part)] = values


class TextCache:
    """Embeddings by sample and caption; files are mapped.

    Args:
        folder: That ``encode_text`` wrote.
        dataset: The data set that training uses.
        encoder: The text encoder that sampling will use.

    Raises:
        FileNotFoundError: Embeddings are missing.
        ValueError: They were made by another encoder, or of other captions.
    """

    def __init__(self, folder: str | Path, dataset: ShardDataset, encoder: TextEncoder) -> None:
        self.folder = Path(folder)
        _check(self.folder, text_contract(encoder, dataset))
        self.parts = text_parts(dataset)
        lacking = missing(self.parts, self.folder)
        if lacking:
            raise FileNotFoundError(
                f"the text of {len(lacking)} of {len(self.parts)} shards is missing in '{self.folder}', the first of "
                f"them {lacking[0].file(self.folder).name}: it was not encoded yet, or shards, filters or caption "
                f"fields have changed since; make it with: ldm encode text_encoder=..."
            )
        self.null = _conditioning(CacheFile(self.folder / NULL).arrays, [0])
        self._open: OrderedDict[int, _OpenPart] = OrderedDict()
        self._memory = Memory()

    def batch(
        self, shares: Sequence[tuple[int, np.ndarray]], rows: np.ndarray, places: np.ndarray
    ) -> EncodedText:
        """Embeddings of a batch's captions.

        Args:
            shares: numbers of parts, and which of the batch come from each.
            rows: (B,) samples in their parts.
            places: (B,) of their captions in ``CaptionRecipe.every``.
        """
        tokens = self._memory.empty(len(rows), *self.null.tokens.shape[1:], dtype=torch.float16)  # (B, L, D)
        filled, size = tokens.numpy().reshape(-1).view(np.uint8).data, tokens[0].nbytes
        mask = np.empty((len(rows), *self.null.mask.shape[1:]), np.bool_)  # (B, L)
        pooled = np.empty((len(rows), *self.null.pooled.shape[1:]), np.float16)  # (B, P)
        for number, here in shares:
            part = self._part(number)
            found = part.captions[part.begins[rows[here]] + places[here]].astype(np.int64)
            mask[here], pooled[here] = part.mask[found], part.pooled[found]
            # Long rows: copied once, and through memory views, which do it with the least ado.
            for to, place in zip((here * size).tolist(), (found * size).tolist(), strict=True):
                filled[to : to + size] = part.tokens[place : place + size]
        captions = Conditioning(tokens=tokens, mask=torch.from_numpy(mask), pooled=torch.from_numpy(pooled))
        return EncodedText(captions=captions, null=self.null)

    def _part(self, number: int) -> _OpenPart:
        found = self._open.get(number)
        if found is None:
            found = self._open[number] = _OpenPart(CacheFile(self.parts[number].file(self.folder)).arrays)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return found


class _OpenPart:
    """The columns of one file, mapped."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.tokens = columns["tokens"].reshape(-1).view(np.uint8).data  # bytes: L * D * 2 to a caption
        self.mask, self.pooled = columns["mask"], columns["pooled"]
        ends = columns["captions_ends"]
        self.captions, self.begins = columns["captions"], np.concatenate([[0], ends[:-1]])


def _conditioning(arrays: dict[str, np.ndarray], rows: list[int]) -> Conditioning:
    tokens, mask, pooled = (torch.from_numpy(arrays[name][rows]) for name in ("tokens", "mask", "pooled"))
    return Conditioning(tokens=tokens, mask=mask, pooled=pooled)


def _check(folder: Path, mine: dict[str, Any]) -> None:
    try:
        said = json.loads((folder / CONTRACT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no text encoded beforehand in '{folder}'; make it with: ldm encode text_encoder=..."
        ) from None
    then, now = _flat(said), _flat(json.loads(json.dumps(mine)))
    wrong = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if wrong:
        listed = "; ".join(
            f"{name} was {_short(then.get(name))} and is {_short(now.get(name))}" for name in wrong[:4]
        )
        raise ValueError(
            f"the text in '{folder}' was encoded differently: {listed}; encode it anew, or use what it was made with"
        )


def _flat(contract: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"encoder.length": 77}."""
    if not isinstance(contract, dict):
        return {name: contract}
    found = [_flat(value, f"{name}.{key}".lstrip(".")) for key, value in contract.items()]
    return {key: value for part in found for key, value in part.items()}


def _short(value: Any) -> str:
    """In a message: hashes by their beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else text[:60]
