"""What a computation would hold and compute, counted while it runs on the meta device, where tensors have no data."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm.planning.kernels import quick
from ldm.training.flops import flops_of


class Ledger(TorchDispatchMode):
    """Bytes of all tensors that are alive, their peak, and floating-point operations, of what runs inside.

    A tensor's memory counts from the operation that made it until the last one who holds it lets go: Python, a view, or
    autograd, which keeps what the backward pass needs. What existed before (weights, inputs) is not counted. Operations
    are counted by ``torch.utils.flop_counter``: matrix products, convolutions and attention, a multiplication and an
    addition being two.

    Attributes:
        live: Bytes alive now.
        peak: The most bytes that were alive at once since ``peak`` was last set.
        flops: Floating-point operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.flops = 0
        self._paused = False
        self._seen: dict[int, weakref.ref[Any]] = {}  # storages by their address

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch asks; where the answer is True it imports its compiler, which takes as long as the plan."""
        return False

    def hold(self, num_bytes: int) -> None:
        """Bytes that are alive from now on, without a tensor that stands for them; negative to let go."""
        self.live += num_bytes
        self.peak = max(self.peak, self.live)

    def spike(self, num_bytes: int) -> None:
        """Bytes that were alive for a moment, on top of what is alive now."""
        self.peak = max(self.peak, self.live + num_bytes)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is not counted here."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = quick(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        if self._paused:
            return out
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._see(x, given)
        self.flops += flops_of(func, args, kwargs, out)
        return out

    def _see(self, x: Tensor, given: set[int]) -> None:
        storage = x.untyped_storage()
        address = storage._cdata
        if address in self._seen or address in given:  # a view, or changed in place
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            if self._seen.pop(address, None) is not None:
                self.live -= size

        self._seen[address] = weakref.ref(storage, gone)
        self.hold(size)


def bytes_of(tensors: Iterator[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    sizes = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
    return sum(sizes.values())


def count(tensors: Iterator[Tensor]) -> int:
    """Elements of tensors."""
    return sum(prod(x.shape) for x in tensors)
