"""The pinned validation loss: runs that differ in anything but their data, compared noise level by noise level.

A training's own ``val/loss`` depends on its weighting, its law of t, its parameterization and its seed. Here all that
is taken out: the same pictures, at the same log-SNR, with the same noise, and the error measured in one space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm import randomness
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.schedules import log_snr, t_at_log_snr
from ldm.evaluation.scores import PerSample
from ldm.interfaces import Batch, Prediction
from ldm.training.objectives import conditioning

LEVELS = (-9, -7, -5, -3, -1, 1, 3, 5, 7, 9)  # middles of bins of log-SNR, two wide
METRIC = "pinned_loss"


@dataclass(frozen=True)
class PinnedLosses:
    """What was measured, and over what.

    Attributes:
        losses: One row a picture, one column a level, called "-9" to "+9"; NaN at levels the schedule does not reach.
        reference_hash: Of keys, captions and pixels.
    """

    losses: PerSample
    reference_hash: str

    @property
    def reached(self) -> list[int]:
        """The levels that all pictures have."""
        whole = np.isfinite(self.losses.values).all(axis=0)
        return [int(name) for name, there in zip(self.losses.columns, whole, strict=True) if there]


@torch.no_grad()
def pinned_losses(
    module: Any,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    levels: Sequence[int] = LEVELS,
    seed: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
) -> PinnedLosses:
    """Squared error of v for each picture at each level.

    Args:
        module: A ``DiffusionModule`` with the weights to be measured, on ``device``, in evaluation mode.
        batches: Of pictures; latents are their posterior means.
        levels: Middles of bins of log-SNR, two wide; where in the bin is drawn for each picture.
        seed: Of noise and places in the bins: not the run's.
        rank, num_ranks: This process's share is every num_ranks-th batch; others' rows are left 0, to be added up.
    """
    keys: list[str] = []
    rows: list[Tensor] = []
    seen = hashlib.sha256()
    for i, batch in enumerate(batches):
        _note(batch, seen)
        keys += _apart(batch.keys, keys)
        if i % num_ranks == rank:
            rows.append(_losses(module, batch.to(device), levels, seed))  # (B, K)
        else:
            rows.append(torch.zeros(len(batch), len(levels), dtype=torch.float64))
    if not rows:
        raise ValueError("a pinned loss needs validation pictures, and there are none")
    columns = tuple(f"{level:+d}" for level in levels)
    return PinnedLosses(PerSample(tuple(keys), torch.cat(rows).numpy(), columns), seen.hexdigest())


def fingerprint(batches: Iterable[Batch]) -> tuple[str, int]:
    """The reference's hash and its number of pictures, without measuring anything."""
    seen, num = hashlib.sha256(), 0
    for batch in batches:
        _note(batch, seen)
        num += len(batch)
    return seen.hexdigest(), num


def reached_levels(module: Any, levels: Sequence[int]) -> list[int]:
    """The levels whose whole bin the module's schedule reaches, at the size it was trained for."""
    height, width = module.latent_size
    diffusion = module.diffusion.for_latents((module.codec.channels, height, width))
    return [level for level in levels if _reaches(diffusion, level)]


def _note(batch: Batch, seen: Any) -> None:
    """What a picture is must not depend on how many stand in a batch: one after the other.

    Raises:
        ValueError: There are no pictures in it.
    """
    if batch.images is None:
        raise ValueError("a pinned loss is measured on pictures: this batch carries latents")
    pixels = ((batch.images.cpu() + 1) * 127.5).round().to(torch.uint8).numpy()
    for key, caption, picture in zip(batch.keys, batch.captions, pixels, strict=True):
        seen.update(f"{key}\x1f{caption}\x1f{picture.shape}".encode())
        seen.update(picture.tobytes())


def _reaches(diffusion: Diffusion, level: int) -> bool:
    ends = torch.tensor(diffusion.t_range, dtype=torch.float64)
    cleanest, noisiest = log_snr(diffusion.schedule, ends).tolist()
    return bool(noisiest <= level - 1 and level + 1 <= cleanest)


def _losses(module: Any, batch: Batch, levels: Sequence[int], seed: int) -> Tensor:
    """(B, K) float64 on the CPU."""
    x0 = module.codec.latents(module.codec.moments(batch.images), noise=None).float()  # (B, C, H, W)
    channels, height, width = x0.shape[1:]
    diffusion: Diffusion = module.diffusion.for_latents((channels, height, width))
    cond = conditioning(module.text_encoder, batch, torch.ones(len(batch), dtype=torch.bool))
    columns = []
    for level in levels:
        if not _reaches(diffusion, level):
            columns.append(torch.full((len(batch),), torch.nan, dtype=torch.float64))
            continue
        # What a level's draws are called by is the level: others may be left out or come in.
        visits = [level] * len(batch)
        place = randomness.uniform(seed, "pinned level", batch.keys, visits)
        t = t_at_log_snr(diffusion.schedule, level - 1 + 2 * place).float().to(x0.device)  # (B,)
        eps = randomness.normal(x0.shape[1:], seed, "pinned noise", batch.keys, visits).to(x0)
        found = diffusion.predict(module.network, diffusion.add_noise(x0, eps, t), t, cond)
        columns.append(v_error(found, Prediction(x0, eps), diffusion, t).double().cpu())
    return torch.stack(columns, dim=1)


def v_error(found: Prediction, true: Prediction, diffusion: Diffusion, t: Tensor) -> Tensor:
    """Mean squared error of v = cos(phi) eps - sin(phi) x0, tan(phi) = sigma/alpha (2202.00512, appendix D): (B,).

    It is (1 + SNR) times the error of x0, so it depends on the log-SNR but not on how a schedule scales x_t. Unlike
    the errors of x0 and of eps it vanishes at neither end, so all levels count alike in a mean.
    """
    alpha, sigma = (
        x.reshape(-1, 1, 1, 1) for x in (diffusion.schedule.alpha(t), diffusion.schedule.sigma(t))
    )
    length = torch.hypot(alpha, sigma)
    error = alpha / length * (found.eps - true.eps) - sigma / length * (found.x0 - true.x0)
    return error.square().flatten(1).mean(1)


def _apart(keys: Sequence[str], before: Sequence[str]) -> list[str]:
    """Keys that occur again, as where two sources have shards of one name, are numbered: pairs must be clear."""
    taken, out = set(before), []
    for key in keys:
        name, number = key, 1
        while name in taken:
            number += 1
            name = f"{key}#{number}"
        taken.add(name)
        out.append(name)
    return out
