"""Grades runs at several numbers of steps: the table and the picture of docs/few_steps.md.

    python benchmarks/few_steps.py --runs shapes_dit shapes_lcm shapes_meanflow --steps 1 2 4 8 25

Each run with its own sampler, grid and guidance; the same prompts from the same noise for all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from ldm.commands.evaluate import Report, evaluate
from ldm.commands.load import load_run
from ldm.sampling.from_run import FromRun, GuidanceFromRun, with_parts

PROMPTS = [
    "a red circle",
    "three green triangles",
    "a yellow ring to the left of a red square",
    "a cyan triangle above a purple circle",
]
GROUPS = ("seen", "never seen")
CELL, MARGIN = 64, 6


def graded(run: str, num_steps: int, *, num_prompts: int, runs: str, out: Path) -> Report:
    """The composition grade of a run at a number of steps; all of it is kept in a folder of ``out``."""
    return evaluate(
        run=run,
        num_prompts=num_prompts,
        num_steps=num_steps,
        sampler=FromRun(),
        grid=FromRun(),
        guidance=GuidanceFromRun(),
        runs=runs,
        out=str(out / f"{run.replace('/', '_')}_{num_steps}"),
    )


def line(run: str, num_steps: int, report: Report) -> str:
    """A row of the table: per cent all right, seen and never seen, with 95 % intervals."""
    cells = [report[group]["all_right"] for group in GROUPS]
    shown = [f"{100 * c['share']:.0f} ({100 * c['low']:.0f}-{100 * c['high']:.0f})" for c in cells]
    return f"| `{run}` | {num_steps} | {' | '.join(shown)} |"


def picture(names: list[str], steps: list[int], *, runs: str, out: Path) -> None:
    """The same prompts from the same noise: a row each, a column for each run and number of steps."""
    font = ImageFont.load_default(11)
    columns = []
    for name in names:
        loaded = load_run(name, runs=runs)
        parts = {"sampler": FromRun(), "grid": FromRun(), "guidance": GuidanceFromRun()}
        for number in steps:
            generation = with_parts(loaded.module.generation(), num_steps=number, **parts)
            seeds = list(range(len(PROMPTS)))
            size = loaded.module.latent_size
            images = generation.images(PROMPTS, seeds, latent_size=size, batch_size=len(PROMPTS))
            columns.append((f"{name}\n{number} step{'s'[: number > 1]}", images))
    sheet = Image.new(
        "RGB", (len(columns) * (CELL + MARGIN) + MARGIN, len(PROMPTS) * (CELL + MARGIN) + 34), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for place, (title, images) in enumerate(columns):
        left = MARGIN + place * (CELL + MARGIN)
        draw.multiline_text((left, 3), title.removeprefix("shapes_"), fill="black", font=font)
        for row, image in enumerate(images):
            pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
            sheet.paste(pixels, (left, 34 + row * (CELL + MARGIN)))
    sheet.quantize(128).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", nargs="+", default=["shapes_dit", "shapes_lcm", "shapes_meanflow"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--num-prompts", type=int, default=500, help="to grade; 0 for none")
    parser.add_argument("--folder", default="runs", help="that holds the runs")
    parser.add_argument("--out", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--picture", type=Path, help="where to draw the picture; none is drawn without")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = []
    for run in given.runs:
        for number in given.steps if given.num_prompts else ():
            report = graded(run, number, num_prompts=given.num_prompts, runs=given.folder, out=given.out)
            rows.append(line(run, number, report))
            print(json.dumps({"run": run, "num_steps": number, "row": rows[-1]}), flush=True)
    if rows:
        print("\n".join(["| run | steps | seen | never seen |", "|---|---|---|---|", *rows]))
    if given.picture:
        picture(given.runs, given.steps, runs=given.folder, out=given.picture)


if __name__ == "__main__":
    main()
