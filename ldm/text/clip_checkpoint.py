"""Checkpoint files that hold a CLIP, in the names of open_clip."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

# What of a CLIP's weights belongs to its text side.
TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")


def read_text_side(file: Path) -> dict[str, Tensor]:
    """Of a checkpoint the text side only: pictures take most of the file.

    Raises:
        ValueError: There is no text side of a CLIP in it.
    """
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            names = {name: _own_name(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            state = {own: opened.get_tensor(name) for name, own in names.items() if own}
    else:
        if _is_torchscript(file):  # OpenAI's own files are
            saved = torch.jit.load(file, map_location="cpu").state_dict()
        else:
            saved = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        saved = saved.get("state_dict", saved)
        state = {own: x for name, x in saved.items() if (own := _own_name(name))}
    if not state:
        raise ValueError(f"{file} holds no text side of a CLIP in the names of open_clip")
    return state


def _own_name(name: str) -> str | None:
    """A checkpoint's name -> the text transformer's; None for what is not text."""
    name = name.removeprefix("module.").removeprefix("text.")
    return name if name.startswith(TEXT) else None


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
