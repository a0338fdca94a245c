"""A trained autoencoder as a codec, whatever its network and its bottleneck: pictures to normalised latents and back.

One safetensors file holds everything: weights, architecture, and the latent contract in the header. Published
autoencoders come in by the same file: ``ldm import`` writes one from a folder of theirs, once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.codecs.contract import LatentContract, hash_content
from ldm.needs import Need, refuse_unmet
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.autoencoder_dc import AutoencoderDC
from ldm.nn.bottlenecks import bottleneck_from

FORMAT = "ldm-autoencoder-1"
NETWORKS: dict[str, type[Autoencoder]] = {c.__name__: c for c in (AutoencoderKL, AutoencoderDC)}


class KLCodec(nn.Module):
    """Frozen autoencoder behind the LatentCodec contract.

    Args:
        path: The file that training an autoencoder leaves in its run folder, ``autoencoder.safetensors``, or that
            ``ldm import`` wrote.

    Raises:
        MissingNeeds: There is no such file.
        ValueError: The file is not an autoencoder of this project, or is damaged.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self.path = path
        self.autoencoder, self.contract = read_autoencoder(Path(path))
        self.channels = self.autoencoder.latent_channels
        self.downsample = self.contract.downsample
        self.content_hash = self.contract.latent_hash  # what denoisers and caches are held against
        self.decoder_hash = self.contract.content_hash  # what a picture was decoded by
        self.register_buffer("mean", torch.tensor(self.contract.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(self.contract.std)[:, None, None])
        self.requires_grad_(False).eval()

    @staticmethod
    def needs_for(*, path: str) -> list[Need]:
        """The file; only whether it is there is looked at."""
        return [
            Need(
                what=f"the autoencoder {path}",
                found=path if Path(path).is_file() else None,
                bring=f"train one first (python train.py experiment=shapes_vae writes autoencoder.safetensors into its "
                f"run folder), make one of a published autoencoder (ldm import from=<folder> out={Path(path).parent}) "
                f"or give its place with {{key}}path=...",
            )
        ]

    def train(self, mode: bool = True) -> KLCodec:
        """Stays in evaluation mode: a frozen codec has no other."""
        return super().train(False)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) in [-1, 1] -> (B, 2C, H, W): mean and log-variance, not normalised."""
        return self.autoencoder.encode(images)

    @torch.no_grad()
    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        """(B, 2C, H, W) -> (B, C, H, W) float32, normalised; the posterior's mean where noise is None."""
        mean, log_var = moments.float().chunk(2, dim=1)
        z = mean if noise is None else mean + torch.exp(0.5 * log_var) * noise
        return (z - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, 3, fH, fW)."""
        return self.autoencoder.decode(latents * self.std + self.mean)


def write_autoencoder(path: Path, *, autoencoder: Autoencoder, contract: LatentContract) -> LatentContract:
    """Write the file (beside its place, then renamed) and return the contract with its content hash.

    Args:
        path: Where to; parent folders are made.
        autoencoder: With the weights to write.
        contract: The latent statistics; its ``content_hash`` is computed here.
    """
    # Contiguous as a reshape would be: convolutions may keep theirs in channels_last, which files do not know.
    tensors = {name: x.detach().cpu().contiguous() for name, x in autoencoder.state_dict().items()}
    described = {"network": type(autoencoder).__name__, **autoencoder.architecture}
    architecture = json.loads(json.dumps(described))  # plain lists and numbers, as they will be read
    contract = replace(contract, content_hash=hash_content(architecture, tensors, contract))
    header = {"format": FORMAT, "architecture": json.dumps(architecture), "contract": contract.to_json()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".tmp-{path.name}")
    save_file(tensors, draft, metadata=header)
    draft.replace(path)
    return contract


def read_autoencoder(path: Path) -> tuple[Autoencoder, LatentContract]:
    """The network of a file, with its weights, and the contract; see ``KLCodec`` for the errors."""
    kind, architecture, contract = describe_autoencoder(path)
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        described = json.loads(file.metadata()["architecture"])
    if hash_content(described, weights, contract) != contract.content_hash:
        raise ValueError(
            f"{path} does not match its own content hash: the file was changed after it was written"
        )
    autoencoder = kind(**architecture)
    autoencoder.load_state_dict(weights)
    return autoencoder, contract


def describe_autoencoder(path: Path) -> tuple[type[Autoencoder], dict[str, Any], LatentContract]:
    """A file's class of network, what it is built with, and the contract; no weight is read. Errors of ``KLCodec``."""
    refuse_unmet([need.at("codec") for need in KLCodec.needs_for(path=str(path))])
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); was it copied whole?"
        ) from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not an autoencoder of this project: its header says {header.get('format')!r}; a published "
            f"one is made into one by ldm import from={path.parent}"
        )
    architecture = json.loads(header["architecture"])
    name = architecture.pop("network", "AutoencoderKL")  # what all files were before there were others
    if name not in NETWORKS:
        raise ValueError(
            f"{path} holds an autoencoder of class {name!r}; known here are {', '.join(NETWORKS)}"
        )
    if "bottleneck" in architecture:
        architecture["bottleneck"] = bottleneck_from(architecture["bottleneck"])
    return NETWORKS[name], architecture, LatentContract.from_json(header["contract"])
