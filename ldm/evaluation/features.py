"""Feature networks: pictures -> vectors whose laws are compared. Each is an object with a YAML in configs/features.

The objects here say which network is meant and what files it needs; ``open`` reads them. Pretrained ones are in
``inception.py`` and ``pretrained.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.interfaces import LatentCodec
from ldm.needs import Need

Codecs = Callable[[str | None], LatentCodec]
"""The file of an autoencoder, or None for the run's own -> that codec, on its device."""


@dataclass(frozen=True)
class Features:
    """An opened feature network, on its device.

    Attributes:
        content_hash: Of its weights.
        resizing: How pictures come to its size.
        run: images (B, 3, H, W) uint8 on the CPU -> (B, ...) there.
        texts: B captions -> (B, D) in the same space, where the network reads texts as well.
    """

    content_hash: str
    resizing: str
    run: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor] | None = None

    @property
    def key(self) -> str:
        """Of all that its answer depends on besides the picture."""
        return hashlib.sha256(f"{self.content_hash} {self.resizing}".encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.run(images)


class FeatureNetwork(Protocol):
    """Which network, and where it comes from. Building one reads nothing; equal ones are opened once."""

    @property
    def label(self) -> str:
        """What scores made with it are called by: small letters and digits."""
        ...

    @property
    def title(self) -> str:
        """For people."""
        ...

    @property
    def resizing(self) -> str:
        """How pictures come to its size, in words."""
        ...

    def needs(self) -> Sequence[Need]:
        """The files and packages it is opened from."""
        ...

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        """
        Raises:
            MissingNeeds: A file or a package is not there.
            ValueError: A file holds something else.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Raw:
    """The pictures themselves, as bytes: for graders, and for showing them."""

    label: str = "raw"
    title: str = "the pictures"
    resizing: str = "none"

    def needs(self) -> list[Need]:
        return []

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        return Features("raw", self.resizing, lambda images: images)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The plain pixels of a small version of the picture, in [0, 1]: needs no weights and sees no meaning.

    Args:
        size: Its side; D is 3 * size^2.
    """

    size: int = 32
    label: str = "pixels"

    @property
    def title(self) -> str:
        return f"plain pixels, {self.size}x{self.size}"

    @property
    def resizing(self) -> str:
        return f"area {self.size}"

    def needs(self) -> list[Need]:
        return []

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        def run(images: Tensor) -> Tensor:
            x = images.to(device).float() / 255
            return F.interpolate(x, (self.size, self.size), mode="area").flatten(1).cpu()

        return Features(f"pixels-{self.size}", self.resizing, run)


@dataclass(frozen=True, kw_only=True)
class OwnEncoder:
    """The encoder of an autoencoder that was trained on the data itself: no downloaded weights.

    The channels that its last spatial convolution reads, mean and standard deviation over places, in float32: D is
    twice their number. Distances in such features compare models of one data set with each other. They are no FID, and
    mean nothing beside another network's.

    Args:
        path: The autoencoder's file; None for the autoencoder of the run that is scored.
    """

    path: str | None = None
    label: str = "own"

    @property
    def title(self) -> str:
        return "the encoder of an autoencoder trained on these data"

    @property
    def resizing(self) -> str:
        return "none"

    def needs(self) -> list[Need]:
        if self.path is None:
            return []
        return [file_need(f"the autoencoder {self.path}", Path(self.path))]

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        codec = codecs(self.path)

        def run(images: Tensor) -> Tensor:
            read = last_read(codec, images.to(device).float() / 127.5 - 1)  # (B, c, H, W)
            std, mean = torch.std_mean(read.float(), dim=(2, 3), correction=0)
            return torch.cat([mean, std], dim=1).cpu()

        return Features(codec.content_hash, self.resizing, run)


def last_read(codec: LatentCodec, images: Tensor) -> Tensor:
    """What the last convolution wider than a pixel reads when these pictures are encoded; without any, their moments.

    The 1x1 convolutions behind it only mix what is already as narrow as the latent.
    """
    convolutions = [
        part
        for part in (codec.modules() if isinstance(codec, nn.Module) else ())
        if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1)
    ]
    read: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        read[:] = arguments[:1]

    handles = [part.register_forward_pre_hook(note) for part in convolutions]
    try:
        moments = codec.moments(images)
    finally:
        for handle in handles:
            handle.remove()
    return read[0] if read else moments


@lru_cache(maxsize=32)
def _hash_of(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def content_hash(path: Path) -> str:
    """The SHA-256 of a file; of one that has not changed it is worked out once."""
    found = path.stat()
    return _hash_of(str(path), found.st_size, found.st_mtime_ns)


def file_need(
    what: str, path: Path, *, bring: str = "copy it there, or give its place with {key}path=..."
) -> Need:
    """The need for one file that the user named."""
    return Need(what=what, found=str(path) if path.is_file() else None, looked_in=(str(path),), bring=bring)


def within(part: str, needs: Sequence[Need]) -> list[Need]:
    """The needs of an object's part, told by the object."""
    return [replace(need, bring=need.bring.replace("{key}", f"{{key}}{part}.")) for need in needs]
