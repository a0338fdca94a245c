"""One training step of a module that was built on the meta device: what it computes, and what it holds while it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ldm.planning.autocast import AsOn, Precision
from ldm.planning.ledger import Ledger
from ldm.planning.replay import Replay
from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.diffusion_module import DiffusionModule
from ldm.training.module import TrainingModule


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """A step on one device.

    Attributes:
        forward_flops: Of the trained parts' forward pass.
        backward_flops: Of their backward pass, with what is computed again in it.
        frozen_flops: Of frozen parts by name: the autoencoder where pictures come in, a frozen text encoder.
        forward_peak: The most bytes alive in the forward pass, beside weights.
        kept: Bytes alive when it ends: what the backward pass needs.
        backward_peak: The most bytes alive in the backward pass, gradients of weights included.
        block_peak: The most that one block adds for a moment, in the backward pass.
        frozen_peak: The most bytes alive while frozen parts run.
    """

    forward_flops: int
    backward_flops: int
    frozen_flops: Mapping[str, int]
    forward_peak: int
    kept: int
    backward_peak: int
    block_peak: int
    frozen_peak: int

    @property
    def flops(self) -> int:
        return self.forward_flops + self.backward_flops + sum(self.frozen_flops.values())


def step_cost(
    module: TrainingModule,
    *,
    batch_size: int,
    image_size: int,
    from_pictures: bool,
    gpu: bool,
    precision: Precision,
    checkpointed: bool,
) -> StepCost:
    """Trace a step of ``module``, whose parameters are on the meta device.

    Args:
        module: Its gradients are dropped.
        batch_size: Pictures on one device at a time.
        image_size: Side of the pictures in pixels.
        from_pictures: Whether pictures come in, or latents that were made beforehand.
        gpu: Whether the device is a GPU.
        precision: Of the trainer.
        checkpointed: Whether each block keeps its input only.

    Raises:
        ValueError: A task of another kind.
    """
    module.zero_grad(set_to_none=True)
    frozen_flops: dict[str, int] = {}
    frozen_peak = 0
    with AsOn(gpu=gpu, precision=precision):
        for name, run in frozen_parts(module, batch_size, image_size, from_pictures).items():
            ledger = Ledger()
            with ledger, torch.no_grad():
                run()
            frozen_flops[name] = ledger.flops
            frozen_peak = max(frozen_peak, ledger.peak)
        ledger = Ledger()
        replay = Replay(ledger, checkpointed=checkpointed)
        with replay.of(list(module.parts().values())), ledger:
            loss = loss_of(module, batch_size, image_size)
            forward_flops, forward_peak, kept = ledger.flops, ledger.peak, ledger.live
            ledger.peak = ledger.live
            loss.backward()
    cost = StepCost(
        forward_flops=forward_flops,
        backward_flops=ledger.flops - forward_flops,
        frozen_flops=frozen_flops,
        forward_peak=forward_peak,
        kept=kept,
        backward_peak=ledger.peak,
        block_peak=max((one.backward_peak for one in replay.costs.values()), default=0),
        frozen_peak=frozen_peak,
    )
    module.zero_grad(set_to_none=True)
    return cost


def frozen_parts(
    module: TrainingModule, batch_size: int, image_size: int, from_pictures: bool
) -> dict[str, Callable[[], object]]:
    """What runs in each step without being trained, by name."""
    if not isinstance(module, DiffusionModule):
        return {}
    found: dict[str, Callable[[], object]] = {}
    if from_pictures:
        shape = (batch_size, 3, image_size, image_size)
        found["codec"] = lambda: module.codec.moments(torch.empty(shape, device="meta"))
    if "text_encoder" not in module.parts():
        found["text_encoder"] = lambda: module.text_encoder(captions(module.text_encoder, batch_size))
    return found


def loss_of(module: TrainingModule, batch_size: int, image_size: int) -> Tensor:
    """The loss of a step whose latents, noise, times and frozen encodings are there already."""
    if isinstance(module, DiffusionModule):
        return diffusion_loss(module, batch_size)
    if isinstance(module, AutoencoderModule):
        return autoencoder_loss(module, batch_size, image_size)
    raise ValueError(f"a {type(module).__name__} cannot be planned: its step is not known here")


def diffusion_loss(module: DiffusionModule, batch_size: int) -> Tensor:
    x0, eps = torch.empty(2, batch_size, module.codec.channels, *module.latent_size, device="meta")
    with torch.set_grad_enabled("text_encoder" in module.parts()):
        cond = module.text_encoder(captions(module.text_encoder, batch_size))
    if cond.sizes is None:
        cond = replace(cond, sizes=torch.empty(batch_size, 6, device="meta"))
    t = torch.empty(batch_size, device="meta")
    return module.diffusion.loss(module.network, x0, cond, eps=eps, t=t).mean()


def autoencoder_loss(module: AutoencoderModule, batch_size: int, image_size: int) -> Tensor:
    images = torch.empty(batch_size, 3, image_size, image_size, device="meta")
    moments = module.autoencoder.encode(images)
    mean, log_var = moments.chunk(2, dim=1)
    reconstructions = module.autoencoder.decode(mean + torch.exp(0.5 * log_var) * torch.empty_like(mean))
    return module.losses(images, reconstructions, moments)["loss"]


def captions(text_encoder: nn.Module, batch_size: int) -> Sequence[str]:
    """Captions of the greatest length; of a class where the encoder tells classes."""
    numbers = getattr(text_encoder, "numbers", None)
    if numbers:
        return [next(iter(numbers))] * batch_size
    return [" ".join(["word"] * int(text_encoder.length))] * batch_size  # type: ignore[arg-type]


