"""The training step of an autoencoder, and the file it leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from ldm import randomness
from ldm.codecs.contract import LatentContract, LatentStatistics
from ldm.codecs.kl import write_autoencoder
from ldm.interfaces import Batch
from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.blocks import Execution
from ldm.training.autoencoder_loss import AutoencoderTerm
from ldm.training.module import TrainingModule
from ldm.training.optim import LearningRateSchedule, OptimizerRecipe
from ldm.transfer import sent


class AutoencoderModule(TrainingModule):
    """Trains an autoencoder on pictures.

    Args:
        autoencoder: The network to train.
        terms: The terms of the loss by the name they are logged under.
        optimizer: Recipe over the trained parts.
        lr_schedule: Factor on the learning rate as a function of the images seen.
        num_images: Pictures to train on: the length of training.
        execution: How the trained parts' blocks are run: compiled, checkpointed; plainly when None.
        seed: Of the posterior's noise.
    """

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        terms: Mapping[str, AutoencoderTerm],
        optimizer: OptimizerRecipe,
        lr_schedule: LearningRateSchedule,
        num_images: int,
        execution: Execution | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            num_images=num_images,
            execution=execution,
            seed=seed,
        )
        if not terms:
            raise ValueError("terms is empty: an autoencoder needs at least a reconstruction term")
        self.autoencoder = autoencoder
        self.terms = dict(terms)

    # --- the step -----------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images = images_of(batch)
        moments = self.autoencoder.encode(images)  # (B, 2C, H, W)
        mean, log_var = moments.chunk(2, dim=1)
        noise = randomness.normal(mean.shape[1:], self.seed, "posterior", batch.keys, batch.visits)
        noise = sent(noise, mean.device).to(mean.dtype)
        reconstructions = self.autoencoder.decode(mean + torch.exp(0.5 * log_var) * noise)
        losses = self.losses(images, reconstructions, moments)
        self.log_step({f"train/{name}": value for name, value in losses.items()}, batch)
        self.count(batch)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> STEP_OUTPUT:
        images = images_of(batch)
        moments = self.autoencoder.encode(images)
        reconstructions = self.decode_means(moments)
        metrics = self.losses(images, reconstructions, moments) | {
            "psnr": psnr(images, reconstructions).mean()
        }
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict(values, batch_size=len(batch), on_epoch=True, sync_dist=True)
        return None

    def losses(self, images: Tensor, reconstructions: Tensor, moments: Tensor) -> dict[str, Tensor]:
        """``loss``, the weighted sum of the terms, and each term by its name, not weighted."""
        values = {name: term(images, reconstructions, moments) for name, term in self.terms.items()}
        loss = torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()
        return {"loss": loss, **values}

    def reconstruct(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) in [-1, 1] -> the same through the posterior's mean, clipped to [-1, 1]."""
        return self.decode_means(self.autoencoder.encode(images))

    def decode_means(self, moments: Tensor) -> Tensor:
        """moments (B, 2C, H, W) -> images (B, 3, fH, fW) of the posterior's means, clipped to [-1, 1]."""
        mean, _ = moments.chunk(2, dim=1)
        return self.autoencoder.decode(mean).clamp(-1.0, 1.0)

    def parts(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.autoencoder}

    # --- what training leaves behind ----------------------------------------------------------------------------

    @torch.no_grad()
    def export(self, path: Path, batches: Iterable[Batch]) -> LatentContract:
        """Measure the latents of ``batches`` with the weights that are in the module now and write the codec's file."""
        self.eval()
        statistics = LatentStatistics(self.autoencoder.latent_channels)
        for batch in batches:
            statistics.update(self.autoencoder.encode(images_of(batch).to(self.device)))
        contract = statistics.contract(downsample=self.autoencoder.downsample)
        return write_autoencoder(path, autoencoder=self.autoencoder, contract=contract)


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
