"""Optimizers of other packages, told which parameters may decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ldm.training.optim import decayed_apart, groups, split_parameters


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """An optimizer class of torch or of a package that a config may name, over our groups of parameters.

    In a config ``optimizer`` is the class with ``_partial_: true`` and its own options; the schema checks them against
    the class.

    Args:
        optimizer: The class with its options, still to be given its parameters. Must take groups, as all of
            ``torch.optim`` do.
        weight_decay: Of matrices and kernels; norms, biases and embeddings have none.
        matrices_only: Give it the weights of linear layers only, for optimizers such as ``torch.optim.Muon``; there
            must be nothing else to train.

    Raises:
        ValueError: ``matrices_only``, and there are other parameters to train.
    """

    optimizer: Callable[..., Any]
    weight_decay: float = 0.0
    matrices_only: bool = False

    def __call__(self, parts: Mapping[str, nn.Module]) -> Optimizer:
        matrices, others = split_parameters(parts)
        if self.matrices_only and others:
            raise ValueError(
                f"optimizer.matrices_only=true, but {len(others)} of the parameters to train are no linear layer's "
                f"weights: use optimizer=muon, which has AdamW for them"
            )
        return self.optimizer(groups(matrices, self.weight_decay) + decayed_apart(others, self.weight_decay))

    @property
    def _class(self) -> Any:
        return getattr(self.optimizer, "func", self.optimizer)  # what _partial_ wraps

    @property
    def name(self) -> str:
        return str(self._class.__name__)

    @property
    def needs_whole_weights(self) -> bool:
        """bitsandbytes' kernels read a weight's memory; of one that is spread (DTensor) they know no layout."""
        return str(self._class.__module__).partition(".")[0] == "bitsandbytes"
