"""Thin files of power-function averages that a training leaves on its way, and what can be made of them afterwards.

::

    runs/<name>/<run id>/averages/
        000050000.safetensors                      the averages after 50,000 images, one for each width
        sigma_rel_0.080_000264000.safetensors      one that ``ldm ema`` made of them

A snapshot's tensors are named ``<number of the width>.<part>.<name>``; its header has the step and the widths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.training.averages import State
from ldm.training.hashing import file_hash
from ldm.training.post_hoc import Profile, coefficients, gamma_of

FOLDER = "averages"  # inside a run folder
FORMAT = "ldm-averages-1"
MADE = "ldm-average-1"


@dataclass(frozen=True)
class Snapshot:
    """One file, as its header tells."""

    path: Path
    step: int
    images_seen: int
    sigma_rels: tuple[float, ...]

    def profiles(self) -> list[Profile]:
        return [Profile(step=self.step, gamma=gamma_of(width)) for width in self.sigma_rels]


def write_snapshot(
    folder: Path,
    states: Sequence[State],
    *,
    step: int,
    images_seen: int,
    sigma_rels: Sequence[float],
    half: bool,
) -> Path:
    """Write the averages of one moment, beside the file's place and then into it.

    Args:
        half: In float16, as the paper does: half the room, and weights rounded to 11 bits.
    """

    def thin(x: Tensor) -> Tensor:
        return x.half() if half and x.is_floating_point() else x

    tensors = {
        f"{i}.{part}.{name}": thin(x).cpu().contiguous().clone()
        for i, state in enumerate(states)
        for part, entries in state.items()
        for name, x in entries.items()
    }
    header = {
        "format": FORMAT,
        "step": str(step),
        "images_seen": str(images_seen),
        "sigma_rels": json.dumps(list(sigma_rels)),
    }
    return _write(folder / f"{images_seen:09d}.safetensors", tensors, header)


def read_snapshots(folder: Path) -> list[Snapshot]:
    """All snapshots in a folder, in the order in which they were taken."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        header = _header(path)
        if header.get("format") == FORMAT:
            widths = tuple(json.loads(header["sigma_rels"]))
            found.append(Snapshot(path, int(header["step"]), int(header["images_seen"]), widths))
    return sorted(found, key=lambda snapshot: snapshot.step)


@dataclass(frozen=True)
class Made:
    """An average made after training.

    Args:
        state: Its tensors in float32.
        images_seen: What it is the average at.
        misfit: Distance of its profile from the one wanted, relative to the latter's length.
        amplification: Sum of the coefficients' magnitudes: by how much the snapshots' rounding is enlarged at most.
    """

    state: State
    images_seen: int
    misfit: float
    amplification: float


def make_average(snapshots: Sequence[Snapshot], *, sigma_rel: float, images_seen: int | None = None) -> Made:
    """The power-function average of another width, at the last snapshot or an earlier one.

    Args:
        snapshots: In order; those after ``images_seen`` are not used.
        sigma_rel: Its width relative to the length of training.
        images_seen: When; the last snapshot when None.

    Raises:
        ValueError: There is no snapshot, or none at ``images_seen``, or no such width.
    """
    if not snapshots:
        raise ValueError("there are no snapshots: train with callbacks/ema=power")
    known = [snapshot.images_seen for snapshot in snapshots]
    images_seen = known[-1] if images_seen is None else images_seen
    if images_seen not in known:
        near = sorted(known, key=lambda seen: abs(seen - images_seen))[:3]
        raise ValueError(f"no snapshot was taken at {images_seen} images; the nearest are at {sorted(near)}")
    used = [snapshot for snapshot in snapshots if snapshot.images_seen <= images_seen]
    wanted = Profile(step=used[-1].step, gamma=gamma_of(sigma_rel))
    weights, misfit = coefficients([p for snapshot in used for p in snapshot.profiles()], wanted)
    sums: dict[str, Tensor] = {}
    left = list(weights)
    for snapshot in used:
        own, left = left[: len(snapshot.sigma_rels)], left[len(snapshot.sigma_rels) :]
        with safe_open(snapshot.path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                number, _, rest = name.partition(".")
                x = file.get_tensor(name)
                if not x.is_floating_point():  # counters and tables are no averages: the latest stands
                    sums[rest] = x
                elif rest in sums:
                    sums[rest].add_(x.double(), alpha=float(own[int(number)]))
                else:
                    sums[rest] = x.double() * float(own[int(number)])
    state: State = {}
    for name, x in sums.items():
        part, _, rest = name.partition(".")
        state.setdefault(part, {})[rest] = x.float() if x.dtype == torch.float64 else x
    return Made(state, images_seen, misfit, float(sum(abs(weight) for weight in weights)))


def write_average(path: Path, made: Made, *, sigma_rel: float) -> Path:
    tensors = {f"{part}.{name}": x for part, entries in made.state.items() for name, x in entries.items()}
    header = {"format": MADE, "sigma_rel": str(sigma_rel), "images_seen": str(made.images_seen)}
    return _write(path, tensors, header)


def read_average(path: Path) -> tuple[State, int]:
    """What ``write_average`` wrote: the parts' averages and the images they had seen.

    Raises:
        ValueError: It is no such file.
    """
    header = _header(path)
    if header.get("format") != MADE:
        raise ValueError(f"{path} holds no average that ldm ema made")
    state: State = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part, _, rest = name.partition(".")
            state.setdefault(part, {})[rest] = file.get_tensor(name)
    return state, int(header["images_seen"])


def average_path(run: Path, sigma_rel: float, images_seen: int) -> Path:
    return run / FOLDER / f"sigma_rel_{sigma_rel:.3f}_{images_seen:09d}.safetensors"


def find_average(run: Path, name: str) -> Path:
    """The file of an average that ``ldm ema`` made, by its name in the run or its path.

    Args:
        name: ``sigma_rel_0.080_000264000``, a path, or either with ``#`` and the beginning of the file's sha256, which
            recipes of pictures have: it must then be this very file.

    Raises:
        ValueError: There is no such average, or it is another one now.
    """
    stem, _, digest = name.partition("#")
    for path in (run / FOLDER / f"{stem}.safetensors", Path(stem)):
        if path.suffix == ".safetensors" and path.is_file():
            if digest and not file_hash(path).startswith(digest):
                raise ValueError(f"{path} is not the average it was ({digest}): make it again by ldm ema")
            return path
    made = sorted(path.stem for path in (run / FOLDER).glob("sigma_rel_*.safetensors"))
    here = (
        f"one of those ldm ema made: {', '.join(made)}"
        if made
        else "make one by ldm ema run=... sigma_rel=..."
    )
    raise ValueError(f"weights={name!r} is not known: say 'ema', 'online', or {here}")


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".tmp-{path.name}")
    save_file(dict(tensors), draft, metadata=header)
    draft.replace(path)
    return path
