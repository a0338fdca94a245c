"""What ``ldm search`` may turn, each with the range it is turned in, and what a turn means for ``ldm evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ldm.commands.messages import nearest


class Trial(Protocol):
    """What is asked of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Real:
    """A number in [low, high]."""

    low: float
    high: float
    log: bool = False

    def draw(self, trial: Trial, name: str) -> float:
        # To three digits: what is found can be typed, and neighbours share a score.
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.3g}")


@dataclass(frozen=True)
class Whole:
    """A whole number in [low, high], by ratios."""

    low: int
    high: int

    def draw(self, trial: Trial, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, log=self.low > 0)


@dataclass(frozen=True)
class Choice:
    """One of several."""

    options: tuple[str, ...]

    def draw(self, trial: Trial, name: str) -> str:
        return str(trial.suggest_categorical(name, self.options))


@dataclass(frozen=True)
class Span:
    """Two numbers of [low, high], the first in the lower and the second in the upper half."""

    low: float
    high: float

    def draw(self, trial: Trial, name: str) -> list[float]:
        middle = (self.low + self.high) / 2
        first = trial.suggest_float(f"{name} from", self.low, middle)
        second = trial.suggest_float(f"{name} to", middle, self.high)
        return [float(f"{x:.2g}") for x in (first, second)]


Range = Real | Whole | Choice | Span

SIGMA_REL = "ema.sigma_rel"  # makes an average first; all others are overrides of ldm evaluate
RANGES: dict[str, Range] = {
    "guidance.scale": Real(1.0, 8.0),
    "guidance.interval": Span(0.0, 1.0),
    "guidance.rescale": Real(0.0, 1.0),
    SIGMA_REL: Real(0.03, 0.2, log=True),
    "sampler": Choice(("euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "ddim")),
    "grid": Choice(("uniform", "log_snr", "karras", "quadratic")),
    "num_steps": Whole(4, 64),
}


@dataclass(frozen=True)
class Knob:
    """One thing to turn."""

    name: str
    within: Range

    def draw(self, trial: Trial) -> Any:
        return self.within.draw(trial, self.name)


def knobs_of(over: Sequence[str]) -> list[Knob]:
    """ "guidance.scale", "num_steps=5:30", "sampler=euler|heun" -> knobs.

    Raises:
        ValueError: A name that cannot be turned, one given twice, or a range that does not fit it.
    """
    knobs = []
    for entry in over:
        name, _, told = entry.partition("=")
        if name not in RANGES:
            raise ValueError(f"over: '{name}' cannot be searched over; {nearest(name, RANGES)}")
        try:
            knobs.append(Knob(name, _narrowed(RANGES[name], told) if told else RANGES[name]))
        except ValueError:
            raise ValueError(f"over: '{entry}' is no range of {name}; write {_example(name)}") from None
    if not knobs or len({knob.name for knob in knobs}) < len(knobs):
        raise ValueError(f"over={list(over)}: name one or more things to turn, each once")
    return knobs


def overrides(values: dict[str, Any], *, average: Callable[[float], str]) -> list[str]:
    """What is drawn as overrides of ``ldm evaluate``.

    Args:
        average: Makes an average of this sigma_rel and returns its name.
    """
    out = []
    for name, value in values.items():
        if name == SIGMA_REL:
            out.append(f"weights={average(float(value))}")
        elif isinstance(value, list):
            out.append(f"{name}=[{','.join(map(str, value))}]")
        else:
            out.append(f"{name}={value}")
    return sorted(out, key=lambda entry: "." in entry.partition("=")[0])  # groups before their values


def _narrowed(known: Range, told: str) -> Range:
    if isinstance(known, Choice):
        return Choice(tuple(told.split("|")))
    first, last = told.split(":")
    if not float(first) < float(last):
        raise ValueError(told)
    if isinstance(known, Whole):
        return Whole(int(first), int(last))
    return replace(known, low=float(first), high=float(last))


def _example(name: str) -> str:
    known = RANGES[name]
    if isinstance(known, Choice):
        return f"{name}={'|'.join(known.options[:2])}"
    return f"{name}={known.low}:{known.high}"
