"""Shards and pictures made for tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of these members, in this order."""
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def numbered(num: int) -> list[tuple[str, bytes]]:
    """Members whose contents name their sample, so that a wrong pairing shows."""
    return [
        (f"s{i}.{part}", f"{part} of s{i}".encode() * (1 + 40 * (part == "png")))
        for i in range(num)
        for part in ("json", "png", "txt")
    ]


def encoded(picture: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """A picture's file."""
    out = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def smooth(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 with the spectrum of a photograph, about 1/f: what resampling is judged on."""
    random = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falling = 1 / np.maximum(np.hypot(fx, fy), 1 / max(width, height))
    planes = [
        np.fft.irfft2(falling * np.fft.rfft2(random.standard_normal((height, width))), s=(height, width))
        for _ in range(3)
    ]
    grey, *colours = [plane / plane.std() for plane in planes]
    return np.clip(np.stack([128 + 50 * grey + 15 * c for c in (*colours, grey)], -1), 0, 255).astype(
        np.uint8
    )
