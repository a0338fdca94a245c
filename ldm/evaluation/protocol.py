"""The passport of a score: how it was measured, as plain data with one hash. Two hashes never share a table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.evaluation.scores import Score

RECORDED = ("made_with",)  # fields that are written down but not hashed
_METRIC = re.compile(r"[a-z0-9][a-z0-9_.]*(/[a-z0-9_.]+)*")


class MixedProtocols(ValueError):
    """Scores that were measured in different ways were to share a table."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that changes a score's value besides the model that is scored.

    What a metric has no use for keeps its default: a loss has no sampler, a grade of shapes no feature network.

    ``made_with`` is recorded, not hashed. A hash over the commit would part all scores at every change of a comment,
    and be ignored within a week; a change of what is measured raises the metric's ``version`` instead, which is hashed.

    Attributes:
        metric: Its stable name: small letters, digits, ``_``, ``.``, parts divided by ``/``.
        version: Of the measure itself: raised whenever its code begins to give other numbers.
        reference: The reference set, for people.
        reference_hash: Of what the reference set holds, not of where it lies.
        prompts_hash: Of the prompts that pictures were made from.
        num_images: Pictures measured, for each seed.
        resize: How pictures came to the measure's size, such as "bicubic 299, antialiased".
        features: The feature network, for people.
        features_hash: Of its weights.
        sampler: As ``part_to_plain`` writes it, like ``grid`` and ``guidance``.
        num_steps: Of the grid.
        weights: "ema", "online", or the name of an average, without its file's hash: that names the model.
        ema_width: Decay or sigma_rel of the average, as the run's config writes it.
        codec_hash: Of the autoencoder that encodes the reference and decodes the samples.
        precision: That the network ran in, such as "float32" or "bf16".
        seeds: Of the sampling noise.
        details: What only this metric knows: bins, kernel, number of neighbours.
        made_with: Commit, versions, device.
    """

    metric: str
    version: int = 1
    reference: str = ""
    reference_hash: str = ""
    prompts_hash: str = ""
    num_images: int = 0
    resize: str = ""
    features: str = ""
    features_hash: str = ""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    guidance: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    ema_width: float | None = None
    codec_hash: str = ""
    precision: str = "float32"
    seeds: tuple[int, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _METRIC.fullmatch(self.metric):
            raise ValueError(
                f"a metric cannot be called {self.metric!r}: small letters, digits, '_' and '.', parts divided by '/'"
            )
        for entry in fields(self):  # as JSON will give it back, so that what is read equals what was written
            value = getattr(self, entry.name)
            if isinstance(value, Mapping):
                object.__setattr__(self, entry.name, json.loads(canonical(dict(value))))
        object.__setattr__(self, "seeds", tuple(self.seeds))

    @property
    def hash(self) -> str:
        """SHA-256 of all fields but ``made_with``, 64 hex digits: the same way of measuring has the same one."""
        hashed = {name: value for name, value in self.to_plain().items() if name not in RECORDED}
        return hashlib.sha256(canonical(hashed).encode()).hexdigest()

    def to_plain(self) -> dict[str, Any]:
        return {**asdict(self), "seeds": list(self.seeds)}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Protocol:
        """
        Raises:
            ValueError: It has fields that this version does not know, or lacks one that it needs.
        """
        try:
            return Protocol(**plain)
        except TypeError as error:
            raise ValueError(f"not a protocol this version of ldm understands ({error})") from None


def canonical(plain: Any) -> str:
    """JSON that is the same text for the same content: keys sorted, no spaces, no NaN, 2.0 as 2.

    Raises:
        ValueError: There is something that JSON cannot hold.
    """
    try:
        return json.dumps(_whole(plain), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"a protocol holds plain data only: {error}") from None


def _whole(value: Any) -> Any:
    """Whole numbers as integers: a scale of 2 from a command line and of 2.0 from a file are one scale."""
    if isinstance(value, Mapping):
        return {key: _whole(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differences(first: Protocol, second: Protocol) -> Iterator[tuple[str, Any, Any]]:
    """Hashed fields that differ, entries of mappings by their dotted names: (name, here, there)."""
    one, other = (dict(_flat(protocol.to_plain())) for protocol in (first, second))
    for name in dict.fromkeys([*one, *other]):
        here, there = one.get(name), other.get(name)
        if name.split(".")[0] not in RECORDED and canonical(here) != canonical(there):
            yield name, here, there


def refuse_mixed(scores: Sequence[Score], *, across: Sequence[str] = ()) -> None:
    """Let scores share a table only where each metric was measured in one way.

    Args:
        scores: Of any number of metrics and runs; scores of different metrics never meet.
        across: Fields that may differ because they are what is compared, such as "guidance" or "guidance.scale".

    Raises:
        MixedProtocols: Naming the metric, the runs and every field that differs.
    """
    first: dict[str, Score] = {}
    for score in scores:
        known = first.setdefault(score.metric, score)
        if known.protocol.hash == score.protocol.hash:
            continue
        wrong = [
            f"{name} ({_shown(here)} / {_shown(there)})"
            for name, here, there in differences(known.protocol, score.protocol)
            if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in across)
        ]
        if wrong:
            raise MixedProtocols(
                f"{score.metric} of {known.run} and of {score.run} was not measured in the same way: they differ in "
                f"{', '.join(wrong)}; evaluate both alike, or name what is to be compared by across=[...]"
            )


def _flat(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    """Hashes in their first digits, what is missing as "nothing"."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,}", value):
        return value[:12]
    return "nothing" if value in (None, "", {}, []) else str(value)
