"""What an export can be: objects that write a trained model for others, and read back what they wrote."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ldm.interfaces import NoiseSchedule, Parameterization, TextEncoder
from ldm.interop.native import FILE, read_parts, write_parts
from ldm.interop.probe import Probe
from ldm.nn.autoencoder_base import Autoencoder

AUTOENCODER = "autoencoder.safetensors"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained denoiser and what belongs to it.

    Attributes:
        parts: What was trained, by name: "network", and "text_encoder" where that was too.
        autoencoder: The codec's network; None where there is none, as for diffusion on pixels.
        mean, std: Of each latent channel, its normalisation.
        codec_file: The codec's own file.
        codec_hash: The codec's content hash.
        schedule: For the latents' shape that was trained at.
        parameterization, t_range: Of the diffusion.
        latent_size: (H, W) that was trained at.
        class_names: Of the labels, in their order; empty where there are none.
        probe: A question to the network that its formats ask again.
        origin: Where the weights are from, in words.
        text_encoder: The run's; formats that have a place for one write it where they can.
    """

    parts: Mapping[str, nn.Module]
    autoencoder: Autoencoder | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    codec_file: Path | None
    codec_hash: str
    schedule: NoiseSchedule
    parameterization: Parameterization
    t_range: tuple[float, float]
    latent_size: tuple[int, int]
    class_names: tuple[str, ...]
    probe: Probe
    origin: str
    text_encoder: TextEncoder | None = None

    @property
    def network(self) -> nn.Module:
        return self.parts["network"]


class SecondReader(Protocol):
    """Another project's own way to read what was written."""

    def pipeline(self, folder: Path, class_name: str, absent: Sequence[str]) -> Any:
        """The pipeline in a folder; ``absent`` components are None."""
        ...

    def component(self, folder: Path, class_name: str) -> Any:
        """One model in a folder."""
        ...


class Format(Protocol):
    def write(self, model: Model, place: Path) -> list[str]:
        """Write to a place that does not exist yet.

        Returns:
            What a person should know about it, in lines.

        Raises:
            ValueError: The format cannot hold this model; what does not fit is named.
        """
        ...

    def check(self, model: Model, place: Path, second: SecondReader | None) -> list[str]:
        """Read back what stands at the place and compare what it says.

        Returns:
            What was found to agree, in lines.

        Raises:
            ValueError: Something does not agree.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Safetensors:
    """A folder of the trained parts by our own names and the autoencoder's file: for ``init_from``, and for keeping."""

    def write(self, model: Model, place: Path) -> list[str]:
        contract = None if model.text_encoder is None else model.text_encoder.contract
        write_parts(place / FILE, model.parts, codec_hash=model.codec_hash, text_contract=contract)
        notes = [
            f"{FILE} holds {' and '.join(model.parts)}: init_from=<this folder> begins a training with them"
        ]
        if model.codec_file is not None:
            shutil.copyfile(model.codec_file, place / AUTOENCODER)
            notes.append(f"{AUTOENCODER} is the codec they were trained with: codec=kl codec.path=<it>")
        return notes

    def check(self, model: Model, place: Path, second: SecondReader | None) -> list[str]:
        written = read_parts(place / FILE).parts
        for part, module in model.parts.items():
            state = module.state_dict()
            if state.keys() != written[part].keys():
                raise ValueError(f"{place / FILE} does not hold the tensors of {part}")
            if wrong := [name for name, x in state.items() if not torch.equal(x.cpu(), written[part][name])]:
                raise ValueError(f"{place / FILE} holds other values than the run in {part}.{wrong[0]}")
        return ["what was written, read again, equals the run's weights bit for bit"]
