"""A trained KL autoencoder as a codec: pictures to normalised latents and back.

One safetensors file holds everything: weights, architecture, and the latent contract in the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.codecs.contract import LatentContract, hash_content
from ldm.nn.autoencoder import AutoencoderKL

FORMAT = "ldm-autoencoder-1"


class KLCodec(nn.Module):
    """Frozen autoencoder behind the LatentCodec contract.

    Args:
        path: The file that training an autoencoder leaves in its run folder, ``autoencoder.safetensors``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an autoencoder of this project, or is damaged.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self.path = path
        architecture, weights, self.contract = read_autoencoder(Path(path))
        self.autoencoder = AutoencoderKL(**architecture)
        self.autoencoder.load_state_dict(weights)
        self.channels = self.autoencoder.latent_channels
        self.downsample = self.contract.downsample
        self.content_hash = self.contract.content_hash
        self.register_buffer("mean", torch.tensor(self.contract.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(self.contract.std)[:, None, None])
        self.requires_grad_(False).eval()

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


def write_autoencoder(
    path: Path, *, architecture: Mapping[str, Any], weights: Mapping[str, Tensor], contract: LatentContract
) -> LatentContract:
    """Write the file (beside its place, then renamed) and return the contract with its content hash.

    Args:
        path: Where to; parent folders are made.
        architecture: Arguments of ``AutoencoderKL``, plain data.
        weights: Its state.
        contract: The latent statistics; its ``content_hash`` is computed here.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    architecture = json.loads(json.dumps(dict(architecture)))  # plain lists and numbers, as they will be read
    contract = replace(contract, content_hash=hash_content(architecture, tensors, contract))
    header = {"format": FORMAT, "architecture": json.dumps(architecture), "contract": contract.to_json()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".tmp-{path.name}")
    save_file(tensors, draft, metadata=header)
    draft.replace(path)
    return contract


def read_autoencoder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], LatentContract]:
    """(architecture, weights, contract) of a file; see ``KLCodec`` for the errors."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no autoencoder at {path}: train one first (python train.py experiment=shapes_vae writes "
            f"autoencoder.safetensors into its run folder) or give its place with codec.path=..."
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); was it copied whole?"
        ) from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not an autoencoder of this project: its header says {header.get('format')!r}"
        )
    architecture = json.loads(header["architecture"])
    contract = LatentContract.from_json(header["contract"])
    if hash_content(architecture, weights, contract) != contract.content_hash:
        raise ValueError(f"{path} does not match its own content hash: the file was changed after training")
    return architecture, weights, contract
