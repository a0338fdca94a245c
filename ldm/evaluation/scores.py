"""One score of one checkpoint as a JSON record in the run folder, with its interval and its whole protocol.

::

    <run>/evaluation/scores/<metric>-<checkpoint>-<first 8 digits of the protocol's hash>.json
    <run>/evaluation/scores/...npz     the same name: values of single samples, where the metric has them
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ldm.evaluation.protocol import Protocol, canonical

FORMAT = 1
FOLDER = Path("evaluation", "scores")


@dataclass(frozen=True)
class PerSample:
    """Values of single samples: what paired differences between two runs are made of.

    Attributes:
        keys: N names; two runs' values are paired by them.
        values: (N, K) float64, K such as noise levels or 1; NaN where a sample has none.
        columns: K names.
    """

    keys: tuple[str, ...]
    values: np.ndarray
    columns: tuple[str, ...] = ("value",)

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.keys), len(self.columns)):
            raise ValueError(
                f"values of single samples are {self.values.shape}, but there are {len(self.keys)} keys and "
                f"{len(self.columns)} columns"
            )
        if len(set(self.keys)) != len(self.keys):
            raise ValueError(
                "values of single samples: a key stands there twice, so that pairs are not clear"
            )


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number, how sure it is, of what, and how it was measured.

    Attributes:
        value: The score itself.
        low, high: Ends of its 95 % interval; None where no interval can be given.
        interval: How the interval was made, for people.
        num: What the interval is over, such as the number of pictures.
        per_seed: The score of each sampling seed alone, in the order of the protocol's seeds.
        lower_is_better: False for accuracies and similarities; None where neither end is better.
        run: ``<name>/<run id>``.
        checkpoint: Its file or folder name.
        checkpoint_hash: Tells the model that was scored from all others.
        images_seen: By the training, when the checkpoint was written.
        extra: More numbers about it, plain data, in no table.
    """

    protocol: Protocol
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""
    num: int
    per_seed: tuple[float, ...] = ()
    lower_is_better: bool | None = True
    run: str
    checkpoint: str
    checkpoint_hash: str = ""
    images_seen: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [self.value, *self.per_seed, *(x for x in (self.low, self.high) if x is not None)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{self.protocol.metric} of {self.run} is not a finite number: {numbers}")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.protocol.metric}: give both ends of the interval, or none")
        object.__setattr__(self, "per_seed", tuple(self.per_seed))
        object.__setattr__(self, "extra", json.loads(canonical(dict(self.extra))))

    @property
    def metric(self) -> str:
        return self.protocol.metric

    @property
    def stem(self) -> str:
        """Of its files: the same for the same checkpoint measured in the same way."""
        name, hash_ = self.metric.replace("/", "."), self.protocol.hash[:8]
        return f"{name}-{Path(self.checkpoint).stem}-{hash_}"

    def to_plain(self) -> dict[str, Any]:
        # The hash is there for people and for other programs; read_scores computes its own.
        return {
            "format": FORMAT,
            "metric": self.metric,
            **asdict(self),
            "per_seed": list(self.per_seed),
            "protocol": self.protocol.to_plain(),
            "protocol_hash": self.protocol.hash,
        }

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Score:
        """
        Raises:
            ValueError: It is no score, or its protocol is not the one that its hash was made of.
        """
        values = dict(plain)
        try:
            given, told = values.pop("format"), values.pop("protocol_hash")
            values.pop("metric")
            if given != FORMAT:
                raise ValueError(f"it has format {given}, this version of ldm reads {FORMAT}")
            score = Score(**{**values, "protocol": Protocol.from_plain(values["protocol"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is no score that this version of ldm understands ({error})") from None
        if score.protocol.hash != told:
            raise ValueError("its protocol is not the one that was hashed: it was changed by hand")
        return score


def write_score(run: str | Path, score: Score, *, per_sample: PerSample | None = None) -> Path:
    """Write the record into a run folder, in one go; one of the same checkpoint and protocol is replaced."""
    folder = Path(run) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if per_sample is not None:  # first: a record never names values that are not there
        buffer = BytesIO()
        np.savez_compressed(
            buffer,
            keys=np.array(per_sample.keys, dtype=str),
            values=per_sample.values.astype(np.float64),
            columns=np.array(per_sample.columns, dtype=str),
        )
        _replace(folder / f"{score.stem}.npz", buffer.getvalue())
    text = json.dumps(score.to_plain(), indent=1, allow_nan=False) + "\n"
    return _replace(folder / f"{score.stem}.json", text.encode())


def read_scores(run: str | Path) -> list[Score]:
    """All scores of a run folder, by metric, then by images seen; empty where nothing was evaluated.

    Raises:
        ValueError: A record cannot be read; it is named.
    """
    found = []
    for file in sorted((Path(run) / FOLDER).glob("*.json")):
        try:
            found.append(Score.from_plain(json.loads(file.read_text())))
        except ValueError as error:  # json's errors are ValueErrors too
            raise ValueError(f"{file}: {error}; delete it and evaluate again") from None
    return sorted(found, key=lambda score: (score.metric, score.images_seen))


def find_score(run: str | Path, protocol: Protocol, checkpoint_hash: str) -> Score | None:
    """The score of this checkpoint measured in this way, if there is one already."""
    same = [
        score
        for score in read_scores(run)
        if (score.protocol.hash, score.checkpoint_hash) == (protocol.hash, checkpoint_hash)
    ]
    return same[0] if same else None


def read_per_sample(run: str | Path, score: Score) -> PerSample | None:
    """The single samples' values that belong to a score; None where none were kept."""
    file = Path(run) / FOLDER / f"{score.stem}.npz"
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        return PerSample(
            keys=tuple(map(str, arrays["keys"])),
            values=arrays["values"],
            columns=tuple(map(str, arrays["columns"])),
        )


def newest(scores: Sequence[Score]) -> dict[str, Score]:
    """Metric -> its score of the checkpoint that had seen most pictures."""
    return {score.metric: score for score in sorted(scores, key=lambda score: score.images_seen)}


def _replace(path: Path, content: bytes) -> Path:
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(content)
    os.replace(hidden, path)
    return path
