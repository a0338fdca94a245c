"""``ldm encode``: the latents of shards by a trained autoencoder, made once to train on."""

from __future__ import annotations

from pathlib import Path

from ldm.codecs.kl import KLCodec
from ldm.commands.load import device_for
from ldm.data.latents import contract_for, is_complete, latents_folder
from ldm.data.latents import encode as encode_pictures
from ldm.data.pipeline import ShardDataset
from ldm.training.run import find_run

AUTOENCODER = "autoencoder.safetensors"  # what training an autoencoder leaves in its run folder


def encode(
    *,
    run: str,
    shards: str | list[str],
    out: str,
    image_size: int | None = None,
    batch_size: int = 64,
    caption_field: str = "txt",
    background: str = "white",
    device: str = "auto",
    num_workers: int = 0,
    runs: str = "runs",
) -> None:
    """Write posterior moments to ``<out>/<autoencoder>/<pictures>/``, where ``data=latents`` looks for them.

    An interrupted call can be given again; where all is there already, nothing is done.

    Args:
        run: a run of an autoencoder, its name, or an ``autoencoder.safetensors``.
        shards: a folder, a pattern or a list of them.
        out: where latents are kept; ``data.folder`` of the training that uses them.
        image_size: side of the square pictures; null takes the run's own.
        batch_size: pictures at a time.
        caption_field: "txt", or the json's field with captions; samples without it are left out, as in training.
        background: what transparent parts of a picture show.
        device: "auto", "cpu", "cuda".
        num_workers: processes that decode pictures; 0 decodes in this one.
        runs: where runs are looked for by name.

    Raises:
        FileNotFoundError: no such run, autoencoder or shard.
        ValueError: the size is not known, or the codec's stride does not divide it.
    """
    path = Path(run)
    if path.suffix != ".safetensors":
        folder = find_run(run, runs=runs)
        path = folder.path / AUTOENCODER
        if not path.is_file():
            raise FileNotFoundError(
                f"the run {folder.path} has no {AUTOENCODER}: is it an autoencoder's, and finished?"
            )
        if image_size is None:
            image_size = int(folder.read_config().data.image_size)
    if image_size is None:
        raise ValueError("an autoencoder's file does not know the size of your pictures; give image_size=...")
    codec = KLCodec(path=str(path)).to(device_for(device))
    if image_size % codec.downsample:
        raise ValueError(
            f"image_size={image_size} is not divisible by the autoencoder's stride {codec.downsample}"
        )
    pictures = ShardDataset(
        shards=shards, image_size=image_size, caption_field=caption_field, background=background
    )
    contract = contract_for(codec.content_hash, pictures)
    place = latents_folder(out, contract)
    if is_complete(place, contract):
        print(f"the latents of these {len(pictures):,} pictures are there already: {place}")
        return
    encode_pictures(
        codec, pictures, place, batch_size=batch_size, device=device_for(device), num_workers=num_workers
    )
    print(f"latents of {len(pictures):,} pictures in {place}")
