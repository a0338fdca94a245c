"""Metrics of an autoencoder's reconstructions: PSNR, SSIM, LPIPS and the Fréchet distance (rFID).

Pictures go through the posterior's mean and come back as bytes. Each pair of original and reconstruction is looked at
as one picture of six channels, so that all measures share the walk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor

from ldm.evaluation.features import Codecs, FeatureNetwork, Features, within
from ldm.evaluation.frechet import Moments, frechet_distance, frechet_influence
from ldm.evaluation.looking import Pictures
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.quality import psnr, ssim
from ldm.evaluation.scores import PerSample
from ldm.evaluation.subject import Look, Measured, Subject
from ldm.needs import Need


class MeasureOfPairs(FeatureNetwork, Interface):
    """How alike the two pictures of a pair are: pairs (B, 6, H, W) -> (B,)."""

    @property
    def lower_is_better(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class ByFormula(ABC):
    """Base of the measures that need no network."""

    label: str
    title: str = ""
    resizing: str = "none"
    lower_is_better: bool = False

    def needs(self) -> list[Need]:
        return []

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        return Features(self.label, self.resizing, lambda pairs: self.compare(pairs[:, :3], pairs[:, 3:]))

    @abstractmethod
    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (B, 3, H, W) uint8 -> (B,)."""


@dataclass(frozen=True, kw_only=True)
class PsnrOfPairs(ByFormula):
    """In dB."""

    label: str = "psnr"

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        return psnr(a, b)


@dataclass(frozen=True, kw_only=True)
class SsimOfPairs(ByFormula):
    label: str = "ssim"

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        return ssim(a, b)


@dataclass(frozen=True, kw_only=True)
class OfReconstructions(ABC):
    """Base of the metrics of reconstructions.

    Args:
        split: The pictures: "train" or "val".
        num_images: How many; None for all.
    """

    split: str = "val"
    num_images: int | None = 5000

    @abstractmethod
    def needs(self) -> Sequence[Need]: ...

    def unfit(self, subject: Subject) -> str:
        return "" if subject.codec().downsample > 1 else "its autoencoder is the identity"

    def originals(self, subject: Subject) -> Pictures:
        return subject.reference(self.split, self.num_images)

    def passport(self, subject: Subject, name: str, **fields: Any) -> Protocol:
        originals = self.originals(subject)
        return subject.passport(
            name,
            samples=False,
            reference=originals.title,
            reference_hash=originals.content_hash,
            num_images=sum(originals.sizes),
            **fields,
        )


@dataclass(frozen=True, kw_only=True)
class Reconstruction(OfReconstructions):
    """PSNR and SSIM, or other measures of pairs: the mean over pictures. See ``OfReconstructions``.

    Args:
        measures: Each a score.
    """

    measures: Sequence[MeasureOfPairs] = field(default_factory=lambda: (PsnrOfPairs(), SsimOfPairs()))

    def needs(self) -> list[Need]:
        return [
            need
            for i, measure in enumerate(self.measures)
            for need in within(f"measures.{i}", measure.needs())
        ]

    def protocols(self, subject: Subject) -> list[Protocol]:
        return [
            self.passport(
                subject,
                measure.label,
                features=measure.title,
                features_hash=subject.opened(measure).content_hash if measure.title else "",
            )
            for measure in self.measures
        ]

    def looks(self, subject: Subject) -> list[Look]:
        pairs = subject.pairs(self.originals(subject))
        return [Look(pairs, measure) for measure in self.measures]

    def measure(self, subject: Subject) -> list[Measured]:
        found = []
        pairs = subject.pairs(self.originals(subject))
        for protocol, measure in zip(self.protocols(subject), self.measures, strict=True):
            values = subject.features(pairs, measure).double()  # (N,)
            found.append(
                Measured(
                    protocol=protocol,
                    value=float(values.mean()),
                    num=len(values),
                    influence=values,
                    lower_is_better=measure.lower_is_better,
                    per_sample=PerSample(tuple(pairs.keys), values[:, None].numpy()),
                )
            )
        return found


@dataclass(frozen=True, kw_only=True)
class ReconstructionFrechet(OfReconstructions):
    """The Fréchet distance of reconstructions from their originals: rFID in Inception's features.

    Args:
        features: The network whose features are compared.
        name: Of the score; None for one that names the features.
    """

    features: FeatureNetwork
    name: str | None = None

    def needs(self) -> list[Need]:
        return within("features", self.features.needs())

    def protocols(self, subject: Subject) -> list[Protocol]:
        return [
            self.passport(
                subject,
                self.name or f"reconstruction_frechet_{self.features.label}",
                resize=self.features.resizing,
                features=self.features.title,
                features_hash=subject.opened(self.features).content_hash,
            )
        ]

    def looks(self, subject: Subject) -> list[Look]:
        originals = self.originals(subject)
        return [Look(originals, self.features), Look(subject.reconstructions(originals), self.features)]

    def measure(self, subject: Subject) -> list[Measured]:
        theirs, own = (self._seen(subject, look) for look in self.looks(subject))
        a, b = Moments.of(own), Moments.of(theirs)
        (protocol,) = self.protocols(subject)
        return [
            Measured(
                protocol=protocol,
                value=frechet_distance(a, b),
                num=len(own),
                influence=frechet_influence(own, a, b),
            )
        ]

    def _seen(self, subject: Subject, look: Look) -> Tensor:
        return subject.features(look.pictures, self.features).to(subject.device)
