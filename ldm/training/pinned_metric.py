"""The pinned loss as a metric of ``ldm evaluate``: score, curve over noise levels, and each picture's losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.pipeline import in_order
from ldm.evaluation.bootstrap import Interval, mean_interval, mean_intervals
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.scores import PerSample
from ldm.evaluation.subject import Look, Measured, Subject
from ldm.needs import Need
from ldm.training.figures import new_figure, save
from ldm.training.pinned_loss import LEVELS, METRIC, PinnedLosses, fingerprint, pinned_losses, reached_levels


@dataclass(frozen=True, kw_only=True)
class PinnedLoss:
    """Squared error of v at fixed noise levels, on the same pictures with the same noise for every run.

    Needs no weights but the run's own. Leaves pinned_loss.png, and the losses of single pictures beside the score.

    Args:
        num_pictures: The first so many of the validation set.
        levels: Middles of bins of log-SNR, two wide.
        seed: Of the noise; not the run's.

    Raises:
        ValueError: Fewer than two pictures, or no levels.
    """

    num_pictures: int = 256
    levels: Sequence[int] = LEVELS
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.num_pictures < 2 or not self.levels:
            raise ValueError(
                f"num_pictures={self.num_pictures} must be 2 or more, and levels={self.levels} must name some"
            )

    def needs(self) -> list[Need]:
        return []

    def unfit(self, subject: Subject) -> str:
        if not hasattr(subject.module, "diffusion"):
            return "it is no denoiser: an autoencoder has no loss by noise level"
        try:
            pictures = subject.data.measured("val")
        except (OSError, ValueError, AttributeError) as error:
            return f"its validation pictures are not to be had ({error})"
        return "" if len(pictures) > 1 else "it has one validation picture: no interval can be told"

    def protocols(self, subject: Subject) -> list[Protocol]:
        reference_hash, num = fingerprint(self._batches(subject))
        return [self._protocol(subject, reference_hash, num)]

    def looks(self, subject: Subject) -> list[Look]:
        return []

    def measure(self, subject: Subject) -> list[Measured]:
        together = subject.together
        found = pinned_losses(
            subject.module,
            self._batches(subject),
            device=subject.device,
            levels=self.levels,
            seed=self.seed,
            rank=together.rank,
            num_ranks=together.size,
        )
        if together.size > 1:
            found = _summed(found, subject)
        values = found.losses.values[
            :, [found.losses.columns.index(f"{level:+d}") for level in found.reached]
        ]
        if together.is_main:
            by_level = dict(zip(found.reached, mean_intervals(values), strict=True))
            draw(by_level, subject.folder / "pinned_loss.png", title=subject.title)
        whole = mean_interval(values.mean(axis=1))
        protocol = self._protocol(subject, found.reference_hash, len(values))
        return [
            Measured(
                protocol=protocol,
                value=whole.value,
                num=len(values),
                low=whole.low,
                high=whole.high,
                interval="BCa bootstrap over pictures",
                lower_is_better=True,
                per_sample=found.losses,
                extra={f"{level:+d}": float(values[:, k].mean()) for k, level in enumerate(found.reached)},
            )
        ]

    def _batches(self, subject: Subject) -> Any:
        return in_order(subject.data.measured("val"), batch_size=subject.batch_size, stop=self.num_pictures)

    def _protocol(self, subject: Subject, reference_hash: str, num: int) -> Protocol:
        return subject.passport(
            METRIC,
            samples=False,
            reference=f"the first {num:,} pictures of the validation set",
            reference_hash=reference_hash,
            num_images=num,
            seeds=(self.seed,),
            codec_hash=subject.module.codec.content_hash,
            details={
                "error": "v",
                "levels": list(self.levels),
                "reached": reached_levels(subject.module, self.levels),
            },
        )


def _summed(found: PinnedLosses, subject: Subject) -> PinnedLosses:
    """Rows of all processes: where another one measured them they are 0 here."""
    import torch

    values = subject.together.sum(torch.from_numpy(found.losses.values)).numpy()
    return PinnedLosses(PerSample(found.losses.keys, values, found.losses.columns), found.reference_hash)


def draw(by_level: dict[int, Interval], path: Path, *, title: str) -> Path:
    """The loss over log-SNR with the interval of each level."""
    figure, plot = new_figure()
    levels = list(by_level)
    values = np.array([one.value for one in by_level.values()])
    ends = np.array([[one.low, one.high] for one in by_level.values()]).T
    plot.errorbar(levels, values, yerr=np.abs(ends - values), fmt="o-", ms=4, capsize=3)
    plot.set_xlabel("log-SNR: noise on the left, data on the right")
    plot.set_ylabel("squared error of v")
    plot.set_title(title, fontsize=9)
    return save(figure, path)
