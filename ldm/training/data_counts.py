"""What a run has taken from its data, in its log."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from ldm.training.callbacks import EveryNumImages


class DataCounts(EveryNumImages):
    """Log ``data/bad_samples``, how many bad samples this process has replaced since it began, and, with several
    sources, ``data/from_<name>``: how many samples the whole run has taken from each, over all processes and restarts.

    Args:
        every_num_images: how often.
    """

    def __init__(self, *, every_num_images: int = 20_000) -> None:
        super().__init__(every_num_images=every_num_images)

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        count = getattr(trainer.datamodule, "counts", None)  # type: ignore[attr-defined]
        counts: dict[str, float] = count() if count else {}  # streams cannot tell
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # the step Lightning logs metrics under
        for logger in trainer.loggers:
            logger.log_metrics(counts, step=step)
