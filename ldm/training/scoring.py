"""From metrics and a subject to records in the run folder; what is scored already is not scored again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm.evaluation.bootstrap import mean_interval
from ldm.evaluation.scores import Score, find_score, write_score
from ldm.evaluation.subject import Measured, Metric
from ldm.needs import MissingNeeds
from ldm.training.subject import Origin, RunSubject

BOOTSTRAP = "BCa bootstrap over pictures"
MANY = 20_000  # pictures of which fewer resamples tell the interval as well
Metrics = Mapping[str, Metric]


def refuse_lacking(metrics: Metrics, *, at: str = "metrics") -> None:
    """Before anything is loaded.

    Raises:
        MissingNeeds: Files of weights or packages are not on this machine; it names all of them.
    """
    lacking = [
        (f"{at}.{name}", need.at(f"{at}.{name}"))
        for name, metric in metrics.items()
        for need in metric.needs()
        if not need.is_met
    ]
    if lacking:
        raise MissingNeeds(lacking)


def fitting(metrics: Metrics, subject: RunSubject) -> tuple[dict[str, Metric], dict[str, str]]:
    """Those that can be measured of this run, and why the others cannot."""
    reasons = {name: metric.unfit(subject) for name, metric in metrics.items()}
    fit = {name: metric for name, metric in metrics.items() if not reasons[name]}
    return fit, {name: reason for name, reason in reasons.items() if reason}


def score(
    metrics: Metrics, subject: RunSubject, run: Path, *, again: bool = False
) -> tuple[dict[str, list[Score]], list[Score]]:
    """Measure what is not measured yet and write it down; the scores of each metric, and those that are new.

    Args:
        metrics: Those that fit.
        subject: What is scored, on all processes alike.
        run: The run folder.
        again: Measure also what is there.
    """
    found: dict[str, list[Score]] = {}
    for name, metric in metrics.items():
        known = [find_score(run, one, subject.origin.checkpoint_hash) for one in metric.protocols(subject)]
        there = [one for one in known if one is not None]
        if subject.together.told(len(there) == len(known) and not again):
            found[name] = there
    wanted = {name: metric for name, metric in metrics.items() if name not in found}
    subject.prepare([look for metric in wanted.values() for look in metric.looks(subject)])
    for name, metric in wanted.items():
        measured = metric.measure(subject)
        found[name] = [to_score(one, subject.origin) for one in measured]
        if subject.together.is_main:
            for one, record in zip(measured, found[name], strict=True):
                write_score(run, record, per_sample=one.per_sample)
    subject.forget()  # all is scored: what was seen of samples is not needed any more
    fresh = [one for name in wanted for one in found[name]]
    return {name: found[name] for name in metrics}, fresh


def to_score(measured: Measured, origin: Origin) -> Score:
    """The record of what a metric measured, with its interval."""
    low, high, how = measured.low, measured.high, measured.interval
    if measured.influence is not None and len(measured.influence) > 1:
        pulls = np.asarray(measured.influence, np.float64)
        found = mean_interval(pulls - pulls.mean(), num_resamples=1000 if len(pulls) > MANY else 10_000)
        low, high = measured.value + found.low, measured.value + found.high
        how = how or BOOTSTRAP
    return Score(
        protocol=measured.protocol,
        value=measured.value,
        low=low,
        high=high,
        interval=how,
        num=measured.num,
        per_seed=measured.per_seed,
        lower_is_better=measured.lower_is_better,
        run=origin.run,
        checkpoint=origin.checkpoint,
        checkpoint_hash=origin.checkpoint_hash,
        images_seen=origin.images_seen,
        extra=measured.extra,
    )
