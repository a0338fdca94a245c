"""``ldm ablate``: one change at a time, several seeds, common data order and noise; ends with the paper's table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from ldm.commands import launch
from ldm.commands.compare import Comparison, compare
from ldm.commands.compare_runs import flat, is_identity
from ldm.commands.compare_tables import latex, markdown
from ldm.commands.jobs import launch_jobs
from ldm.commands.main import run as run_verb
from ldm.training.checkpoint import list_checkpoints
from ldm.training.run import RunFolder

BASE = "base"
SETTLED = ("trainer.precision",)  # null until the training's own machine decides


@dataclass(frozen=True)
class Training:
    """One run of an ablation."""

    label: str  # of its recipe: "base", or the change
    overrides: tuple[str, ...]
    folder: RunFolder

    @property
    def is_finished(self) -> bool:
        return self.folder.finished.is_file()


def ablate(
    *,
    base: str,
    vary: list[str],
    seeds: int | list[int] = 3,
    common: list[str] | None = None,
    metrics: list[str] | None = None,
    evaluate: list[str] | None = None,
    across: list[str] | None = None,
    launcher: str | None = None,
    name: str | None = None,
    out: str | None = None,
    folder: str = "runs",
) -> Comparison | None:
    """Train an experiment and each change of it alone with several seeds, evaluate all alike, and make the table.

    Runs of one seed see the same pictures in the same order with the same noise, so that differences are paired. Runs
    that have finished are not trained again, ones that were stopped go on: the same command continues an ablation. Ends
    with <out>.md and <out>.tex, the paper's table, and with <out>.html and <out>.csv of ``ldm compare``.

    Args:
        base: a choice of configs/experiment.
        vary: changes of it, each an override or several in one string, e.g. [network.depth=8,optimizer=muon].
        seeds: how many, from 0, or which.
        common: overrides of all runs, e.g. [num_images=100000,trainer=gpu].
        metrics: what is measured of each run, as for ``ldm evaluate``; empty to train only.
        evaluate: further overrides for ``ldm evaluate``.
        across: fields of the protocol that may differ, where a change is one of sampling, e.g. [guidance.scale].
        launcher: a choice of hydra/launcher, e.g. slurm; null trains here, one after another.
        name: of the ablation: its runs are <folder>/<name>/<change>-seed<n>; null for <base>_ablation.
        out: where the tables go, without an ending; null for <folder>/<name>/ablation.
        folder: of all runs.

    Raises:
        ConfigError: A change does not fit the experiment; nothing is trained then.
        ValueError: There is nothing to vary, a run of that name has another recipe, or trainings failed.
    """
    name = name or f"{base}_ablation"
    trainings = plan(base, vary, seeds=seeds, common=common or (), name=name, folder=folder)
    todo = [training for training in trainings if not training.is_finished]
    for training in trainings:  # all of them, before the first is trained
        refuse_another_recipe(training)
    print(f"{len(trainings)} runs, {len(trainings) - len(todo)} of them finished before")
    failures = launch_jobs([_started(training) for training in todo], launcher=launcher)
    if any(failures):
        told = "; ".join(f"{x.folder.path}: {why}" for x, why in zip(todo, failures, strict=True) if why)
        raise ValueError(
            f"{sum(map(bool, failures))} of {len(todo)} trainings failed, the same command goes on: {told}"
        )
    if unfinished := [str(training.folder.path) for training in todo if not training.is_finished]:
        raise ValueError(
            f"not finished, the same command goes on: {', '.join(unfinished)}"
        )  # a queue's time was up, or jobs were only handed in
    if not metrics:
        print(
            "no metrics were asked for: evaluate the runs, then give the same command again with metrics=[...]"
        )
        return None
    for training in trainings:
        given = [f"run={training.folder.path}", f"metrics=[{','.join(metrics)}]", f"runs={folder}"]
        run_verb("evaluate", [*given, *(evaluate or ())])
    return _concluded(trainings, across=across or [], out=out or str(Path(folder, name, "ablation")))


def plan(
    base: str,
    vary: Sequence[str],
    *,
    seeds: int | Sequence[int],
    common: Sequence[str],
    name: str,
    folder: str,
) -> list[Training]:
    """All runs, the base's first, each with its command line.

    Raises:
        ValueError: There is nothing to vary, or something twice.
    """
    if not vary:
        raise ValueError("vary is empty: name changes, such as vary=[network.qk_norm=false]")
    if len({slug(change) for change in vary}) < len(vary):
        raise ValueError(f"vary={list(vary)}: two changes would have the same name")
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={seeds}: give one or more, each once")
    trainings = []
    for label in (BASE, *vary):
        change = [] if label == BASE else shlex.split(label)
        for seed in numbers:
            run_id = f"{slug(label)}-seed{seed}"
            own = (
                f"name={name}",
                f"run_id={run_id}",
                f"seed={seed}",
                f"group={name}",
                f"paths.runs={folder}",
            )
            trainings.append(
                Training(
                    label=label,
                    overrides=(f"experiment={base}", *common, *change, *own),
                    folder=RunFolder(Path(folder, name, run_id)),
                )
            )
    return trainings


def slug(change: str) -> str:
    """A change as a folder's name: "weighting-min_snr" of "diffusion/weighting=min_snr"."""
    words = [re.sub(r"^[+~]*(\S*/)?", "", word) for word in change.split()]
    return re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-")


def refuse_another_recipe(training: Training) -> None:
    """Check a training's config, and that a run of its name, if there is one, was started with the same.

    Raises:
        ConfigError: The config does not hold.
        ValueError: The run that is there has another recipe.
    """
    config = launch.checked(training.overrides)
    if not training.folder.config.is_file():
        return
    wanted, resolved = (flat(OmegaConf.to_container(config, resolve=x)) for x in (False, True))
    there = flat(OmegaConf.to_container(training.folder.read_config(), resolve=False))
    wrong = [
        f"{key} {there.get(key, 'nothing')} / {wanted.get(key, 'nothing')}"
        for key in dict.fromkeys([*there, *wanted])
        if not is_identity(key)
        # Building the parts of a run replaces some references in its config by what they refer to.
        and there.get(key) not in (wanted.get(key), resolved.get(key))
        and not (key in SETTLED and wanted.get(key) is None)
    ]
    if wrong:
        raise ValueError(
            f"{training.folder.path} is a run of another recipe ({'; '.join(wrong[:5])}): give the ablation "
            "another name=..."
        )


def _started(training: Training) -> list[str]:
    """Its command line; with ``resume`` where it was stopped."""
    begun = training.folder.config.is_file()
    if begun and not list_checkpoints(training.folder.checkpoints):
        print(f"{training.folder.path} was stopped before its first checkpoint and begins anew")
    return [*training.overrides, *([f"resume={training.folder.path}"] if begun else [])]


def _concluded(trainings: Sequence[Training], *, across: list[str], out: str) -> Comparison:
    comparison = compare(
        runs=[str(training.folder.path) for training in trainings],
        labels=[training.label for training in trainings],
        across=across,
        out=out,
    )
    tables = {
        ".md": markdown(comparison.recipes, comparison.rows, notes=comparison.notes),
        ".tex": latex(comparison.recipes, comparison.rows, notes=comparison.notes),
    }
    for ending, text in tables.items():
        Path(f"{out}{ending}").write_text(text, encoding="utf-8")
    Console().print(f"and to {out}.md and {out}.tex", soft_wrap=True)
    return comparison
