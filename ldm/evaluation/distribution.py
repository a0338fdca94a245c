"""Metrics of the law of a run's pictures against that of a reference set, in the eyes of a feature network.

frechet   FID with Inception, FD-DINOv2 with DINOv2 (2306.04675)
kernel    KID with Inception and a cubic kernel, CMMD with CLIP and a Gaussian one
manifold  precision, recall, density, coverage
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation.features import FeatureNetwork, within
from ldm.evaluation.frechet import Moments, frechet_distance, frechet_influence
from ldm.evaluation.kernel import Kernel, Polynomial, squared_mmd
from ldm.evaluation.looking import Pictures
from ldm.evaluation.manifold import fidelity
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.scores import PerSample
from ldm.evaluation.subject import Look, Measured, Prompt, Samples, Subject
from ldm.needs import Need
from ldm.randomness import address

NO_PICTURES = "it makes no pictures from prompts"


@dataclass(frozen=True, kw_only=True)
class OfSamples(ABC):
    """Base of the metrics that compare samples, made of the reference's own captions, with the reference.

    Args:
        features: The network whose features are compared.
        name: Of the score; None for one that names the features.
        num_samples: Pictures made for each seed. Published FIDs are of 50,000: with fewer they come out larger.
        split: The reference: "train" or "val".
        num_reference: Pictures of it; None for all.
    """

    features: FeatureNetwork
    name: str | None = None
    num_samples: int = 2000
    split: str = "train"
    num_reference: int | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 2 or (self.num_reference is not None and self.num_reference < 2):
            raise ValueError(
                f"num_samples={self.num_samples} and num_reference={self.num_reference} must be 2 or more"
            )

    @property
    @abstractmethod
    def scores(self) -> dict[str, bool]:
        """The names of its scores, and whether less is better."""

    @property
    def details(self) -> dict[str, Any]:
        """What else the scores depend on, plain data."""
        return {}

    def needs(self) -> Sequence[Need]:
        return within("features", self.features.needs())

    def unfit(self, subject: Subject) -> str:
        return "" if subject.makes_pictures else NO_PICTURES

    def protocols(self, subject: Subject) -> list[Protocol]:
        reference = self.reference(subject)
        return [
            subject.passport(
                name,
                samples=True,
                reference=reference.title,
                reference_hash=reference.content_hash,
                prompts_hash=self.samples(subject, subject.seeds[0]).prompts_hash,
                num_images=self.num_samples,
                resize=self.features.resizing,
                features=self.features.title,
                features_hash=subject.opened(self.features).content_hash,
                details=self.details,
            )
            for name in self.scores
        ]

    def looks(self, subject: Subject) -> list[Look]:
        return [Look(self.samples(subject, seed), self.features) for seed in subject.seeds]

    def reference(self, subject: Subject) -> Pictures:
        return subject.reference(self.split, self.num_reference)

    def samples(self, subject: Subject, seed: int) -> Samples:
        captions = subject.captions(self.split, self.num_samples)
        return subject.samples(
            [Prompt(text, address(seed, "evaluation noise", i)) for i, text in enumerate(captions)]
        )

    def seen(self, subject: Subject) -> list[Tensor]:
        """Features of the samples, (N, D) for each seed, where it is reckoned with them."""
        return [
            subject.features(self.samples(subject, seed), self.features).to(subject.device)
            for seed in subject.seeds
        ]

    def scored(self, subject: Subject, values: dict[str, list[tuple[float, Tensor]]]) -> list[Measured]:
        """Name -> value and influence of each seed."""
        found = []
        for protocol in self.protocols(subject):
            each = values[protocol.metric]
            per_seed = tuple(value for value, _ in each)
            pulls = [influence.double().cpu() for _, influence in each]
            # Values whose mean is the score: those of two runs are paired by the prompt, or by the reference picture.
            rows = torch.cat(
                [value + pull - pull.mean() for value, pull in zip(per_seed, pulls, strict=True)]
            )
            keys = [
                f"{seed}/{i}"
                for seed, pull in zip(subject.seeds, pulls, strict=True)
                for i in range(len(pull))
            ]
            found.append(
                Measured(
                    protocol=protocol,
                    value=sum(per_seed) / len(per_seed),
                    num=self.num_samples,
                    per_seed=per_seed,
                    influence=torch.cat(pulls),
                    per_sample=PerSample(tuple(keys), rows[:, None].numpy()),
                    lower_is_better=self.scores[protocol.metric],
                )
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Frechet(OfSamples):
    """The Fréchet distance (1706.08500, eq. 6): FID where the features are Inception's. See ``OfSamples``."""

    @property
    def scores(self) -> dict[str, bool]:
        return {self.name or f"frechet_{self.features.label}": True}

    def measure(self, subject: Subject) -> list[Measured]:
        theirs = subject.moments(self.reference(subject), self.features)
        theirs = Moments(theirs.num, theirs.mean.to(subject.device), theirs.cov.to(subject.device))
        (name,) = self.scores
        each = []
        for features in self.seen(subject):
            own = Moments.of(features)
            each.append((frechet_distance(own, theirs), frechet_influence(features, own, theirs)))
        return self.scored(subject, {name: each})


@dataclass(frozen=True, kw_only=True)
class KernelDistance(OfSamples):
    """The squared maximum mean discrepancy: KID (1801.01401) or CMMD (2401.09603), by features and kernel.

    Over all pairs of pictures at once, where the first KIDs were means over subsets: the same is expected, with less
    noise.

    Args:
        kernel: How alike two features are.
        unbiased: Leave each picture's likeness to itself out.
        scale: What the number is multiplied with: CMMD is told in thousandths.
    """

    kernel: Kernel = field(default_factory=Polynomial)
    unbiased: bool = True
    scale: float = 1.0

    @property
    def scores(self) -> dict[str, bool]:
        return {self.name or f"kernel_{self.features.label}": True}

    @property
    def details(self) -> dict[str, Any]:
        kernel = {"kind": type(self.kernel).__name__, **asdict(self.kernel)}  # type: ignore[call-overload]
        return {"kernel": kernel, "unbiased": self.unbiased, "scale": self.scale}

    def looks(self, subject: Subject) -> list[Look]:
        return [*super().looks(subject), Look(self.reference(subject), self.features)]

    def measure(self, subject: Subject) -> list[Measured]:
        theirs = subject.features(self.reference(subject), self.features).to(subject.device)
        (name,) = self.scores
        each = []
        for features in self.seen(subject):
            found = squared_mmd(features, theirs, self.kernel, unbiased=self.unbiased)
            each.append((self.scale * found.value, self.scale * found.influence))
        return self.scored(subject, {name: each})


@dataclass(frozen=True, kw_only=True)
class Manifold(OfSamples):
    """Precision and recall (1904.06991), density and coverage (2002.09797): four scores.

    The intervals are over pictures, with the other set's balls held still: they leave out that another draw of the
    samples has other balls, which recall and coverage feel.

    Args:
        nearest: The k-th nearest neighbour is as far as a ball reaches.
    """

    nearest: int = 5

    @property
    def scores(self) -> dict[str, bool]:
        names = ("precision", "recall", "density", "coverage")
        return {f"{name}_{self.features.label}": False for name in names}

    @property
    def details(self) -> dict[str, Any]:
        return {"nearest": self.nearest}

    def looks(self, subject: Subject) -> list[Look]:
        return [*super().looks(subject), Look(self.reference(subject), self.features)]

    def measure(self, subject: Subject) -> list[Measured]:
        theirs = subject.features(self.reference(subject), self.features).to(subject.device)
        values: dict[str, list[tuple[float, Tensor]]] = {name: [] for name in self.scores}
        for own in self.seen(subject):
            found = fidelity(own, theirs, nearest=self.nearest)
            for one in fields(found):
                verdicts = getattr(found, one.name)
                values[f"{one.name}_{self.features.label}"].append((float(verdicts.mean()), verdicts))
        return self.scored(subject, values)
