"""A codebook: the nearest of K vectors (1711.00937), trained by gradients or as running means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Sum = Callable[[Tensor], Tensor]
"""A tensor -> its sum over all processes."""


class VectorQuantizer(nn.Module):
    """(B, C, H, W) -> the nearest codes, same shape.

    The codebook is a parameter either way, so that averaged weights hold an averaged codebook; where it is a running
    mean it takes no gradient.

    Args:
        num_codes: K.
        width: C.
        decay: Of the running means, per step; None trains by gradients.
        revive_below: Choices per step below which a code of a running-mean codebook is moved.
    """

    counts: Tensor
    sums: Tensor
    num_updates: Tensor

    def __init__(self, *, num_codes: int, width: int, decay: float | None, revive_below: float) -> None:
        super().__init__()
        self.num_codes, self.decay, self.revive_below = num_codes, decay, revive_below
        self.codebook = nn.Parameter(torch.randn(num_codes, width), requires_grad=decay is None)
        self._seen: tuple[Tensor, Tensor] | None = None  # counts and sums of the pieces of this step
        if decay is not None:
            self.register_buffer("counts", torch.ones(num_codes))
            self.register_buffer("sums", self.codebook.detach().clone())
            self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def forward(self, latents: Tensor) -> Tensor:
        """latents (B, C, H, W) -> the nearest codes (B, C, H, W); the codebook gets a gradient if it takes one."""
        return F.embedding(self.codes(latents), self.codebook).permute(0, 3, 1, 2)

    def codes(self, latents: Tensor) -> Tensor:
        """latents (B, C, H, W) -> (B, H, W) int64."""
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            rows = latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)  # (B*H*W, C)
            codebook = self.codebook.detach()
            # |z - e|^2 without |z|^2, which all codes have in common: one matrix product instead of N x K x C numbers.
            distances = codebook.square().sum(1) - 2 * rows @ codebook.T  # (B*H*W, K)
            return distances.argmin(dim=1).view(latents.shape[0], *latents.shape[2:])

    # --- the codebook as running means --------------------------------------------------------------------------------

    @torch.no_grad()
    def see(self, latents: Tensor) -> None:
        """Note which latents (B, C, H, W) of a training step chose which codes; nothing changes before ``settle``."""
        if self.decay is None:
            return
        rows = latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
        chosen = self.codes(latents).flatten()
        counts = torch.zeros_like(self.counts).index_add_(0, chosen, torch.ones_like(rows[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, rows)
        before = self._seen
        self._seen = (counts, sums) if before is None else (before[0] + counts, before[1] + sums)

    def forget(self) -> None:
        """The step is not made."""
        self._seen = None

    @torch.no_grad()
    def settle(self, total: Sum) -> None:
        """Move the codebook by what the step has seen on all processes (appendix A.1)."""
        if self._seen is None or self.decay is None:
            return
        counts, sums = (total(x) for x in self._seen)
        self._seen = None
        self.num_updates += 1
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.codebook.copy_(self.sums / self.counts[:, None].clamp(min=1e-5))
        self._revive()

    def _revive(self) -> None:
        """Halve the most chosen codes for those that nobody chooses, as in the algorithm of Linde, Buzo & Gray (1980).

        Codes begin where no latent may be, and without this would stay there. Alike on all processes.
        """
        order = self.counts.argsort(descending=True)
        dead_ones, busy = self.counts < self.revive_below, self.counts > 4 * self.revive_below
        num = int(torch.minimum(dead_ones.sum(), busy.sum()))
        if not num:
            return
        dead, split = order[-num:], order[:num]
        spread = self.codebook[busy].std(dim=0) if int(busy.sum()) > 1 else 1.0  # (C,)
        place = torch.Generator().manual_seed(int(self.num_updates))
        moved = 0.05 * spread * torch.randn(self.codebook[dead].shape, generator=place).to(self.codebook)
        self.counts[split] /= 2
        self.sums[split] /= 2
        self.counts[dead] = self.counts[split]
        self.codebook[dead] = self.codebook[split] + moved
        self.sums[dead] = self.codebook[dead] * self.counts[dead][:, None]
