"""``ldm search``: how a run is sampled best, for how many calls of its network. Small, budgeted, resumable."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ldm.commands import compose
from ldm.commands.ema import ema
from ldm.commands.load import device_for, load_run
from ldm.commands.main import run as run_verb
from ldm.commands.scored import generation_of
from ldm.commands.search_space import Knob, knobs_of, overrides
from ldm.evaluation.scores import Score
from ldm.needs import package, refuse_unmet
from ldm.sampling.generate import Generation
from ldm.training.figures import new_figure, save
from ldm.training.run import find_run


@dataclass(frozen=True)
class Tried:
    """One way of sampling, measured."""

    number: int
    overrides: tuple[str, ...]
    value: float
    low: float | None
    high: float | None
    calls: int  # of the network, for one picture


def search(
    *,
    run: str,
    over: list[str],
    trials: int = 30,
    metric: str = "composition",
    score: str | None = None,
    evaluate: list[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    name: str = "search",
    runs: str = "runs",
) -> list[Tried]:
    """Try ways of sampling a run and draw the best of them against network calls: the Pareto front.

    Optuna proposes, ``ldm evaluate`` measures, so every value has its protocol. The study is kept in
    <run>/search/<name>: the same command goes on until there are so many trials, and draws front.png and trials.csv.
    The front shows the best of many noisy values, which flatters them: evaluate what is chosen with another seed.

    Args:
        run: run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``.
        over: what is turned, e.g. [guidance.scale,num_steps], or within what: [guidance.scale=1:4,sampler=euler|heun].
        trials: how many in all, those of former calls included.
        metric: a choice of configs/metrics.
        score: which of its scores, where it has several; e.g. composition/seen/all_right.
        evaluate: further overrides for ``ldm evaluate``, e.g. [num_prompts=200].
        seed: of the proposals.
        device: "auto", "cpu" or "cuda".
        name: of the study.
        runs: folder of all runs.

    Raises:
        MissingNeeds: Optuna is not installed.
        ValueError: Something cannot be turned, or there is not one score.
    """
    refuse_unmet([package("optuna", extra="search")])
    knobs = knobs_of(over)
    where = find_run(run, runs=runs)
    folder = where.path / "search" / name
    folder.mkdir(parents=True, exist_ok=True)
    given = [f"run={where.path}", f"metrics=[{metric}]", f"device={device}", *(evaluate or ())]
    judge = _Judge(run=str(where.path), given=given, score=score, device=device)
    study = _study(folder, [knob.name for knob in knobs], seed=seed)
    _run_trials(study, knobs, judge, trials=trials)
    tried = _finished(study)
    if not tried:
        raise ValueError(f"trials={trials}: give at least 1")
    front = pareto(tried, lower_is_better=bool(study.user_attrs["lower_is_better"]))
    label = str(study.user_attrs["score"])
    write(tried, front, folder / "trials.csv")
    draw(tried, front, folder / "front.png", label=label)
    console = Console()
    console.print(_table(front, label=label, num=len(tried)))
    console.print(f"written to {folder}", soft_wrap=True)
    return front


@dataclass(frozen=True)
class _Judge:
    """Measures one way of sampling."""

    run: str
    given: Sequence[str]
    score: str | None
    device: str

    def measure(self, turned: Sequence[str]) -> Score:
        found: list[Score] = run_verb("evaluate", [*self.given, *turned])
        names = [one.metric for one in found]
        wanted = [one for one in found if self.score in (None, one.metric)]
        if len(wanted) != 1:
            raise ValueError(f"score={self.score}: name one of {', '.join(names) or 'none'}")
        return wanted[0]

    def calls(self, turned: Sequence[str]) -> int:
        """Rows that the network is shown for one picture: counted, since samplers, grids and guidance differ."""
        from hydra.utils import instantiate

        config = compose.load("evaluate", [*self.given, *turned])
        loaded = load_run(self.run)
        place = device_for(self.device)
        parts = {part: instantiate(config[part], _convert_="all") for part in ("sampler", "grid", "guidance")}
        loaded.module.to(place)
        generation = generation_of(loaded, place, num_steps=config.num_steps, runs=config.runs, **parts)
        if generation is None:
            raise ValueError(f"{self.run} makes no pictures: there is nothing to sample")
        return calls_for_one_picture(generation, loaded.module.latent_size)


def calls_for_one_picture(generation: Generation, latent_size: tuple[int, int]) -> int:
    """How many rows the network is shown while one picture is made."""
    shown = 0

    def count(module: Any, arguments: tuple[torch.Tensor, ...], output: Any) -> None:
        nonlocal shown
        shown += len(arguments[0])

    handle = generation.network.register_forward_hook(count)  # type: ignore[attr-defined]
    try:
        generation.images(["a picture"], [0], latent_size=latent_size, batch_size=1)
    finally:
        handle.remove()
    return shown


# --------------------------------------------------------------------------------------------------- the study


def _study(folder: Path, names: Sequence[str], *, seed: int) -> Any:
    """
    Raises:
        ValueError: There is a study of this name over other things.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        directions=["minimize", "minimize"],  # a score that is better when high comes with its sign turned
        load_if_exists=True,
    )
    known = study.user_attrs.get("over")
    if known is not None and known != list(names):
        raise ValueError(f"{folder} is a study over {', '.join(known)}: give this one another name=...")
    study.set_user_attr("over", list(names))
    # What is proposed next must not be what was proposed first, when a study goes on.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), multivariate=False)
    return study


def _run_trials(study: Any, knobs: Sequence[Knob], judge: _Judge, *, trials: int) -> None:
    def objective(trial: Any) -> tuple[float, float]:
        values = {knob.name: knob.draw(trial) for knob in knobs}
        turned = overrides(values, average=lambda width: ema(run=judge.run, sigma_rel=width).stem)
        trial.set_user_attr("overrides", turned)
        found = judge.measure(turned)
        calls = judge.calls([entry for entry in turned if not entry.startswith("weights=")])
        trial.set_user_attr("value", [found.value, found.low, found.high])
        study.set_user_attr("lower_is_better", bool(found.lower_is_better))
        study.set_user_attr("score", found.metric)
        return (found.value if found.lower_is_better else -found.value), float(calls)

    # Ones that were cut off, by Ctrl-C or a full disk, are not finished and do not count.
    done = sum(trial.values is not None for trial in study.trials)
    if trials > done:
        study.optimize(objective, n_trials=trials - done)


def _finished(study: Any) -> list[Tried]:
    return [_tried(trial) for trial in study.trials if trial.values is not None]


def _tried(trial: Any) -> Tried:
    value, low, high = trial.user_attrs["value"]
    return Tried(trial.number, tuple(trial.user_attrs["overrides"]), value, low, high, int(trial.values[1]))


# --------------------------------------------------------------------------------------------------- the front


def pareto(tried: Sequence[Tried], *, lower_is_better: bool) -> list[Tried]:
    """Those that no other one beats in value at as few calls, by calls."""
    sign = 1 if lower_is_better else -1
    front: list[Tried] = []
    for one in sorted(tried, key=lambda one: (one.calls, sign * one.value, one.number)):
        if not front or sign * one.value < sign * front[-1].value:
            front.append(one)
    return front


def write(tried: Sequence[Tried], front: Sequence[Tried], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "calls", "value", "low", "high", "on_front", "overrides"])
        for one in tried:
            ends = ["" if x is None else x for x in (one.low, one.high)]
            writer.writerow([one.number, one.calls, one.value, *ends, one in front, " ".join(one.overrides)])


def draw(tried: Sequence[Tried], front: Sequence[Tried], path: Path, *, label: str) -> Path:
    """All that was tried, and the front with its intervals."""
    figure, plot = new_figure()
    plot.plot(
        [one.calls for one in tried], [one.value for one in tried], "o", ms=4, alpha=0.35, color="#888888"
    )
    calls, values = [one.calls for one in front], [one.value for one in front]
    below = [one.value - (one.value if one.low is None else one.low) for one in front]
    above = [(one.value if one.high is None else one.high) - one.value for one in front]
    plot.errorbar(
        calls, values, yerr=[below, above], fmt="o-", ms=5, capsize=3, label="best for so many calls"
    )
    plot.set_xscale("log")
    plot.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    plot.set_xlabel("network calls for one picture")
    plot.set_ylabel(label)
    plot.legend(frameon=False, fontsize=9)
    return save(figure, path)


def _table(front: Sequence[Tried], *, label: str, num: int) -> Table:
    table = Table(title=f"the best of {num} for so many network calls a picture")
    for name in ("calls", label, "95 %", "how"):
        table.add_column(name, justify="left" if name == "how" else "right", overflow="fold")
    for one in front:
        ends = "-" if one.low is None or one.high is None else f"{one.low:.4g} to {one.high:.4g}"
        table.add_row(str(one.calls), f"{one.value:.4g}", ends, " ".join(one.overrides))
    return table
