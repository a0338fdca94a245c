"""Two more numbers that a network can be told beside the time; it starts as if it had not been told them.

So the weights of a network without them go on as a network with them, and the first answer is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.nn.layers import TimeEmbedding


class LateInputs(nn.Module):
    """Guidance scale and span of ``Conditioning``, added to what steers all blocks.

    Args:
        width: Of what steers the blocks.
        guidance: None for a network that is not told of guidance (2210.03142, section 3.1); else the scale it is told
            where the conditioning names none.
        average: Tell it the span, over which the velocity it answers is an average (2505.13447, section 4); where the
            conditioning names none it is 0, the velocity at t itself.
    """

    def __init__(self, width: int, *, guidance: float | None, average: bool) -> None:
        super().__init__()
        self.guidance = guidance
        self.guidance_embedding = None if guidance is None else TimeEmbedding(width)
        self.span_embedding = TimeEmbedding(width) if average else None
        self.silence()

    def silence(self) -> None:
        """Make it as if nothing were told: what a network does after all its weights were drawn."""
        for embedding in (self.guidance_embedding, self.span_embedding):
            if embedding is not None:
                silence(embedding)

    def forward(self, c: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """c (B, width) at t (B,) -> (B, width)."""
        if self.guidance_embedding is not None and self.guidance is not None:
            told = torch.full_like(t, self.guidance) if cond.guidance is None else cond.guidance
            c = c + self.guidance_embedding(told)
        if self.span_embedding is not None:
            c = c + self.span_embedding(torch.zeros_like(t) if cond.span is None else cond.span)
        return c


def silence(embedding: TimeEmbedding) -> None:
    """Make an embedding 0 for every input; its last layer learns from there."""
    for parameter in embedding.mlp[-1].parameters():
        nn.init.zeros_(parameter)
