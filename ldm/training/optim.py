"""Optimizers and learning-rate schedules.

An optimizer in a config is a recipe: called with the modules to train it returns a ``torch.optim.Optimizer``. Weight
decay is for matrices and convolution kernels only; norms, biases and embeddings have none. A learning-rate schedule is
a pure function of the images seen, so it cannot drift from the data on a restart or under gradient accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from ldm.training.muon import Muon

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch.optim.AdamW has fused=True


class OptimizerRecipe(Protocol):
    def __call__(self, parts: Mapping[str, nn.Module]) -> Optimizer: ...


class LearningRateSchedule(Protocol):
    def __call__(self, images_seen: int, num_images: int) -> float:
        """The factor on the base learning rate after ``images_seen`` of ``num_images`` pictures."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (1711.05101), fused where the device has it.

    Args:
        lr: Base learning rate.
        weight_decay: Decoupled decay of matrices and kernels.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
    """

    lr: float
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay, self.beta1, self.beta2)

    def __call__(self, parts: Mapping[str, nn.Module]) -> Optimizer:
        matrices, others = split_parameters(parts)
        return torch.optim.AdamW(
            groups(matrices, self.weight_decay) + decayed_apart(others, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=has_fused([*matrices, *others]),
        )


@dataclass(frozen=True, kw_only=True)
class MuonAdamW:
    """Muon for the matrices of linear layers, AdamW for everything else.

    Muon's update is scaled to AdamW's root mean square, so one learning rate is meant for both; ``adamw_lr`` sets it
    apart where that helps.

    Args:
        lr: Learning rate of the matrices.
        adamw_lr: Learning rate of the rest; ``lr`` when None.
        weight_decay: Decoupled decay of matrices and kernels.
        momentum: Of Muon, Nesterov's.
        beta1: AdamW's decay of the first moment.
        beta2: AdamW's decay of the second moment.
    """

    lr: float
    adamw_lr: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        rates = {"lr": self.lr, "adamw_lr": self.lr if self.adamw_lr is None else self.adamw_lr}
        for name, rate in rates.items():
            _check_rates(rate, self.weight_decay, self.momentum, self.beta1, self.beta2, name=name)

    def __call__(self, parts: Mapping[str, nn.Module]) -> Optimizer:
        matrices, others = split_parameters(parts)
        adamw_lr = self.lr if self.adamw_lr is None else self.adamw_lr
        optimizers: list[Optimizer] = []
        if matrices:
            optimizers.append(
                Muon(matrices, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum)
            )
        if others:
            optimizers.append(
                torch.optim.AdamW(
                    decayed_apart(others, self.weight_decay),
                    lr=adamw_lr,
                    betas=(self.beta1, self.beta2),
                    fused=has_fused(others),
                )
            )
        return Joined(optimizers)


def _check_rates(lr: float, weight_decay: float, *decays: float, name: str = "lr") -> None:
    if not lr > 0 or not weight_decay >= 0:
        raise ValueError(f"an optimizer needs {name} > 0 and weight_decay >= 0, got {lr} and {weight_decay}")
    if not all(0 <= decay < 1 for decay in decays):
        raise ValueError(f"an optimizer's momentum and betas must lie in [0, 1), got {list(decays)}")


class Joined(Optimizer):
    """Several optimizers that act as one, each on its own parameters.

    Args:
        optimizers: At least one.
        names: One for each where they minimise losses of their own: their gradients are then clipped apart.
    """

    def __init__(self, optimizers: list[Optimizer], *, names: Sequence[str] = ()) -> None:
        self.optimizers = optimizers
        self.names = list(names)
        super().__init__([group for part in optimizers for group in part.param_groups], defaults={})
        self._share_groups()

    def _share_groups(self) -> None:
        """The very dictionaries of the parts, so that a change of the learning rate reaches them."""
        self.param_groups = [group for part in self.optimizers for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.optimizers:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict["parts"]
        if len(states) != len(self.optimizers):
            raise ValueError(
                f"the state of {len(states)} optimizers cannot be loaded into {len(self.optimizers)}"
            )
        for part, state in zip(self.optimizers, states, strict=True):
            part.load_state_dict(state)
        self._share_groups()


def split_parameters(parts: Mapping[str, nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weights of linear layers, everything else), each once, only what requires a gradient."""
    modules = [module for part in parts.values() for module in part.modules()]
    linear = {id(m.weight) for m in modules if isinstance(m, nn.Linear)}
    trained = {id(p): p for part in parts.values() for p in part.parameters() if p.requires_grad}
    matrices = [p for key, p in trained.items() if key in linear]
    return matrices, [p for key, p in trained.items() if key not in linear]


def groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [{"params": parameters, "weight_decay": weight_decay}] if parameters else []


def decayed_apart(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Convolution kernels with decay; norms, biases, embeddings and learned tokens without."""
    kernels, rest = [p for p in parameters if p.ndim >= 4], [p for p in parameters if p.ndim < 4]
    return groups(kernels, weight_decay) + groups(rest, 0.0)


def has_fused(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch has one kernel for the whole AdamW step where these parameters live."""
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)


def weights_apart(optimizer: Optimizer) -> dict[str, list[nn.Parameter]]:
    """The weights that one loss moves, by the names of a ``Joined``; all, under "", where there is one loss."""
    if isinstance(optimizer, Joined) and optimizer.names:
        parts = zip(optimizer.names, optimizer.optimizers, strict=True)
        return {name: weights_of(part) for name, part in parts}
    return {"": weights_of(optimizer)}


def weights_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def set_learning_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Each group's learning rate becomes ``factor`` times the one it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def warmup_factor(images_seen: int, warmup_images: int) -> float:
    """Rises from near 0 to 1 over the first ``warmup_images`` pictures, then stays."""
    return min(1.0, (images_seen + 1) / warmup_images) if warmup_images > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class ConstantRate:
    """Warm-up, then constant."""

    warmup_images: int = 0

    def __call__(self, images_seen: int, num_images: int) -> float:
        return warmup_factor(images_seen, self.warmup_images)


@dataclass(frozen=True, kw_only=True)
class CosineRate:
    """Warm-up times half a cosine from 1 to ``final`` (1608.03983, without restarts)."""

    warmup_images: int = 0
    final: float = 0.0

    def __call__(self, images_seen: int, num_images: int) -> float:
        progress = min(1.0, images_seen / max(1, num_images))
        cosine = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        return warmup_factor(images_seen, self.warmup_images) * cosine


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Warm-up, constant, then linear decay to ``final`` over the last ``decay`` of training (2405.18392).

    Args:
        warmup_images: Pictures until the full rate.
        decay: Share of training that decays, in (0, 1].
        final: Factor at the end.
    """

    warmup_images: int = 0
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"decay={self.decay} must lie in (0, 1]: it is a share of training")

    def __call__(self, images_seen: int, num_images: int) -> float:
        left = max(0.0, 1.0 - images_seen / max(1, num_images))
        linear = self.final + (1 - self.final) * min(1.0, left / self.decay)
        return warmup_factor(images_seen, self.warmup_images) * linear


@dataclass(frozen=True, kw_only=True)
class InverseSquareRootRate:
    """Warm-up, constant for ``reference_images`` pictures, then falling with the root of the images seen.

    EDM2's (2312.02696, appendix B; alpha_ref is the optimizer's lr): it needs no end of training, so it goes with
    power-function averages, which stand for the decay that it lacks.

    Args:
        warmup_images: Pictures until the full rate.
        reference_images: Pictures from which on the rate is sqrt(reference_images / images_seen).
    """

    warmup_images: int = 0
    reference_images: int

    def __post_init__(self) -> None:
        if self.reference_images < 1:
            raise ValueError(
                f"reference_images={self.reference_images} must be positive: from there on the rate falls"
            )

    def __call__(self, images_seen: int, num_images: int) -> float:
        falling = math.sqrt(self.reference_images / max(images_seen, self.reference_images))
        return warmup_factor(images_seen, self.warmup_images) * falling
