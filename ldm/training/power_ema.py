"""Power-function averages of the weights at some widths, with snapshots from which any width can be made afterwards.

Karras et al. 2023 (2312.02696), section 3.1. The right length of an average differs from model to model and with
guidance, and is known only when the training is over; ``ldm ema`` then makes the one wanted from the snapshots.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from safetensors import SafetensorError

from ldm.training.callbacks import crossed, untimed
from ldm.training.ema import WeightAverage
from ldm.training.post_hoc import gamma_of, share
from ldm.training.snapshots import FOLDER, write_snapshot

log = logging.getLogger(__name__)


class PowerEMA(WeightAverage):
    """EDM2's averages: each remembers a fixed share of the training so far, however long that is.

    Args:
        sigma_rels: Their widths relative to the length of training: 0.05 averages over about the last tenth of it. Two
            are enough to make others from.
        shown: Which of them is validated, sampled and evaluated.
        snapshot_every_num_images: How often both are written to <run>/averages; always at the end, too.
        half: Write snapshots in float16: half the room.
        on_cpu: Keep the averages in the host's memory: a GPU holds two copies of the weights less.

    Raises:
        ValueError: A width that no power function has, one given twice, or ``shown`` is none of them.
    """

    def __init__(
        self,
        *,
        sigma_rels: Sequence[float] = (0.05, 0.10),
        shown: float = 0.10,
        snapshot_every_num_images: int,
        half: bool = True,
        on_cpu: bool = False,
    ) -> None:
        widths = [float(width) for width in sigma_rels]
        if not widths or len(set(widths)) < len(widths) or shown not in widths:
            raise ValueError(
                f"PowerEMA: shown={shown} must be one of sigma_rels={widths}, and none may be there twice"
            )
        if snapshot_every_num_images < 1:
            raise ValueError(
                f"PowerEMA: snapshot_every_num_images={snapshot_every_num_images} must be positive"
            )
        self.gammas = [gamma_of(width) for width in widths]
        super().__init__(
            names=[f"sigma_rel {width:g}" for width in widths],
            shown=widths.index(shown),
            label=f"EMA weights (sigma_rel {shown:g})",
            on_cpu=on_cpu,
        )
        self.sigma_rels = widths
        self.snapshot_every_num_images = snapshot_every_num_images
        self.half = half
        self._seen = 0
        self._written = -1

    def shares(self, num_updates: int) -> Sequence[float]:
        return [share(num_updates + 1, gamma) for gamma in self.gammas]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._seen = int(pl_module.images_seen)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        before, self._seen = self._seen, int(pl_module.images_seen)  # type: ignore[arg-type]
        if crossed(before, self._seen, self.snapshot_every_num_images):
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._written != self._seen:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """On all processes: the whole weights may have to be brought together."""
        self._written = self._seen
        self.catch_up()
        if self.num_updates == 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with untimed(trainer):
            states = [average.state(keep=trainer.is_global_zero) for average in self.averages]
            if not trainer.is_global_zero:
                return
            try:
                write_snapshot(
                    Path(trainer.default_root_dir) / FOLDER,
                    states,
                    step=self.num_updates,
                    images_seen=self._seen,
                    sigma_rels=self.sigma_rels,
                    half=self.half,
                )
            except (OSError, SafetensorError) as error:  # a full disk: others of the snapshots will do
                log.warning("the averages' snapshot at %s images could not be written: %s", self._seen, error)
