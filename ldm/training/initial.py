"""Weights to begin a training with: of another run, or published ones that ``ldm import`` has translated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm.interop.native import FILE, Weights, read_parts
from ldm.nn.fitting import misfits
from ldm.text.contract import Contract, refuse_other
from ldm.training.checkpoint import read_run


def begin_with(
    module: nn.Module, where: str | Path, *, runs: str | Path = "runs", other_text: bool = False
) -> str:
    """Load what ``where`` holds into the parts of a LightningModule; a run's averaged weights where it kept them.

    Args:
        module: Has ``parts()``; where it has a ``codec``, the weights must come from the same latents, and where it has
            a ``text_contract``, from the same encoding of captions.
        where: What ``ldm import`` or ``ldm export format=safetensors`` wrote, the folder or the file in it; or a run:
            its folder, ``<name>/<run id>``, ``<name>``, or one of its checkpoints.
        other_text: The text encoder may be another one.

    Returns:
        What was loaded and what begins anew, in words.

    Raises:
        FileNotFoundError: There is nothing there.
        ValueError: The weights are of another network, of the latents of another autoencoder, or from a training with
            another text encoder.
    """
    weights = read_weights(where, runs=runs)
    parts: dict[str, nn.Module] = module.parts()  # type: ignore[operator]
    codec_hash = getattr(getattr(module, "codec", None), "content_hash", "")
    if weights.codec_hash and weights.codec_hash != codec_hash:
        raise ValueError(
            f"init_from: {where} was trained on the latents of autoencoder {weights.codec_hash[:12]}, the codec here "
            f"is {codec_hash[:12] or 'none'}: give the one it was trained with by codec.path=..."
        )
    if not other_text:
        refuse_other_text(weights.text_contract, getattr(module, "text_contract", {}), where)
    taken = {part: state for part, state in weights.parts.items() if part in parts}
    if not taken:
        raise ValueError(
            f"init_from: {where} holds {', '.join(weights.parts)}, and none of {', '.join(parts)}"
        )
    for part, state in taken.items():
        refuse_other_network(part, parts[part], state, where)
    for part, state in taken.items():
        parts[part].load_state_dict(state)
    fresh = [part for part in parts if part not in taken]
    anew = f"; {' and '.join(fresh)} begins anew" if fresh else ""
    return f"begins with {' and '.join(taken)} of {where}{anew}"


def read_weights(where: str | Path, *, runs: str | Path) -> Weights:
    """See ``begin_with``."""
    path = Path(where)
    if path.suffix == ".safetensors" or (path / FILE).is_file():
        return read_parts(path / FILE if path.is_dir() else path)
    if not path.exists() and path.suffix == ".ckpt":
        raise FileNotFoundError(f"init_from: there is no {path}")
    checkpoint = read_run(where, runs=runs).checkpoint
    parts: dict[str, dict[str, Tensor]] = checkpoint.get("ema") or parts_of(checkpoint["state_dict"])
    return Weights(
        parts=parts,
        codec_hash=checkpoint.get("codec_hash", ""),
        text_contract=checkpoint.get("text_contract", {}),
    )


def parts_of(state: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def refuse_other_text(then: Contract, now: Contract, where: str | Path) -> None:
    """
    Raises:
        ValueError: Both are known, and differ.
    """
    if then and now:
        try:
            refuse_other(then, now, what=f"init_from: {where}")
        except ValueError as error:
            raise ValueError(f"{error}, or init_other_text=true to train on with this one") from None


def refuse_other_network(
    part: str, network: nn.Module, state: Mapping[str, Tensor], where: str | Path
) -> None:
    """
    Raises:
        ValueError: The tensors are not this network's; up to three are named.
    """
    if wrong := misfits(network, state):
        raise ValueError(
            f"init_from: {where} does not fit {part}, a {type(network).__name__}: {wrong}; give the {part} that it was "
            f"made for"
        )
