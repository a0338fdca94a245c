"""What is scored, as metrics see it, and what they say of it.

A metric is a small object with a YAML in configs/metrics. It says beforehand which files it needs, in which way it
measures (its passports) and which pictures which network must look at, so that one walk serves all metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from typing import Protocol as Interface

import torch
from torch import Tensor

from ldm.evaluation.features import FeatureNetwork, Features
from ldm.evaluation.frechet import Moments
from ldm.evaluation.looking import Pictures
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.scores import PerSample
from ldm.evaluation.together import Together
from ldm.interfaces import LatentCodec
from ldm.needs import Need


class Samples(Pictures, Interface):
    """Pictures that the run makes."""

    @property
    def captions(self) -> Sequence[str]:
        """The prompt of each."""
        ...

    @property
    def prompts_hash(self) -> str: ...


class Prompt(NamedTuple):
    """One picture to be made."""

    text: str
    seed: int


class Subject(Interface):
    """One checkpoint of a run, loaded, with everything that metrics ask of it."""

    @property
    def module(self) -> Any:
        """The task's module, for what only it can do."""
        ...

    @property
    def data(self) -> Any:
        """The run's data module, or None where its data are not here."""
        ...

    @property
    def makes_pictures(self) -> bool:
        """Whether it makes pictures of prompts."""
        ...

    @property
    def seeds(self) -> Sequence[int]:
        """Of the sampling noise: a metric of samples is measured once for each."""
        ...

    @property
    def title(self) -> str:
        """Run, images seen and weights, for people."""
        ...

    @property
    def folder(self) -> Path:
        """Where pictures and tables about it go."""
        ...

    @property
    def together(self) -> Together: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def batch_size(self) -> int: ...

    def passport(self, metric: str, *, samples: bool, **fields: Any) -> Protocol:
        """A protocol with what this subject knows, and with ``fields``.

        Args:
            metric: Its name.
            samples: Whether it is about pictures that the run makes, so that sampler, guidance and seeds belong to it.
        """
        ...

    def samples(self, prompts: Sequence[Prompt]) -> Samples:
        """The pictures of these prompts."""
        ...

    def captions(self, split: str, num: int) -> list[str]:
        """Captions of ``num`` pictures of the "train" or "val" set, spread over it, always the same.

        Where there are more than pictures, each is asked again, and may be told in other words.
        """
        ...

    def reference(self, split: str, num: int | None = None, *, one_size: bool = False) -> Pictures:
        """The pictures of the "train" or "val" set, or ``num`` of them spread over it.

        Args:
            one_size: Of buckets only the fullest.

        Raises:
            FileNotFoundError: They are not on this machine.
            ValueError: The run has no such set.
        """
        ...

    def reconstructions(self, originals: Pictures) -> Pictures:
        """The pictures through the run's autoencoder and back."""
        ...

    def pairs(self, originals: Pictures) -> Pictures:
        """Each picture and its reconstruction, as one of six channels."""
        ...

    def codec(self, path: str | None = None) -> LatentCodec:
        """An autoencoder's file, opened; None for the run's own autoencoder."""
        ...

    def opened(self, network: FeatureNetwork) -> Features:
        """On its device; each network is opened once."""
        ...

    def features(self, pictures: Pictures, network: FeatureNetwork) -> Tensor:
        """What the network makes of the pictures, (N, ...) in order; looked at once for all metrics."""
        ...

    def moments(self, pictures: Pictures, network: FeatureNetwork) -> Moments:
        """Mean and covariance of the same, for any number of pictures."""
        ...


class Look(NamedTuple):
    """Pictures that a network must have looked at before a metric can say anything."""

    pictures: Pictures
    network: FeatureNetwork


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One score of a metric.

    Attributes:
        protocol: How it was measured.
        value: The score: of several seeds their mean.
        num: The number of pictures, for each seed.
        per_seed: Of each seed alone.
        influence: (n,) by how much each picture pulls the value, with any mean; their bootstrapped mean makes the
            interval. None where ``low`` and ``high`` are given, or none can be.
        low, high: Ends of the 95 % interval, where the metric knows a better one.
        interval: How they were found.
        lower_is_better: None where neither end is better.
        per_sample: Values of single pictures, for paired differences.
        extra: More about it, plain data.
    """

    protocol: Protocol
    value: float
    num: int
    per_seed: tuple[float, ...] = ()
    influence: Tensor | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    lower_is_better: bool | None = True
    per_sample: PerSample | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Metric(Interface):
    """Something to be measured of a run."""

    def needs(self) -> Sequence[Need]:
        """The files and packages it works with; looked for before anything is loaded."""
        ...

    def unfit(self, subject: Subject) -> str:
        """Why it cannot be measured of this run; "" where it can."""
        ...

    def protocols(self, subject: Subject) -> list[Protocol]:
        """How each of its scores will be measured."""
        ...

    def looks(self, subject: Subject) -> list[Look]:
        """What has to be looked at."""
        ...

    def measure(self, subject: Subject) -> list[Measured]:
        """Its scores, each with one of ``protocols``. Called on all processes; the first one's counts."""
        ...
