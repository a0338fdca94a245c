from __future__ import annotations

import torch
from torch import Tensor

from ldm.interfaces import Conditioning, Denoiser, Prediction
from ldm.sampling.guidance_distilled import Distilled


class Echo:
    """A factory whose denoiser answers the scale that it was told."""

    def denoiser(self, network: object, cond: Conditioning) -> Denoiser:
        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            assert cond.guidance is not None
            told = cond.guidance[:, None, None, None].expand_as(x_t)
            return Prediction(x0=told, eps=told)

        return denoise


def test_each_row_is_told_its_scale_and_nothing_else_changes() -> None:
    cond = Conditioning(
        tokens=torch.ones(2, 3, 4), mask=torch.ones(2, 3, dtype=torch.bool), pooled=torch.ones(2, 5)
    )
    x = torch.zeros(2, 1, 2, 2)
    guidance = Distilled(scale=2.5)
    assert not guidance.needs_uncond
    answer = guidance(Echo(), None, cond, None)(x, torch.ones(2))  # type: ignore[arg-type]
    assert torch.equal(answer.x0, torch.full_like(x, 2.5))
    answer = guidance(Echo(), None, cond, None, scales=[1.0, 4.0])(x, torch.ones(2))  # type: ignore[arg-type]
    assert answer.x0[:, 0, 0, 0].tolist() == [1.0, 4.0]
    assert cond.guidance is None
