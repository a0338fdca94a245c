"""Scores on the W&B page of the run they are of, under stable names: ``eval/<metric>``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from ldm.evaluation.scores import Score
from ldm.training.logging import IMAGES_SEEN, WandbLogger
from ldm.training.run import RunFolder

log = logging.getLogger(__name__)


def log_scores(run: str | Path, scores: Sequence[Score]) -> bool:
    """Send scores to the W&B run that a run folder belongs to; offline they become one more part in <run>/wandb.

    They stand over the images seen by the checkpoint that was scored, whenever that is done. The protocols go along in
    the config, as ``eval/<metric>``, for the page to be filtered by their hashes.

    Returns:
        Whether the run logs to W&B at all. Failures of W&B are warned of and stop nothing.
    """
    settings = wandb_settings(RunFolder(Path(run)))
    if settings is None or not scores:
        return settings is not None
    logger = WandbLogger(**{**settings, "folder": str(run)})
    told = {
        eval_name(score): {"protocol_hash": score.protocol.hash, **score.protocol.to_plain()}
        for score in scores
    }
    logger.log_hyperparams({"protocols": told})
    for score in sorted(scores, key=lambda score: score.images_seen):
        logger.log_metrics(row(score))
    logger.finalize("success")
    return True


def eval_name(score: Score) -> str:
    """ "eval/kid"; of other weights than the average that is shown by default "eval/kid/online"."""
    weights = score.protocol.weights
    return f"eval/{score.metric}" + (f"/{weights}" if weights not in ("", "ema") else "")


def row(score: Score) -> dict[str, float]:
    """What a page gets of one score."""
    name = eval_name(score)
    ends = (
        {}
        if score.low is None or score.high is None
        else {f"{name}/low": score.low, f"{name}/high": score.high}
    )
    return {name: score.value, **ends, IMAGES_SEEN: float(score.images_seen)}


def wandb_settings(folder: RunFolder) -> dict[str, Any] | None:
    """The arguments of the run's own W&B logger; None where it has none."""
    config = folder.read_config()
    for entry in (config.get("logger") or {}).values():
        if entry is not None and str(entry.get("_target_", "")).endswith(".WandbLogger"):
            values = cast(dict[str, Any], OmegaConf.to_container(entry, resolve=True))
            values.pop("_target_")
            return {str(key): value for key, value in values.items()}
    return None
