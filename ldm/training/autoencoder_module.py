"""The training step of an autoencoder, and the file it leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from ldm import randomness
from ldm.codecs.contract import LatentContract, LatentStatistics
from ldm.codecs.kl import write_autoencoder
from ldm.interfaces import Batch
from ldm.nn.autoencoder import AutoencoderKL
from ldm.training.autoencoder_loss import AutoencoderTerm
from ldm.training.optim import LearningRateSchedule, OptimizerRecipe, set_learning_rate


class AutoencoderModule(L.LightningModule):
    """Trains an autoencoder on pictures.

    Args:
        autoencoder: The network to train.
        terms: The terms of the loss by the name they are logged under.
        optimizer: Recipe over the trained parts.
        lr_schedule: Factor on the learning rate as a function of the images seen.
        num_images: Pictures to train on: the length of training.
        seed: Of the posterior's noise.
    """

    def __init__(
        self,
        *,
        autoencoder: AutoencoderKL,
        terms: Mapping[str, AutoencoderTerm],
        optimizer: OptimizerRecipe,
        lr_schedule: LearningRateSchedule,
        num_images: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms is empty: an autoencoder needs at least a reconstruction term")
        self.autoencoder = autoencoder
        self.terms = dict(terms)
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.num_images = num_images
        self.seed = seed
        self.images_seen = 0  # over all processes; drives data order, learning rate and every interval

    # --- the step -----------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        moments = self.autoencoder.encode(images_of(batch))  # (B, 2C, H, W)
        mean, log_var = moments.chunk(2, dim=1)
        noise = randomness.normal(mean.shape[1:], self.seed, "posterior", batch.keys, batch.visits).to(mean)
        reconstructions = self.autoencoder.decode(mean + torch.exp(0.5 * log_var) * noise)
        values = {name: term(images_of(batch), reconstructions, moments) for name, term in self.terms.items()}
        loss = torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()
        self.log("train/loss", loss, batch_size=len(batch))
        self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=len(batch))
        self.images_seen += batch.num_slots
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> STEP_OUTPUT:
        images = images_of(batch)
        moments = self.autoencoder.encode(images)
        reconstructions = self.reconstruct(images)
        values = {name: term(images, reconstructions, moments) for name, term in self.terms.items()}
        loss = torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()
        metrics = {f"val/{name}": value for name, value in values.items()}
        metrics |= {"val/loss": loss, "val/psnr": psnr(images, reconstructions).mean()}
        self.log_dict(metrics, batch_size=len(batch), on_epoch=True, sync_dist=True)
        return None

    def reconstruct(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) in [-1, 1] -> the same through the posterior's mean, clipped to [-1, 1]."""
        mean, _ = self.autoencoder.encode(images).chunk(2, dim=1)
        return self.autoencoder.decode(mean).clamp(-1.0, 1.0)

    # --- around the step ----------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        factor = self.lr_schedule(self.images_seen, self.num_images)
        set_learning_rate(self.trainer.optimizers, factor)
        self.log("train/lr_factor", factor, batch_size=len(batch))

    def parts(self) -> dict[str, nn.Module]:
        """What is trained, averaged and written into checkpoints."""
        return {"autoencoder": self.autoencoder}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parts())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]

    # --- what training leaves behind ----------------------------------------------------------------------------

    @torch.no_grad()
    def export(self, path: Path, batches: Iterable[Batch]) -> LatentContract:
        """Measure the latents of ``batches`` with the weights that are in the module now and write the codec's file."""
        self.eval()
        statistics = LatentStatistics(self.autoencoder.latent_channels)
        for batch in batches:
            statistics.update(self.autoencoder.encode(images_of(batch).to(self.device)))
        contract = statistics.contract(downsample=self.autoencoder.downsample)
        return write_autoencoder(
            path,
            architecture=self.autoencoder.architecture,
            weights=self.autoencoder.state_dict(),
            contract=contract,
        )


def images_of(batch: Batch) -> Tensor:
    if batch.images is None:
        raise ValueError(
            "an autoencoder trains on pictures, but the batch carries cached latents: use data=images"
        )
    return batch.images


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture (B,), for pictures in [-1, 1]: the peak is 2."""
    error = (images - reconstructions).square().flatten(1).mean(dim=1)
    return 10.0 * torch.log10(4.0 / error.clamp(min=1e-12))
