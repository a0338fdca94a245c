"""From built parts to a finished run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.progress import track

from ldm.data.loading import BatchLoader
from ldm.interfaces import Batch
from ldm.training.accumulation import InPieces
from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.datamodule import ImageDataModule
from ldm.training.ema import averaged_weights
from ldm.training.lean import make_lean
from ldm.training.run import RunFolder, finish_run
from ldm.training.saving import interruptible
from ldm.training.watching import ranks_watched

MEASURED = 50_000  # pictures over which an autoencoder's latent statistics are measured, at most


def fit(
    trainer: Trainer,
    module: LightningModule,
    data: LightningDataModule,
    folder: RunFolder,
    *,
    config: Mapping[str, Any],
    checkpoint: Path | None,
) -> float | None:
    """Train to ``config["num_images"]`` or until stopped; returns the last ``val/loss``.

    Args:
        config: The resolved config, for the loggers.
        checkpoint: To go on from, or the folder of all, of which the newest whole one is taken; None begins anew.
    """
    for logger in trainer.loggers:
        logger.log_hyperparams({**config, "made_of": made_of(module, folder)})
    make_lean(trainer)
    with interruptible(), ranks_watched(trainer):
        path = None if checkpoint is None else str(checkpoint)
        pieces = trainer.accumulate_grad_batches
        fed = data if pieces == 1 else InPieces(data, num=pieces)
        trainer.fit(module, datamodule=fed, ckpt_path=path, weights_only=True)
    if int(module.images_seen) >= config["num_images"]:  # type: ignore[arg-type]
        finish(trainer, module, data, folder)
    value = trainer.callback_metrics.get("val/loss")
    return None if value is None else float(value)


def made_of(module: LightningModule, folder: RunFolder) -> dict[str, Any]:
    """What a config cannot tell of a run, for loggers to filter and group by: hashes, contracts, commit."""
    codec = getattr(module, "codec", None)
    git = folder.path / "git.json"
    return {
        "codec_hash": getattr(codec, "content_hash", None),
        "text_contract": dict(getattr(module, "text_contract", {})),
        "commit": json.loads(git.read_text()).get("commit") if git.is_file() else None,
        "run_folder": f"{folder.name}/{folder.id}",
    }


def finish(trainer: Trainer, module: LightningModule, data: LightningDataModule, folder: RunFolder) -> None:
    """What a training that reached its end leaves: an autoencoder's file, and the mark of a finished run."""
    if isinstance(module, AutoencoderModule) and isinstance(data, ImageDataModule) and trainer.is_global_zero:
        path = folder.path / "autoencoder.safetensors"
        with averaged_weights(trainer, module) as weights:
            contract = module.export(path, shown(data.train_in_order(stop=MEASURED)))
        print(
            f"wrote {path}: {weights}, latent statistics over {contract.num_images:,} pictures, "
            f"content hash {contract.content_hash[:12]}"
        )
    finish_run(folder, images_seen=int(module.images_seen))  # type: ignore[arg-type]
    if trainer.is_global_zero:
        print(f"finished: {folder.path}")


def shown(batches: BatchLoader) -> Iterator[Batch]:
    return iter(track(batches, description="measuring latents", transient=True))
