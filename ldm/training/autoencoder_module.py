"""The training step of an autoencoder, and the file it leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from ldm.codecs.contract import LatentContract, LatentStatistics
from ldm.codecs.kl import write_autoencoder
from ldm.interfaces import Batch
from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.blocks import Execution
from ldm.nn.bottlenecks import VQLayer
from ldm.training.adversary import Adversary, num_processes, sum_over_processes
from ldm.training.autoencoder_loss import CodebookLoss
from ldm.training.autoencoder_pass import (
    AutoencoderTerm,
    Disturbance,
    Draw,
    HasTrained,
    Particular,
    Pass,
    modules_among,
    run,
    run_means,
    weighted_sum,
)
from ldm.training.bad_steps import is_skipped
from ldm.training.decoder_of import DecoderOf
from ldm.training.module import TrainingModule
from ldm.training.optim import Joined, LearningRateSchedule, OptimizerRecipe


class AutoencoderModule(TrainingModule):
    """Trains an autoencoder on pictures.

    Args:
        autoencoder: The network to train.
        terms: The terms of the loss by the name they are logged under. Those of weight 0 are measured in validation
            only, those that are null left out.
        optimizer: Recipe over the trained parts.
        lr_schedule: Factor on the learning rate as a function of the images seen.
        num_images: Pictures to train on: the length of training.
        disturbances: What happens to latents on their way into the decoder in training, one after another.
        adversary: A discriminator with an optimizer of its own, or null.
        decoder_of: A finished autoencoder of which only the decoder is trained, or null.
        execution: How the trained parts' blocks are run: compiled, checkpointed; plainly when None.
        seed: Of the posterior's noise and of disturbances.

    Raises:
        ValueError: There is no term to train by, or one that does not go with this autoencoder.
    """

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        terms: Mapping[str, AutoencoderTerm | None],
        optimizer: OptimizerRecipe,
        lr_schedule: LearningRateSchedule,
        num_images: int,
        disturbances: Mapping[str, Disturbance | None] | None = None,
        adversary: Adversary | None = None,
        decoder_of: DecoderOf | None = None,
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
        self.terms = {name: term for name, term in terms.items() if term is not None}
        self.acting = {name: term for name, term in self.terms.items() if term.weight}
        if not self.acting:
            raise ValueError("terms is empty: an autoencoder needs at least a reconstruction term")
        check_terms(self.terms, autoencoder, has_discriminator=adversary is not None)
        self.autoencoder = autoencoder
        self.disturbances = {name: x for name, x in (disturbances or {}).items() if x is not None}
        self.adversary = adversary
        self.discriminator = adversary.discriminator if adversary else None
        self.term_modules = modules_among(self.terms)  # so that Lightning moves their weights
        self.kept_contract = decoder_of.begin(autoencoder) if decoder_of else None
        self._judged = False  # whether the discriminator took part in the step that is being made

    # --- the step -----------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, before = images_of(batch), self.images_seen
        judge = self.adversary if self.adversary and self.adversary.has_begun(before) else None
        seen = run(
            self.autoencoder,
            images,
            Draw.of(batch, seed=self.seed, step=before),
            disturbances=self.disturbances,
            discriminator=judge.discriminator if judge else None,
        )
        values = {name: term(seen) for name, term in self.acting.items()}
        loss = weighted_sum(self.acting, values)
        logged = {"loss": loss, **values}
        total = loss
        if judge:
            judged = judge(seen, loss, images_seen=before, num_images=batch.num_slots)
            total = loss + judged.generator + judged.discriminator
            logged |= judged.figures
        elif self.adversary and num_processes() > 1:
            total = loss + self.adversary.untouched()
        self._judged = judge is not None
        if not self.kept_contract:
            self.autoencoder.bottleneck.see(seen.latents)
        self.log_step({f"train/{name}": value for name, value in logged.items()}, batch)
        self.count(batch)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.adversary and not self._judged:
            self.adversary.drop_gradients()

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_index: int) -> None:
        bottleneck = self.autoencoder.bottleneck
        # Asking whether the step was left out waits for the device, so only who must know asks.
        if batch.completes_step and isinstance(bottleneck, VQLayer):
            bottleneck.forget() if is_skipped(self.trainer) else bottleneck.settle(sum_over_processes)

    def validation_step(self, batch: Batch, batch_index: int) -> STEP_OUTPUT:
        seen = run_means(self.autoencoder, images_of(batch), Draw.of(batch, seed=self.seed, step=0))
        metrics = self.losses(seen) | {"psnr": psnr(seen.images, seen.reconstructions).mean()}
        metrics |= self.autoencoder.bottleneck.figures(seen.latents)
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict(values, batch_size=len(batch), on_epoch=True, sync_dist=True)
        return None

    def losses(self, seen: Pass) -> dict[str, Tensor]:
        """``loss``, the weighted sum of the terms, and each term by its name, not weighted."""
        values = {name: term(seen) for name, term in self.terms.items()}
        return {"loss": weighted_sum(self.terms, values), **values}

    def reconstruct(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) in [-1, 1] -> the same through the posterior's mean, clipped to [-1, 1]."""
        mean, _ = self.autoencoder.encode(images).chunk(2, dim=1)
        return self.autoencoder.decode(mean).clamp(-1.0, 1.0)

    # --- around the step ----------------------------------------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        trained = {name: term.trained() for name, term in self.terms.items() if isinstance(term, HasTrained)}
        judge = {} if self.discriminator is None else {"discriminator": self.discriminator}
        return {"autoencoder": self.autoencoder, **trained, **judge}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.adversary is None:
            return self.optimizer(self.parts())
        parts = self.parts()
        judge = {"discriminator": parts.pop("discriminator")}
        return Joined(
            [self.optimizer(parts), self.adversary.optimizer(judge)], names=["autoencoder", "discriminator"]
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        trained = self.trained_names()
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: x for name, x in weights.items() if name.startswith(trained)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        trained = self.trained_names()
        frozen = {name: x for name, x in self.state_dict().items() if not name.startswith(trained)}
        checkpoint["state_dict"] = {**frozen, **checkpoint["state_dict"]}

    def trained_names(self) -> tuple[str, ...]:
        """Beginnings of the names of what a checkpoint holds: frozen networks come from where they came from."""
        parts = {id(part) for part in self.parts().values()}
        return tuple(f"{name}." for name, module in self.named_modules() if id(module) in parts)

    # --- what training leaves behind ----------------------------------------------------------------------------

    @torch.no_grad()
    def export(self, path: Path, batches: Iterable[Batch]) -> LatentContract:
        """Measure the latents of ``batches`` with the weights that are in the module now and write the codec's file.

        Where only the decoder was trained the contract is the former one, and ``batches`` are not looked at.
        """
        self.eval()
        if self.kept_contract:
            return write_autoencoder(path, autoencoder=self.autoencoder, contract=self.kept_contract)
        statistics = LatentStatistics(self.autoencoder.latent_channels)
        for batch in batches:
            statistics.update(self.autoencoder.encode(images_of(batch).to(self.device)))
        contract = statistics.contract(downsample=self.autoencoder.downsample)
        return write_autoencoder(path, autoencoder=self.autoencoder, contract=contract)


def check_terms(
    terms: Mapping[str, AutoencoderTerm], autoencoder: Autoencoder, *, has_discriminator: bool
) -> None:
    """
    Raises:
        ValueError: One of them does not go with this training, or a codebook has none that trains it.
    """
    for term in terms.values():
        if isinstance(term, Particular):
            term.check(autoencoder, has_discriminator=has_discriminator)
    layer = autoencoder.bottleneck
    if isinstance(layer, VQLayer) and not any(isinstance(term, CodebookLoss) for term in terms.values()):
        raise ValueError(
            "bottleneck=vq needs the term CodebookLoss among task.terms: nothing else trains the codebook"
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
