"""``ldm export``: a trained denoiser as other tools read it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ldm.codecs.kl import KLCodec
from ldm.commands.load import LoadedRun, load_run
from ldm.commands.second_reader import diffusers_if_installed
from ldm.interop.formats import Format, Model
from ldm.interop.probe import probe_for


def export(*, run: str, format: Format, out: str, weights: str = "ema", runs: str = "runs") -> None:
    """Write a run's network, autoencoder and noise schedule for diffusers, ComfyUI, or for trainings of one's own.

    What was written is read back and asked the same question as the run's network, by our own reading and, where
    diffusers is installed, by its; only then it gets its name. A failure leaves nothing behind.

    Args:
        run: run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``, or one of its checkpoints.
        format: what to write: format=diffusers, format=safetensors or format=comfyui.
        out: where to; must not exist yet. A folder, for comfyui a file that ends in .safetensors.
        weights: "ema" for the averaged weights where the run kept them, "online" for the plain ones, or the name of
            an average that ``ldm ema`` made.
        runs: where runs are looked for by name.

    Raises:
        FileExistsError: ``out`` is there already.
        ValueError: The run or its diffusion has no counterpart in that format; what does not fit is named.
    """
    console = Console(soft_wrap=True, highlight=False)
    place = Path(out)
    if place.exists():
        raise FileExistsError(f"{place} is there already: give another out=..., or remove it first")
    loaded = load_run(run, weights=weights, runs=runs)
    model = model_of(loaded)
    draft = place.with_name(f".tmp-{place.name}")
    remove(draft)
    try:
        notes = format.write(model, draft)
        findings = format.check(model, draft, diffusers_if_installed())
        os.replace(draft, place)
    finally:
        remove(draft)
    for finding in findings:
        console.print(finding)
    console.print(f"{place}: {model.origin}")
    for note in notes:
        console.print(f"note: {note}")


def model_of(loaded: LoadedRun) -> Model:
    """A run's module as plain objects.

    Raises:
        ValueError: It is no denoiser.
    """
    module: Any = loaded.module
    if not hasattr(module, "generation"):
        raise ValueError(
            f"{loaded.folder.path} is no denoiser (it is a {type(module).__name__}): an autoencoder is exported with "
            f"the denoiser that was trained on its latents"
        )
    codec, text_encoder = module.codec, module.text_encoder
    autoencoder, mean, std, file = None, (0.0,) * codec.channels, (1.0,) * codec.channels, None
    if isinstance(codec, KLCodec):
        autoencoder, mean, std, file = (
            codec.autoencoder,
            codec.contract.mean,
            codec.contract.std,
            Path(codec.path),
        )
    height, width = (int(side) for side in module.latent_size)
    schedule = module.diffusion.schedule
    if hasattr(schedule, "for_latents"):
        schedule = schedule.for_latents((codec.channels, height, width))
    with torch.no_grad():
        encoded = text_encoder(["", ""])
    probe = probe_for(encoded, channels=codec.channels, latent_size=(height, width), stride=codec.downsample)
    return Model(
        parts=loaded.parts,
        autoencoder=autoencoder,
        mean=mean,
        std=std,
        codec_file=file,
        codec_hash=codec.content_hash,
        schedule=schedule,
        parameterization=module.diffusion.parameterization,
        t_range=module.diffusion.t_range,
        latent_size=(height, width),
        class_names=tuple(getattr(text_encoder, "numbers", ())),
        probe=probe,
        origin=f"{loaded.weights} weights of {loaded.folder.name}/{loaded.folder.id} after "
        f"{loaded.images_seen:,} images",
        text_encoder=text_encoder,
    )


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
