"""A folder that a pipeline of diffusers loads: network, autoencoder, scheduler, and a README that says the rest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ldm.interop.catalogue import described
from ldm.interop.folder import (
    MAX_SHARD_BYTES,
    VERSION,
    read_component,
    read_json,
    write_component,
    write_json,
)
from ldm.interop.formats import Model, SecondReader
from ldm.interop.latents import refolded
from ldm.interop.pipelines import Pipeline, pipeline_for
from ldm.interop.probe import agreement, asked
from ldm.interop.schedulers import scheduler_config
from ldm.interop.text import (
    INDEX,
    TextSide,
    call_options,
    check_side,
    check_written,
    components_in,
    missing_text,
    own_side,
    write_side,
)
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.autoencoder_base import Autoencoder


@dataclass(frozen=True, kw_only=True)
class Diffusers:
    """A folder for ``from_pretrained`` of the pipeline that runs such a network.

    Args:
        text_encoders: A folder of diffusers whose text encoders and tokenizers are to be copied along; None writes the
            run's own, where the pipeline can use them.
        with_text: False leaves them out, and the pipeline is then told embeddings in place of prompts.
        max_shard_bytes: Larger weights are written in several files.
    """

    text_encoders: str | None = None
    with_text: bool = True
    max_shard_bytes: int = MAX_SHARD_BYTES

    def write(self, model: Model, place: Path) -> list[str]:
        found, config = described(model.network)
        pipeline = pipeline_for(found.class_name, config)
        name = (
            pipeline.network if pipeline else "unet" if found.class_name.startswith("UNet") else "transformer"
        )
        scheduler = scheduler_config(
            model.schedule,
            model.parameterization,
            model.t_range,
            native_flow=bool(pipeline and pipeline.flow),
        )
        copies = self.with_text and self.text_encoders is not None
        text = components_in(Path(str(self.text_encoders)), pipeline) if copies else {}
        if found.class_name.startswith("UNet"):
            config = {**config, "sample_size": model.latent_size[0]}
        write_component(place / name, found, model.network, config, max_shard_bytes=self.max_shard_bytes)
        write_json(
            place / "scheduler" / "scheduler_config.json", {**scheduler, "_diffusers_version": VERSION}
        )
        notes = write_autoencoder(place, model, pipeline)
        for component in text:
            shutil.copytree(Path(str(self.text_encoders)) / component, place / component)
        side, text_notes = self.side(model, pipeline)
        if side is not None and pipeline is not None:
            text, text_notes = write_side(side, pipeline, place, max_shard_bytes=self.max_shard_bytes)
        notes += text_notes
        if pipeline is None:
            notes.append(f"diffusers has no pipeline for this {found.class_name}: load its parts one by one")
        else:
            index = model_index(
                place, pipeline, found.class_name, scheduler["_class_name"], text, model.class_names
            )
            write_json(place / INDEX, index)
            notes += missing_text(pipeline, text)
            if pipeline.class_name == "DiTPipeline" and len(model.class_names) not in (0, 1000):
                notes.append(
                    "DiTPipeline takes 1000 for the null class: with other classes ask it for guidance_scale=1"
                )
        (place / "README.md").write_text(
            readme(model, pipeline, absent(place, pipeline), notes, side), encoding="utf-8"
        )
        return notes

    def side(self, model: Model, pipeline: Pipeline | None) -> tuple[TextSide | None, list[str]]:
        """The run's own text encoders, where they are to be written and can be; else None, and why they cannot."""
        own = self.with_text and self.text_encoders is None
        return own_side(model.text_encoder, pipeline) if own else (None, [])

    def check(self, model: Model, place: Path, second: SecondReader | None) -> list[str]:
        found, config = described(model.network)
        pipeline = pipeline_for(found.class_name, config)
        name = next(path.name for path in (place / "unet", place / "transformer") if path.is_dir())
        wanted = asked(model.network, model.probe)
        said = [
            agreement(
                wanted, asked(read_component(place / name), model.probe), "what was written, read again,"
            )
        ]
        latents = model.probe.x[:1, :, :8, :8]
        pictures = decoded(model, latents)
        has_autoencoder = (place / "vae").is_dir()
        if has_autoencoder:
            autoencoder = cast(Autoencoder, read_component(place / "vae"))
            inner = unscaled(latents, read_json(place / "vae" / "config.json"))
            with torch.no_grad():
                said.append(agreement(pictures, autoencoder.decode(inner), "the autoencoder, read again,"))
        side, _ = self.side(model, pipeline)
        if second is None:
            if side is not None and pipeline is not None:
                said.append(check_written(side, pipeline, place))
            return [
                *said,
                "diffusers is not installed here, so it was not asked (pip install 'ldm[interop]')",
            ]
        text_said: list[str] = []
        if pipeline is None:
            theirs, their_vae = second.component(place / name, found.class_name), None
        else:
            loaded = second.pipeline(place, pipeline.class_name, absent(place, pipeline))
            theirs, their_vae = getattr(loaded, name), loaded.vae
            if side is not None and model.text_encoder is not None:
                text_said.append(check_side(model.text_encoder, side, pipeline, loaded))
        with torch.no_grad():
            answer = found.call(theirs, model.probe.x, model.probe.t, model.probe.cond)
            said.append(agreement(wanted, answer, f"diffusers' {found.class_name}"))
            if has_autoencoder and their_vae is not None:
                inner = unscaled(latents, their_vae.config)
                said.append(agreement(pictures, their_vae.decode(inner).sample, "diffusers' AutoencoderKL"))
        return [*said, *text_said]


def write_autoencoder(place: Path, model: Model, pipeline: Pipeline | None) -> list[str]:
    """``vae/``, where pipelines can use it. Normalisation that they have no words for goes into its convolutions."""
    if model.autoencoder is None:
        return ["there is no autoencoder: this run works on pixels"]
    try:
        found, config = described(model.autoencoder)
    except ValueError as error:
        return [f"the autoencoder is left out: {error}"]
    if not isinstance(model.autoencoder, AutoencoderKL):
        return [f"the autoencoder is left out: these pipelines take no {found.class_name}"]
    network, (mean, std) = model.autoencoder, (model.mean, model.std)
    spoken = len(set(mean)) == len(set(std)) == 1 and (mean[0] == 0 or bool(pipeline and pipeline.shifts))
    if not spoken:
        factor = [1 / s for s in std]
        network = refolded(network, factor=factor, offset=[-m * f for m, f in zip(mean, factor, strict=True)])
        found, config = described(network)
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    scale = {"scaling_factor": 1 / std[0], "shift_factor": mean[0]}
    write_component(place / "vae", found, network, {**config, **scale})
    return []


def unscaled(latents: Tensor, config: Any) -> Tensor:
    """Normalised latents (B, C, H, W) -> what the autoencoder of a folder decodes, as the pipelines do it."""
    return latents / config["scaling_factor"] + (config["shift_factor"] or 0.0)


def decoded(model: Model, latents: Tensor) -> Tensor:
    """Normalised latents (B, C, H, W) -> pictures, by the run's own codec; the latents themselves where it has none."""
    if model.autoencoder is None:
        return latents
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))
    with torch.no_grad():
        return model.autoencoder.decode(latents * std + mean)


def model_index(
    place: Path,
    pipeline: Pipeline,
    network_class: str,
    scheduler: str,
    text: dict[str, Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    nothing = [None, None]
    index = {
        "_class_name": pipeline.class_name,
        "_diffusers_version": VERSION,
        **pipeline.settings,
        pipeline.network: ["diffusers", network_class],
        "scheduler": ["diffusers", scheduler],
        "vae": ["diffusers", "AutoencoderKL"] if (place / "vae").is_dir() else nothing,
        **{name: text.get(name, nothing) for name in pipeline.text},
        **dict.fromkeys(pipeline.idle, nothing),
    }
    if pipeline.class_name == "DiTPipeline" and classes:
        index["id2label"] = {str(number): name for number, name in enumerate(classes)}
    return index


def absent(place: Path, pipeline: Pipeline | None) -> list[str]:
    """The components that ``from_pretrained`` must be told to do without."""
    names = ["vae", *pipeline.text] if pipeline else []
    return [name for name in names if not (place / name).is_dir()]


def readme(
    model: Model,
    pipeline: Pipeline | None,
    without: Sequence[str],
    notes: Sequence[str],
    side: TextSide | None,
) -> str:
    """How to load the folder."""
    lines = [f"# {model.origin}", "", "Written by `ldm export`.", ""]
    if pipeline is not None:
        nones = "".join(f", {name}=None" for name in without)
        told = ", ".join(f"{name}=..." for name in pipeline.told)
        if side is not None:
            options = {**call_options(side, pipeline), **pipeline.also_told}
            told = "".join(['"a prompt"', *(f", {name}={value!r}" for name, value in options.items())])
        lines += [
            "```python",
            f"from diffusers import {pipeline.class_name}",
            "",
            f'pipeline = {pipeline.class_name}.from_pretrained("<this folder>"{nones})',
            f"images = pipeline({told}).images",
            "```",
            "",
        ]
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])
