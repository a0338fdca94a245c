"""A discriminator trained against the autoencoder, in one backward pass with it.

Both learn from the same reconstructions and the same weights: what the discriminator says of reconstructions pulls the
autoencoder, and the discriminator's own loss sees them cut off. That is the update of two passes and two optimizers in
turn (Goodfellow et al. 2014, 1406.2661, algorithm 1 with k = 1), without a second forward pass, and without what goes
wrong in two: gradients that leak into the other's weights, unused weights under DDP, a step counter that counts both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ldm.nn.discriminator import PatchDiscriminator
from ldm.training.autoencoder_pass import Pass
from ldm.training.optim import OptimizerRecipe


class AdversarialLoss(Protocol):
    """Logits of any shape -> scalars."""

    def generator(self, made: Tensor) -> Tensor:
        """What the autoencoder minimises, of the logits of its reconstructions."""
        ...

    def discriminator(self, real: Tensor, made: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """The hinge loss (1705.02894, equation 2): what is already well told apart teaches nothing."""

    def generator(self, made: Tensor) -> Tensor:
        return -made.mean()

    def discriminator(self, real: Tensor, made: Tensor) -> Tensor:
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean())


@dataclass(frozen=True, kw_only=True)
class NonSaturating:
    """The logistic loss whose generator's part does not saturate (1406.2661, section 3)."""

    def generator(self, made: Tensor) -> Tensor:
        return F.softplus(-made).mean()

    def discriminator(self, real: Tensor, made: Tensor) -> Tensor:
        return 0.5 * (F.softplus(-real).mean() + F.softplus(made).mean())


class Balance(Protocol):
    """The factor between the pulls of reconstruction and discriminator."""

    def __call__(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Their gradients on the decoder's last weights, the same shape -> scalar."""
        ...


@dataclass(frozen=True, kw_only=True)
class FixedBalance:
    """None: the adversary's weight is the factor."""

    def __call__(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        return torch.ones((), device=reconstruction.device)


@dataclass(frozen=True, kw_only=True)
class GradientBalance:
    """Both pull equally at the decoder's last layer (2012.09841, equation 7), up to the adversary's weight.

    Gradients are of the step's whole batch, over all processes. Where gradients are accumulated each piece has a
    balance of its own, for the whole is known only when the pieces are done.

    Args:
        most: The factor's largest value.
        delta: Added to the norm of the discriminator's pull.
    """

    most: float = 1e4
    delta: float = 1e-6

    def __call__(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        both = mean_over_processes(torch.stack([reconstruction, adversarial]))
        first, second = both.flatten(1).norm(dim=1).unbind()
        return (first / (second + self.delta)).clamp(0.0, self.most)


@dataclass(frozen=True, kw_only=True)
class R1:
    """Gradient penalty on real pictures, gamma / 2 |grad D|^2 (1801.04406, equation 9).

    Args:
        gamma: Its strength.
        every_num_images: It acts in the steps in which another so many pictures were seen, with so many times the
            strength (1912.04958, appendix B); null acts in each.
    """

    gamma: float = 1.0
    every_num_images: int | None = None

    def factor(self, before: int, num: int) -> float:
        """Of the penalty in a step of ``num`` pictures after ``before``; 0 leaves it out."""
        if self.every_num_images is None:
            return self.gamma / 2
        due = (before + num) // self.every_num_images > before // self.every_num_images
        return self.gamma / 2 * max(1.0, self.every_num_images / num) if due else 0.0


class Judged(NamedTuple):
    """What an adversary says of a pass."""

    generator: (
        Tensor  # scalar, to add to the autoencoder's loss: its gradient is for the reconstructions alone
    )
    discriminator: Tensor  # scalar, to add as well: its gradient is for the discriminator alone
    figures: Mapping[str, Tensor]  # to log


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """The discriminator, its loss and its place in the training.

    Args:
        discriminator: The network.
        loss: Hinge or non-saturating.
        optimizer: The discriminator's own recipe. Learning-rate schedule and clipping are as for the autoencoder, each
            by its own gradients' norm.
        weight: Of the pull on the autoencoder, after the balance.
        balance: Between that pull and the reconstruction's.
        start_images: Pictures seen before the discriminator begins. Until then it is neither run nor changed, its
            optimizer's state included: gradients of zero would spoil the moments of its first steps.
        warmup_images: Pictures over which the pull on the autoencoder rises from zero; the discriminator learns from
            the start on.
        penalty: R1, or null.
    """

    discriminator: PatchDiscriminator
    loss: AdversarialLoss
    optimizer: OptimizerRecipe
    weight: float = 0.5
    balance: Balance = GradientBalance()
    start_images: int = 0
    warmup_images: int = 0
    penalty: R1 | None = None

    def __post_init__(self) -> None:
        if min(self.weight, self.start_images, self.warmup_images) < 0:
            raise ValueError(
                f"Adversary: weight={self.weight}, start_images={self.start_images} and "
                f"warmup_images={self.warmup_images} must not be negative"
            )

    def has_begun(self, images_seen: int) -> bool:
        return images_seen >= self.start_images

    def ramp(self, images_seen: int) -> float:
        """Of the pull on the autoencoder, in [0, 1]."""
        if self.warmup_images == 0:
            return 1.0
        return min(1.0, (images_seen - self.start_images) / self.warmup_images)

    def __call__(self, seen: Pass, reconstruction: Tensor, *, images_seen: int, num_images: int) -> Judged:
        """
        Args:
            seen: The pass; its pictures are real, its reconstructions made.
            reconstruction: The autoencoder's loss so far, a scalar.
            images_seen: Before this step.
            num_images: Of this step, over all processes.
        """
        made = (
            seen.reconstructions.detach().requires_grad_()
        )  # a leaf: the discriminator's gradient ends here
        real = seen.images.detach()
        factor = self.penalty.factor(images_seen, num_images) if self.penalty else 0.0
        if factor:
            real = real.requires_grad_()
        # As views: hooks that follow modules through a backward pass stumble over inputs that are leaves.
        real_logits, made_logits = (self.discriminator(x.view_as(x)) for x in (real, made))

        value = self.loss.generator(made_logits)
        (pull,) = torch.autograd.grad(value, made, retain_graph=True)  # (B, 3, fh, fw)
        strength = self.weight * self.ramp(images_seen) * self._balance(seen, reconstruction, pull)
        generator = linear(seen.reconstructions, strength * pull, value=strength * value)

        loss = self.loss.discriminator(real_logits, made_logits)
        figures = {"adversarial": value, "adversarial_strength": strength, "discriminator": loss}
        figures |= {"logits_real": real_logits.mean(), "logits_made": made_logits.mean()}
        if factor:
            (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            r1 = slope.square().flatten(1).sum(dim=1).mean()
            loss = loss + factor * r1
            figures["r1"] = r1
        return Judged(generator, loss, {name: x.detach() for name, x in figures.items()})

    def _balance(self, seen: Pass, reconstruction: Tensor, pull: Tensor) -> Tensor:
        if isinstance(self.balance, FixedBalance):  # which looks at no gradients: they need not be made
            return self.balance(pull, pull)
        weights = seen.autoencoder.last_layer.weight
        (first,) = torch.autograd.grad(reconstruction, seen.reconstructions, retain_graph=True)

        def at_last_layer(gradient: Tensor) -> Tensor:
            found = torch.autograd.grad(
                seen.reconstructions, weights, grad_outputs=gradient, retain_graph=True
            )
            return found[0].detach().float()

        return self.balance(at_last_layer(first), at_last_layer(pull))

    def untouched(self) -> Tensor:
        """Zero, with a zero gradient to every weight: DDP waits for each weight's gradient, begun or not."""
        return torch.stack([x.sum() for x in self.discriminator.parameters()]).sum() * 0.0

    def drop_gradients(self) -> None:
        """So that the optimizer passes the discriminator over."""
        for weight in self.discriminator.parameters():
            weight.grad = None


def linear(at: Tensor, slope: Tensor, *, value: Tensor) -> Tensor:
    """The scalar ``value`` with the gradient ``slope`` (the shape of ``at``) to ``at``, and none to anything else."""
    return value.detach() + ((at - at.detach()) * slope.detach()).sum()


def mean_over_processes(x: Tensor) -> Tensor:
    return sum_over_processes(x) / num_processes()


def sum_over_processes(x: Tensor) -> Tensor:
    if num_processes() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
