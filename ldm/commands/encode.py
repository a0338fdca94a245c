"""``ldm encode``: latents by a trained autoencoder, and text by a pretrained encoder, made once to train on."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.codecs.kl import KLCodec
from ldm.commands.load import device_for
from ldm.commands.ranks import this_process
from ldm.data.buckets import Sizes, check_sizes
from ldm.data.captions import AS_WRITTEN, CaptionRecipe
from ldm.data.latents import contract_for, latent_parts
from ldm.data.latents import encode as encode_pictures
from ldm.data.parts import missing
from ldm.data.pipeline import ShardDataset
from ldm.data.text_cache import encode_text, text_contract, text_folder, text_parts
from ldm.interfaces import TextEncoder
from ldm.training.run import find_run

AUTOENCODER = "autoencoder.safetensors"  # what training an autoencoder leaves in its run folder


def encode(
    *,
    run: str | None,
    shards: str | list[str],
    out: str,
    text_out: str,
    image_size: int | None = None,
    batch_size: int = 64,
    text_encoder: TextEncoder | None = None,
    buckets: Sizes | None = None,
    caption_field: str | dict[str, float] = "txt",
    caption_recipe: CaptionRecipe = AS_WRITTEN,
    background: str = "white",
    original_size_from: list[str] | None = None,
    device: str = "auto",
    num_workers: int = 0,
    runs: str = "runs",
) -> None:
    """Write latents and text to where ``data=latents`` looks for them.

    One file per shard is written whole; those that are there are kept, so an interrupted call can be given again.
    Started by torchrun or srun, all processes share the shards.

    Args:
        run: a run of an autoencoder, its name, or an ``autoencoder.safetensors``; null encodes text only.
        shards: a folder, a pattern or a list of them.
        out: where latents are kept; ``data.folder`` of the training that uses them.
        text_out: where text is kept; ``data.text_folder`` of the training.
        image_size: side of the square pictures; null takes the run's own.
        batch_size: pictures, or captions, at a time.
        text_encoder: a pretrained one, by which captions are encoded, too.
        buckets: in which sizes pictures come out; as in training.
        caption_field: as in training; captions of one field or several.
        caption_recipe: as in training; what is done to captions, and what if there is none.
        background: what transparent parts of a picture show.
        original_size_from: as in training; the json's fields for size conditioning.
        device: "auto", "cpu", "cuda".
        num_workers: processes that decode pictures, for each process; 0 decodes in it.
        runs: where runs are looked for by name.

    Raises:
        FileNotFoundError: no such run, autoencoder or shard.
        ValueError: the size is not known, the codec's stride does not divide it, or there is nothing to do.
    """
    if run is None and text_encoder is None:
        raise ValueError(
            "nothing to encode: give run=<autoencoder> for latents, text_encoder=<choice> for text"
        )
    path = None if run is None else Path(run)
    if path is not None and path.suffix != ".safetensors":
        folder = find_run(str(run), runs=runs)
        path = folder.path / AUTOENCODER
        if not path.is_file():
            raise FileNotFoundError(
                f"the run {folder.path} has no {AUTOENCODER}: is it an autoencoder's, and finished?"
            )
        if image_size is None:
            image_size = int(folder.read_config().data.image_size)
    if image_size is None and path is not None and (buckets is None or not buckets.looks_at_pictures):
        raise ValueError("an autoencoder's file does not know the size of your pictures; give image_size=...")
    pictures = ShardDataset(
        shards=shards,
        image_size=image_size or 1,
        buckets=buckets,
        caption_field=caption_field,
        captions=caption_recipe,
        background=background,
        original_size_from=original_size_from,
    )
    here = this_process()
    place = (
        torch.device("cuda", here.local_rank)
        if device == "auto" and torch.cuda.is_available()
        else device_for(device)
    )
    if path is not None:
        codec = KLCodec(path=str(path)).to(place)
        check_sizes(pictures.assignment.sizes, codec.downsample)
        into = contract_for(codec.content_hash, pictures).folder(out)
        total = len(missing(latent_parts(pictures), into))
        num = encode_pictures(
            codec, pictures, into, batch_size=batch_size, device=place, num_workers=num_workers,
            rank=here.rank, world_size=here.world_size,
        )  # fmt: skip
        _report("latents", len(pictures), "pictures", num, total, into, here.rank)
    if text_encoder is not None:
        if isinstance(text_encoder, torch.nn.Module):
            text_encoder.to(place)
        into = text_folder(text_out, text_contract(text_encoder, pictures))
        total = len(missing(text_parts(pictures), into))
        num = encode_text(
            text_encoder, pictures, into, batch_size=batch_size, rank=here.rank, world_size=here.world_size
        )
        _report("text", len(pictures), "samples", num, total, into, here.rank)


def _report(what: str, num: int, unit: str, encoded: int, lacked: int, folder: Path, rank: int) -> None:
    if not lacked:
        print(f"the {what} of these {num:,} {unit} is there already: {folder}")
    elif rank == 0:
        print(f"{what} of {num:,} {unit} in {folder} ({encoded:,} encoded by this process)")
    else:
        print(f"process {rank}: {encoded:,} encoded")
