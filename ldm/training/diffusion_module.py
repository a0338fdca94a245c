"""The training step of a latent denoiser: joins codec, text encoder, network and diffusion for Lightning.

Read next: ``ldm/diffusion/diffusion.py``, where the loss is, unless the objective is another (``objectives.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from ldm import randomness
from ldm.diffusion.diffusion import Diffusion
from ldm.interfaces import (
    Batch,
    CountsCutCaptions,
    Guidance,
    LatentCodec,
    Sampler,
    TextEncoder,
)
from ldm.nn.blocks import Execution
from ldm.sampling.generate import Generation
from ldm.sampling.grids import Grid
from ldm.text.contract import refuse_other
from ldm.training.callbacks import is_logged
from ldm.training.module import TrainingModule
from ldm.training.noise_levels import BY_LOG_SNR, LossByNoise
from ldm.training.objectives import Denoising, Losses, Objective, Samples
from ldm.training.optim import LearningRateSchedule, OptimizerRecipe
from ldm.training.teacher import Teacher, read_teacher
from ldm.transfer import sent


class DiffusionModule(TrainingModule):
    """Trains ``network`` and, where it has parameters to train, ``text_encoder`` on normalised latents.

    Every random choice for a picture is tied to (seed, its key, its visit): see ``ldm/randomness.py``.

    Args:
        diffusion: Schedule, parameterization, law of t and loss. Weights of its uncertainty, if any, are trained too.
        network: The denoising network.
        text_encoder: Captions -> Conditioning. Where it is frozen it is not written into checkpoints, its contract is.
        codec: Frozen autoencoder; neither trained nor written into checkpoints, but its hash is.
        optimizer: Recipe over the trained parts.
        lr_schedule: Factor on the learning rate as a function of the images seen.
        sampler: For sample grids and evaluation, with ``grid``, ``guidance`` and ``num_steps``.
        num_images: Pictures to train on: the length of training.
        image_size: Side of the pictures, in pixels.
        caption_dropout: Share of captions replaced by the null condition, for guidance (2207.12598), in [0, 1].
        sample_posterior: Draw latents from the autoencoder's posterior instead of taking its mean.
        execution: How the trained parts' blocks are run: compiled, checkpointed; plainly when None.
        seed: Of noise, times and caption dropout.
        objective: What is minimised; ``Denoising``, the diffusion's own loss, when None.
        teacher: An earlier run of the same network, to begin with and to learn from, for objectives that do.
        runs: The folder that holds the runs.

    Raises:
        ValueError: A share outside [0, 1], an ``image_size`` that the codec's stride does not divide, or a network
            that wants other classes than ``text_encoder`` tells.
    """

    def __init__(
        self,
        *,
        diffusion: Diffusion,
        network: nn.Module,
        text_encoder: nn.Module,
        codec: LatentCodec,
        optimizer: OptimizerRecipe,
        lr_schedule: LearningRateSchedule,
        sampler: Sampler,
        grid: Grid,
        guidance: Guidance,
        num_steps: int,
        num_images: int,
        image_size: int,
        caption_dropout: float = 0.1,
        sample_posterior: bool = True,
        execution: Execution | None = None,
        seed: int = 0,
        objective: Objective | None = None,
        teacher: str | None = None,
        runs: str = "runs",
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            num_images=num_images,
            execution=execution,
            seed=seed,
        )
        if not 0.0 <= caption_dropout <= 1.0:
            raise ValueError(f"caption_dropout={caption_dropout} must lie in [0, 1]")
        if image_size % codec.downsample:
            raise ValueError(
                f"image_size={image_size} is not divisible by the codec's stride {codec.downsample}"
            )
        wanted, told = (getattr(part, "num_classes", None) or 0 for part in (network, text_encoder))
        if wanted and wanted != told:
            raise ValueError(
                f"the network wants {wanted} classes, but the text encoder tells {told or 'none'}: "
                f"use text_encoder=labels text_encoder.num_classes={wanted}, or network.num_classes={told or 'null'}"
            )
        self.diffusion = diffusion
        # here as well, so that Lightning moves and saves its weights
        self.uncertainty = diffusion.uncertainty
        self.noise_levels = LossByNoise()
        self.network = network
        self.text_encoder = text_encoder
        self.codec = codec
        self.sampler, self.grid, self.guidance, self.num_steps = sampler, grid, guidance, num_steps
        self.latent_size = (image_size // codec.downsample,) * 2  # (H, W)
        self.caption_dropout = caption_dropout
        self.sample_posterior = sample_posterior
        self.objective = objective or Denoising()
        self.teacher_run, self.runs = teacher, runs
        self.teacher: Teacher | None = None
        self._begins_step = True  # False between the pieces of one

    def prepare(self, *, anew: bool) -> str:
        """Read the teacher, and begin with its weights where training begins ``anew``; says so in words.

        A training calls it once; who only samples needs no teacher.

        Raises:
            FileNotFoundError: There is no such run.
            ValueError: Teacher, network and objective do not fit.
        """
        if self.teacher_run is not None:
            self.teacher = read_teacher(self.teacher_run, self, runs=self.runs)
            for name, part in self.parts().items() if anew else ():
                part.load_state_dict(getattr(self.teacher, name).state_dict())
        self.objective.prepare(
            parts=self.parts(), diffusion=self.diffusion, teacher=self.teacher, execution=self.execution
        )
        begun = " and begins with its weights" if anew else ""
        return "" if self.teacher is None else f"learns from {self.teacher_run}{begun}"

    # --- the step -----------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        if self._begins_step:
            self.objective.before_step(self.parts())
        self._begins_step = batch.completes_step
        kept = (
            randomness.uniform(self.seed, "caption dropout", batch.keys, batch.visits) >= self.caption_dropout
        )
        u = randomness.uniform(self.seed, "time", batch.keys, batch.visits)
        losses = self.losses(batch, kept, u, purpose="noise")
        self.log_step({"train/loss": losses.shown.mean()}, batch)
        self.log_cut_captions(len(batch))
        self.count(batch)
        return losses.loss.mean()

    def log_cut_captions(self, batch_size: int) -> None:
        """Which share of the captions so far had more words than the text encoder takes; where it is written down."""
        if isinstance(self.text_encoder, CountsCutCaptions) and self._trainer and is_logged(self.trainer):
            for encoder, share in self.text_encoder.shares_cut().items():
                name = f"train/captions_cut/{encoder}".rstrip("/")
                self.log(name, share, batch_size=batch_size, sync_dist=True)

    def losses(self, batch: Batch, kept: Tensor, u: Tensor, *, purpose: str) -> Losses:
        """Of each sample: captions where ``kept`` (B,), times by the quantiles u (B,).

        Raises:
            RuntimeError: The teacher was not read.
        """
        if self.teacher_run is not None and self.teacher is None:
            raise RuntimeError(
                f"task.teacher={self.teacher_run} was not read, without which there is no loss: a training does so by "
                f"prepare(); a single step of it cannot be made again"
            )
        x0 = self.clean_latents(batch, purpose=f"{purpose} of the posterior")  # (B, C, H, W)
        channels, height, width = x0.shape[1:]
        diffusion = self.diffusion.for_latents((channels, height, width))

        def more_noise(shape: Sequence[int]) -> Tensor:
            name = f"{purpose} of shape {tuple(shape)}"
            drawn = randomness.normal(shape, self.seed, name, batch.keys, batch.visits)
            return sent(drawn, x0.device).to(x0.dtype)

        eps = randomness.normal(x0.shape[1:], self.seed, purpose, batch.keys, batch.visits)
        eps = sent(eps, x0.device).to(x0.dtype)
        eps = diffusion.training_noise(x0, eps, more_noise)
        return self.objective.losses(
            Samples(
                batch=batch,
                diffusion=diffusion,
                network=self.network,
                text_encoder=self.text_encoder,
                teacher=self.teacher,
                x0=x0,
                eps=eps,
                kept=kept,
                u=u,
                seed=self.seed,
                purpose=purpose,
            )
        )

    def clean_latents(self, batch: Batch, *, purpose: str) -> Tensor:
        """x0 (B, C, H, W), from cached moments where the batch carries them, else from its pictures."""
        if batch.moments is not None:
            moments = batch.moments.float()
        elif batch.images is not None:
            moments = self.codec.moments(batch.images)
        else:
            raise ValueError("the batch carries neither images nor moments")
        if not self.sample_posterior:
            return self.codec.latents(moments, noise=None)
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        noise = randomness.normal(shape, self.seed, purpose, batch.keys, batch.visits)
        return self.codec.latents(moments, noise=sent(noise, moments.device))

    def validation_step(self, batch: Batch, batch_index: int) -> STEP_OUTPUT:
        """The same pictures with the same noise and times each time: times stratified over the validation set."""
        u = torch.full((len(batch),), 0.5)
        t_quantiles = (torch.tensor(batch.slots) + u) / batch.num_slots
        kept = torch.ones(len(batch), dtype=torch.bool)
        _, shown, levels = self.losses(batch, kept, t_quantiles, purpose="validation noise")
        self.log("val/loss", shown.mean(), batch_size=len(batch), on_epoch=True, sync_dist=True)
        self.noise_levels.add(shown, levels)
        return None

    def on_validation_epoch_start(self) -> None:
        self.noise_levels = LossByNoise()

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self.noise_levels.sums.to(self.device), reduce_op="sum")
        for level, loss in LossByNoise(sums=sums.cpu()).means().items():
            self.log(f"{BY_LOG_SNR}{level:+d}", loss)

    # --- around the step ----------------------------------------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        parts = {"network": self.network, "text_encoder": self.text_encoder, "uncertainty": self.uncertainty}
        return {
            name: part
            for name, part in parts.items()
            if name in self.objective.trains
            and isinstance(part, nn.Module)
            and any(p.requires_grad for p in part.parameters())
        }

    def generation(self, num_steps: int | None = None) -> Generation:
        """Prompts -> pictures with the weights that are in the module now."""
        return Generation(
            diffusion=self.diffusion,
            network=self.network,
            text_encoder=cast(TextEncoder, self.text_encoder),
            codec=self.codec,
            sampler=self.sampler,
            grid=self.grid,
            guidance=self.guidance,
            num_steps=num_steps or self.num_steps,
        )

    # --- checkpoints --------------------------------------------------------------------------------------------

    @property
    def text_contract(self) -> dict[str, Any]:
        return dict(getattr(self.text_encoder, "contract", {}))

    def frozen_parts(self) -> dict[str, nn.Module]:
        """What has weights of its own that no checkpoint needs: they come from where they came from."""
        parts = {"codec": self.codec, "text_encoder": self.text_encoder, "teacher": self.teacher}
        trained = self.parts()
        return {
            name: part for name, part in parts.items() if isinstance(part, nn.Module) and name not in trained
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["codec_hash"] = self.codec.content_hash
        checkpoint["text_contract"] = self.text_contract
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.content_hash
        frozen = tuple(f"{name}." for name in self.frozen_parts())
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: x for name, x in weights.items() if not name.startswith(frozen)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        made_with = checkpoint["codec_hash"]
        if made_with != self.codec.content_hash:
            raise ValueError(
                f"this denoiser was trained on the latents of autoencoder {made_with[:12]}, but the codec now is "
                f"{self.codec.content_hash[:12]}: give the one it was trained with by codec.path=..."
            )
        if contract := checkpoint.get("text_contract"):
            refuse_other(contract, self.text_contract, what="this denoiser")
        taught_by = checkpoint.get("teacher")
        if self.teacher is not None and taught_by not in (None, self.teacher.content_hash):
            raise ValueError(
                f"this run has learned from checkpoint {taught_by[:12]}, and task.teacher={self.teacher_run} is "
                f"{self.teacher.content_hash[:12]} now: name that very checkpoint by task.teacher=<its folder>"
            )
        super().on_load_checkpoint(checkpoint)
        # Who only samples has prepared no training, and no place for what an objective remembers.
        own, weights = self.state_dict(), checkpoint["state_dict"]
        known = {name: x for name, x in weights.items() if name in own or not name.startswith("objective.")}
        frozen = {
            f"{part}.{name}": x
            for part, module in self.frozen_parts().items()
            for name, x in module.state_dict().items()
        }
        checkpoint["state_dict"] = {**known, **frozen}
