"""A training small enough for tests: a line fitted to numbers that depend on the image counter only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from ldm.interfaces import Batch

BATCH = 4
SIDE = 8


def batch_at(first: int, size: int = BATCH) -> Batch:
    """The pictures first .. first + size - 1 of an endless stream."""
    rows = [
        torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(i))
        for i in range(first, first + size)
    ]
    return Batch(
        captions=[f"picture {i}" for i in range(first, first + size)],
        images=torch.stack(rows) * 2 - 1,
        moments=None,
        keys=[str(i) for i in range(first, first + size)],
        visits=[0] * size,
        slots=range(size),
        num_slots=size,
    )


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def __iter__(self) -> Iterator[Batch]:
        first = self.first
        while True:
            yield batch_at(first, self.size)
            first += self.size


class TinyData(L.LightningDataModule):
    def __init__(self, *, batch_size: int = BATCH) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        first = self.trainer.lightning_module.images_seen
        return torch.utils.data.DataLoader(Stream(first, self.batch_size), batch_size=None)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([batch_at(10**6 + i * BATCH) for i in range(2)], batch_size=None)


class TinyModule(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))
        self.frozen = nn.Linear(2, 2).requires_grad_(False).eval()
        self.images_seen = 0
        self.latent_size = (SIDE, SIDE)
        self.seen_keys: list[str] = []
        self.weights_in_validation: Tensor | None = None

    def parts(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.images_seen += batch.num_slots
        self.seen_keys += batch.keys
        loss = (self.network(batch.images) - 0.5 * batch.images).square().mean()
        self.log("train/loss", loss)
        self.log("train/images_seen", float(self.images_seen))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.weights_in_validation = self.network[0].weight.detach().clone()
        loss = (self.network(batch.images) - 0.5 * batch.images).square().mean()
        self.log("val/loss", loss, batch_size=len(batch))

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.network(images)

    def generation(self, num_steps: int | None = None) -> Any:
        def images(prompts: list[str], seeds: list[int], *, latent_size: Any, batch_size: int) -> Tensor:
            assert not self.network.training
            noise = [torch.randn(3, *latent_size, generator=torch.Generator().manual_seed(s)) for s in seeds]
            return ((self.network(torch.stack(noise)).clamp(-1, 1) + 1) * 127.5).to(torch.uint8)

        return SimpleNamespace(images=images, guidance="none", num_steps=num_steps or 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=0.05)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]


def fit(
    folder: Path,
    callbacks: list[Callback],
    *,
    resume: Path | None = None,
    loggers: Any = False,
    **options: Any,
) -> tuple[L.Trainer, TinyModule]:
    """Train a TinyModule in a run folder."""
    module = options.pop("module", None) or TinyModule()
    data = options.pop("data", None) or TinyData()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=folder,
        max_epochs=-1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(c, L.pytorch.callbacks.ProgressBar) for c in callbacks),
        **({"log_every_n_steps": 1} | options),
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer, module
