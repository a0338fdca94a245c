"""One file in the original layout of a network's family, for ComfyUI's folder ``models/checkpoints``.

ComfyUI tells families apart by names and sizes and then assumes the rest: how latents are scaled, what the network
predicts, at which noise levels. No file can say otherwise, so what differs is folded into the autoencoder where that is
possible, and noted where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.interop.catalogue import single_file_maps
from ldm.interop.folder import read_tensors
from ldm.interop.formats import Model, SecondReader
from ldm.interop.latents import refolded
from ldm.interop.schedulers import differences, scheduler_config
from ldm.interop.weights import SingleFileMap, to_ours, to_theirs
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.flux import Flux
from ldm.nn.mmdit import MMDiT
from ldm.nn.unet import UNet

PUBLISHED_LEVELS = [128, 256, 512, 512]  # the only autoencoder it builds
BETAS = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What ComfyUI assumes of a network.

    Attributes:
        name: For messages.
        network: Our class ...
        fits: ... and which of its networks are of the family.
        recognised: Whether ComfyUI knows a network of these sizes.
        scale: Latents are ``(z - shift) * factor``: (factor, shift).
        scheduler: The process, as a scheduler_config.json would say it.
    """

    name: str
    network: type[nn.Module]
    fits: Callable[[Any], bool]
    recognised: Callable[[Any], bool]
    scale: tuple[float, float]
    scheduler: Mapping[str, Any]


FAMILIES = (
    Family(
        name="SDXL",
        network=UNet,
        fits=lambda net: net.size_features > 0,
        recognised=lambda net: net.architecture["channels"] == [320, 640, 1280],
        scale=(0.13025, 0.0),
        scheduler=BETAS,
    ),
    Family(
        name="Stable Diffusion 1 and 2",
        network=UNet,
        fits=lambda net: True,
        recognised=lambda net: (
            net.architecture["channels"] == [320, 640, 1280, 1280]
            and net.architecture["context_width"] in (768, 1024)
        ),
        scale=(0.18215, 0.0),
        scheduler=BETAS,
    ),
    Family(
        name="Stable Diffusion 3",
        network=MMDiT,
        fits=lambda net: True,
        recognised=lambda net: net.in_channels == 16 and net.patch_in.out_features == 64 * len(net.blocks),
        scale=(1.5305, 0.0609),
        scheduler=FLOW,
    ),
    Family(
        name="Flux",
        network=Flux,
        fits=lambda net: True,
        recognised=lambda net: net.in_channels == 16 and net.patch_in.out_features == 3072,
        scale=(0.3611, 0.1159),
        scheduler=FLOW,
    ),
)


@dataclass(frozen=True, kw_only=True)
class ComfyUI:
    """One safetensors file with network and autoencoder; ``out`` ends in .safetensors."""

    def write(self, model: Model, place: Path) -> list[str]:
        if place.suffix != ".safetensors":
            raise ValueError(f"this format is one file: give out=<name>.safetensors, not {place.name}")
        family = family_of(model.network)
        tensors = to_theirs(layout_of(model.network).rules(model.network), model.network)
        notes = process_notes(model, family)
        if not family.recognised(model.network):
            notes.append(
                f"ComfyUI knows {family.name} at its published sizes only: it will not recognise this network"
            )
        autoencoder = rescaled_autoencoder(model, family)
        if autoencoder is None:
            notes.append(
                "the autoencoder is left out: ComfyUI builds the published one only; decode its latents here"
            )
        else:
            tensors |= to_theirs(layout_of(autoencoder).rules(autoencoder), autoencoder)
        if family.name == "SDXL" and "v_prediction" in str(their_scheduler(model, family)):
            tensors["v_pred"] = torch.zeros(0)  # the mark by which it knows
        notes.append("text encoders are not in the file: load them by a node of their own")
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: x.cpu().contiguous() for name, x in tensors.items()}, place, metadata={"format": "pt"}
        )
        return notes

    def check(self, model: Model, place: Path, second: SecondReader | None) -> list[str]:
        written = read_tensors(place)
        networks: list[nn.Module] = [model.network]
        autoencoder = rescaled_autoencoder(model, family_of(model.network))
        networks += [] if autoencoder is None else [autoencoder]
        for network in networks:
            layout = layout_of(network)
            own = {name: x for name, x in written.items() if name.startswith(layout.prefix)}
            for name, tensor in to_ours(layout.rules(network), own, network).items():
                if not torch.equal(tensor, network.state_dict()[name].cpu()):
                    raise ValueError(
                        f"{place} holds other values than the run in {name}; nothing was kept of it"
                    )
        return ["what was written, read again, equals the run's weights bit for bit"]


def family_of(network: nn.Module) -> Family:
    """
    Raises:
        ValueError: ComfyUI has no family for this network, or attends to padding where the network does not.
    """
    if getattr(network, "context_mask", False):
        raise ValueError("ComfyUI attends to padding, this network does not (context_mask=true)")
    for family in FAMILIES:
        if isinstance(network, family.network) and family.fits(network):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(
        f"there is no single-file layout for a {type(network).__name__} that ComfyUI reads, only {known}"
    )


def layout_of(network: nn.Module) -> SingleFileMap:
    return single_file_maps(network)[0]


def their_scheduler(model: Model, family: Family) -> dict[str, Any]:
    return scheduler_config(
        model.schedule, model.parameterization, model.t_range, native_flow=family.scheduler is FLOW
    )


def process_notes(model: Model, family: Family) -> list[str]:
    """Where the run's process is not the one that ComfyUI assumes."""
    ours = their_scheduler(model, family)
    other = differences(ours, {**family.scheduler, "prediction_type": ours.get("prediction_type", "epsilon")})
    notes = [f"ComfyUI assumes {what}: set the run's by a ModelSampling node" for what in other]
    if (
        ours.get("prediction_type", "epsilon") != "epsilon"
        and family.scheduler is BETAS
        and family.name != "SDXL"
    ):
        notes.append(
            f"the network predicts {ours['prediction_type']}: set it by the node ModelSamplingDiscrete"
        )
    if family.scheduler is FLOW:
        notes.append(
            f"trained with shift {ours['shift']:g}: set it by the node ModelSamplingSD3 or ModelSamplingFlux"
        )
    return notes


def rescaled_autoencoder(model: Model, family: Family) -> AutoencoderKL | None:
    """The autoencoder whose latents, scaled as the family's are, are the run's; None where ComfyUI cannot build it."""
    network = model.autoencoder
    if not isinstance(network, AutoencoderKL):
        return None
    ours = network.architecture
    plain = ours["patch_size"] == 1 and ours["attention"] and ours["blocks_per_level"] == 2
    if not plain or ours["channels"] != PUBLISHED_LEVELS or ours["encoder_channels"] != PUBLISHED_LEVELS:
        return None
    wanted, shift = family.scale
    factor = [1 / (s * wanted) for s in model.std]
    offset = [shift - m * f for m, f in zip(model.mean, factor, strict=True)]
    near = torch.allclose(_float(factor), torch.ones(len(factor)), atol=1e-6) and torch.allclose(
        _float(offset), torch.zeros(len(offset)), atol=1e-6
    )
    return network if near else refolded(network, factor=factor, offset=offset)


def _float(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
