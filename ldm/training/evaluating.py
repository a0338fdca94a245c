"""Metrics measured while a training goes on, every so many pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ldm.evaluation.subject import Metric
from ldm.evaluation.together import Together
from ldm.training.callbacks import EveryNumImages, evaluating
from ldm.training.ema import averaged_weights
from ldm.training.folders import folder_name
from ldm.training.picture_sets import hash_of
from ldm.training.run import RunFolder
from ldm.training.scoring import fitting, refuse_lacking, score
from ldm.training.subject import Origin, RunSubject, ema_width
from ldm.training.wandb_scores import eval_name


class Evaluation(EveryNumImages):
    """Measure a few metrics of the averaged weights: records in <run>/evaluation/scores, and ``eval/<score>`` logged.

    A second job does the same without holding the training up: ``ldm evaluate run=... follow=true``.

    Args:
        metrics: What is measured, by any names; see configs/metrics.
        every_num_images: Images seen between two evaluations; null evaluates once, at the end.
        seed: Of the sampling noise.
        num_steps: Sampling steps; null leaves it to the module.
        batch_size: Pictures at a time, by each process.
        references: Folder for what networks have seen of reference sets; null keeps nothing.

    Raises:
        MissingNeeds: Files of weights that the metrics want are not on this machine.
    """

    def __init__(
        self,
        *,
        metrics: Mapping[str, Metric | None],
        every_num_images: int | None,
        seed: int = 0,
        num_steps: int | None = None,
        batch_size: int = 50,
        references: str | None = None,
    ) -> None:
        super().__init__(every_num_images=every_num_images)
        self.metrics = {name: metric for name, metric in metrics.items() if metric is not None}
        refuse_lacking(self.metrics, at="callbacks.evaluation.metrics")
        self.seed = seed
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.references = references

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        with evaluating(module), averaged_weights(trainer, module) as weights:
            subject = self._subject(trainer, module, weights)
            fit, unfit = fitting(self.metrics, subject)
            for name, reason in unfit.items():
                rank_zero_warn(f"{name} is left out of the evaluation: {reason}")
            _, found = score(fit, subject, Path(trainer.default_root_dir), again=True)
        values = {eval_name(one): one.value for one in found}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)

    def _subject(self, trainer: Trainer, module: LightningModule, weights: str) -> RunSubject:
        any_module: Any = module
        folder = RunFolder(Path(trainer.default_root_dir))
        seen = int(any_module.images_seen)
        return RunSubject(
            origin=Origin(
                run=f"{folder.name}/{folder.id}",
                checkpoint=folder_name(seen),
                # No file of these weights need ever be there.
                checkpoint_hash=hash_of(["in training", folder.name, folder.id, seen]),
                images_seen=seen,
                weights="online" if weights.startswith("online") else "ema",
                ema_width=ema_width(folder.read_config()) if folder.config.is_file() else None,
            ),
            module=module,
            generation=any_module.generation(self.num_steps) if hasattr(module, "generation") else None,
            data_module=lambda: cast(Any, trainer).datamodule,
            seeds=(self.seed,),
            folder=folder.path / "evaluation",
            kept=None,
            references=None if self.references is None else Path(self.references),
            together=Together(trainer.global_rank, trainer.world_size, module.device),
            device=module.device,
            batch_size=self.batch_size,
        )
