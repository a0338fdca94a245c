"""``ldm evaluate``: does a run draw what it is asked for? Prompts of coloured shapes, graded by an exact reader."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from ldm.commands.guide import check_guidance, with_guide
from ldm.commands.load import LoadedRun, load_run
from ldm.data.shapes import BACKGROUND, COLOURS, KINDS
from ldm.data.shapes_captions import Prompt, evaluation_prompts
from ldm.data.shapes_render import OUTLINES
from ldm.evaluation.composition import ASPECTS, Grade, grade, tally
from ldm.evaluation.intervals import wilson
from ldm.evaluation.things import World
from ldm.interfaces import Guidance, Sampler
from ldm.randomness import address
from ldm.sampling.from_run import FromRun, GuidanceFromRun, with_parts
from ldm.sampling.generate import Generation
from ldm.sampling.grids import Grid
from ldm.sampling.recipe import part_to_plain
from ldm.sampling.request import Request
from ldm.training.grids import labelled_grid
from ldm.training.ranks import Ranks, launched, make_together

WORLD = World(BACKGROUND, COLOURS, OUTLINES)
NUM_SHOWN = 16  # right ones and wrong ones each, in the picture

Report = dict[str, dict[str, dict[str, float]]]
"""Group of prompts -> aspect -> right, asked, share, low, high (95 % interval)."""


def evaluate(
    *,
    run: str,
    num_prompts: int = 500,
    seed: int = 0,
    weights: str = "ema",
    num_steps: int | None = None,
    sampler: Sampler | FromRun,
    grid: Grid | FromRun,
    guidance: Guidance | FromRun | GuidanceFromRun,
    batch_size: int = 50,
    device: str = "auto",
    runs: str = "runs",
    out: str | None = None,
) -> Report:
    """Grade a run's pictures of prompts about coloured shapes: colour, shape, count, relation, all right.

    Half of the prompts ask for combinations as they occur in training, half for combinations that never do. Writes
    composition.json (the table and how it was made), composition.csv (a line per picture) and composition.png. Under
    torchrun or srun the processes share the pictures.

    Args:
        run: run folder, or its name in ``runs``, or a checkpoint file.
        num_prompts: how many pictures to make and grade.
        seed: of the prompts and of the noise the pictures start from.
        weights: "ema", "online", or the name of an average that ``ldm ema`` made.
        num_steps: sampling steps; null for the run's own.
        sampler: the run's own or another, e.g. sampler=heun.
        grid: the run's own or another, e.g. grid=log_snr.
        guidance: the run's own, with another strength by guidance.scale=4, or another.
        batch_size: pictures made at once.
        device: "auto", "cpu" or "cuda".
        runs: folder of all runs.
        out: folder to write to; null for ``<run>/evaluation``.

    Raises:
        ValueError: no prompts are asked for, or the run makes no pictures from prompts.
    """
    if num_prompts < 1 or batch_size < 1:
        raise ValueError(f"num_prompts={num_prompts} and batch_size={batch_size} must be 1 or more")
    loaded = load_run(run, weights=weights, runs=runs)
    if not hasattr(loaded.module, "generation"):
        raise ValueError(
            f"run {loaded.folder.path} makes no pictures from prompts; give one of task=diffusion"
        )
    with launched(device) as (ranks, place):
        module = loaded.module.to(place)
        generation = with_parts(
            module.generation(), sampler=sampler, grid=grid, guidance=guidance, num_steps=num_steps
        )
        generation, _ = with_guide(generation, device=place, runs=runs)
        prompts = evaluation_prompts(num_prompts, seed)
        seeds = [address(seed, "evaluation noise", i) for i in range(num_prompts)]
        check_guidance(generation, module, [Request(prompt=prompts[0].text, seed=seeds[0])])
        images = _pictures(
            generation, prompts, seeds, module.latent_size, batch_size, ranks=ranks, device=place
        )
    grades = grade(images.numpy(), prompts, WORLD)
    report = make_report(prompts, grades)
    if not ranks.is_main:
        return report
    folder = Path(out) if out else loaded.folder.path / "evaluation"
    title = f"{loaded.folder.name}/{loaded.folder.id}, {loaded.images_seen:,} images seen, {loaded.weights} weights"
    _write(folder, report, prompts, seeds, grades, recipe=_recipe(loaded, generation, num_prompts, seed))
    write_gallery(folder / "composition.png", images, prompts, grades, title=title)
    console = Console()
    console.print(make_table(report, title=title))
    console.print(f"written to {folder}", soft_wrap=True)
    return report


def _pictures(
    generation: Generation,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    latent_size: tuple[int, int],
    batch_size: int,
    *,
    ranks: Ranks,
    device: torch.device,
) -> Tensor:
    """One picture per prompt, made by all processes, with a progress bar: (N, 3, fH, fW) uint8."""

    def make(rows: Sequence[int]) -> Tensor:
        return generation.images(
            [prompts[row].text for row in rows],
            [seeds[row] for row in rows],
            latent_size=latent_size,
            batch_size=batch_size,
        )

    bar = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bar, console=Console(stderr=True, quiet=not ranks.is_main)) as progress:
        task = progress.add_task("", total=len(prompts))
        return make_together(
            make,
            len(prompts),
            batch_size=batch_size,
            ranks=ranks,
            device=device,
            on_batch=lambda done: progress.update(task, completed=done),
        )


def make_report(prompts: Sequence[Prompt], grades: Sequence[Grade]) -> Report:
    """Shares right with their 95 % intervals, for seen and never-seen combinations, whole and by kind of prompt."""
    report: Report = {}
    for group, seen in (("seen", True), ("never seen", False)):
        for kind in (None, *KINDS):
            chosen = [
                one
                for prompt, one in zip(prompts, grades, strict=True)
                if prompt.seen is seen and kind in (None, prompt.kind)
            ]
            report[group if kind is None else f"{group}, {kind}"] = {
                aspect: _share(right, asked) for aspect, (right, asked) in tally(chosen).items()
            }
    return report


def _share(right: int, asked: int) -> dict[str, float]:
    low, high = wilson(right, asked)
    share = right / asked if asked else float("nan")
    return {"right": right, "asked": asked, "share": share, "low": low, "high": high}


def make_table(report: Report, *, title: str) -> Table:
    """The report for people: per cent right, and the 95 % interval."""
    table = Table(title=title, caption="per cent right, 95 % interval; relation where one was asked for")
    table.add_column("combinations", no_wrap=True)
    table.add_column("prompts", justify="right")
    for aspect in ASPECTS:
        table.add_column(aspect.replace("_", " "), justify="right")
    for group, cells in report.items():
        whole = "," not in group
        table.add_row(
            group if whole else f"  {group.split(', ')[1]}",
            f"{cells['all_right']['asked']:.0f}",
            *(_cell(cells[aspect]) for aspect in ASPECTS),
            style="bold" if whole else "",
        )
    return table


def _cell(share: dict[str, float]) -> str:
    if not share["asked"]:
        return "-"
    # On two lines, so that the table fits into 80 columns.
    return f"{100 * share['share']:.1f}\n{100 * share['low']:.0f}-{100 * share['high']:.0f}"


def _recipe(loaded: LoadedRun, generation: Generation, num_prompts: int, seed: int) -> dict[str, Any]:
    """How the pictures came about, as plain data."""
    return {
        "run": str(loaded.folder.path),
        "checkpoint": str(loaded.checkpoint_path),
        "checkpoint_hash": loaded.checkpoint_hash,
        "weights": loaded.weights,
        "images_seen": loaded.images_seen,
        "num_prompts": num_prompts,
        "seed": seed,
        "num_steps": generation.num_steps,
        "sampler": part_to_plain(generation.sampler),
        "grid": part_to_plain(generation.grid),
        "guidance": part_to_plain(generation.guidance),
    }


def _write(
    folder: Path,
    report: Report,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    grades: Sequence[Grade],
    *,
    recipe: dict[str, Any],
) -> None:
    """composition.json and composition.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    # What was not asked has no share: null, since JSON has no NaN.
    shares = {
        group: {
            aspect: {name: None if value != value else value for name, value in share.items()}
            for aspect, share in cells.items()
        }
        for group, cells in report.items()
    }
    (folder / "composition.json").write_text(
        json.dumps({"recipe": recipe, "report": shares}, indent=1) + "\n"
    )
    with (folder / "composition.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "kind", "seen", "seed", *ASPECTS, "found"])
        for prompt, noise, one in zip(prompts, seeds, grades, strict=True):
            verdicts = [getattr(one, aspect) for aspect in ASPECTS]
            found = json.dumps([asdict(thing) for thing in one.found])
            writer.writerow([prompt.text, prompt.kind, prompt.seen, noise, *verdicts, found])


def write_gallery(
    path: Path, images: Tensor, prompts: Sequence[Prompt], grades: Sequence[Grade], *, title: str
) -> None:
    """The first right ones above the first wrong ones, with what was asked for and what was read."""
    rows = []
    for name, wanted in (("right", True), ("wrong", False)):
        chosen = [i for i, one in enumerate(grades) if one.all_right is wanted]
        if chosen:
            shown = chosen[:NUM_SHOWN]
            labels = [prompts[i].text if wanted else f"{prompts[i].text} / {_said(grades[i])}" for i in shown]
            head = f"{len(chosen)} of {len(grades)} {name}: {title}"
            rows.append(labelled_grid(images[shown], labels, columns=8, title=head))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _said(one: Grade) -> str:
    """What was read from a picture, in few words."""
    if not one.found:
        return "read: nothing"
    return "read: " + ", ".join(f"{thing.colour or 'odd'} {thing.shape or 'blot'}" for thing in one.found)
