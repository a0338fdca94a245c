"""How near pictures are to their prompts in CLIP's space (CLIPScore: Hessel et al. 2021, 2104.08718)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.distribution import OfSamples
from ldm.evaluation.subject import Measured, Subject


def clip_similarity(pictures: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of embeddings (N, D) of unit length, (N,); the paper's eq. 1 has 2.5 in place of 100."""
    return 100 * (pictures.double() * texts.double()).sum(dim=1).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class ClipScore(OfSamples):
    """The mean over samples and their own captions. See ``OfSamples``; of the reference only the captions are used."""

    @property
    def scores(self) -> dict[str, bool]:
        return {self.name or "clip_score": False}

    def measure(self, subject: Subject) -> list[Measured]:
        texts = subject.opened(self.features).texts
        if texts is None:
            raise ValueError(f"clip_score: {self.features.title} reads no texts; give features=clip")
        captions = subject.captions(self.split, self.num_samples)
        size = subject.batch_size
        said = torch.cat([texts(captions[at : at + size]) for at in range(0, len(captions), size)])  # (N, D)
        (name,) = self.scores
        each = []
        for pictures in self.seen(subject):
            found = clip_similarity(pictures.cpu(), said)
            each.append((float(found.mean()), found))
        return self.scored(subject, {name: each})
