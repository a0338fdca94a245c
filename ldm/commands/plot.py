"""``ldm plot``: what a diffusion's schedule, law of time, weighting and sampling grid look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from ldm.commands import compose
from ldm.commands.curves import Curves, curves
from ldm.commands.curves_picture import PANELS, draw
from ldm.commands.messages import nearest
from ldm.diffusion.diffusion import Diffusion
from ldm.sampling.grids import Grid

GROUP = compose.CONFIGS / "diffusion"


def plot(
    *,
    diffusion: Diffusion,
    grid: Grid,
    num_steps: int,
    latents: list[int],
    label: str | None,
    compare: list[str],
    panels: list[str],
    out: str,
) -> None:
    """Draw a diffusion: alpha and sigma, log-SNR, law of time, effective weight, and a sampler's steps, in one PNG.

    Any schedule, law, weighting or grid that a config can name is drawn, with its values changed as anywhere:
    ``ldm plot diffusion=sd3 diffusion.schedule.shift.factor=6 grid=log_snr``.

    Args:
        diffusion: A preset of configs/diffusion, or any other.
        grid: The sampling grid.
        num_steps: Of the grid.
        latents: [C, H, W], for schedules that depend on it.
        label: The first one's name in the legend; null for its schedule's.
        compare: Others to draw beside it, each a preset (``ddpm``) or the first with parts exchanged
            (``schedule=cosine``, ``'diffusion=ddpm grid=log_snr'``).
        panels: Which to draw, of signal, log_snr, steps, time_law, snr_law and weight, in this order.
        out: The PNG to write.

    Raises:
        ValueError: Something named in ``compare`` is not there, or does not fit together.
    """
    if len(latents) != 3 or min(latents) < 1:
        raise ValueError(f"latents={latents} must be [channels, height, width]")
    if wrong := [name for name in panels if name not in PANELS]:
        raise ValueError(f"panels: there is no '{wrong[0]}'; {nearest(wrong[0], PANELS)}")
    if not panels:
        raise ValueError(f"panels is empty: name some of {', '.join(PANELS)}")
    channels, height, width = latents

    def seen(one: Diffusion, its_grid: Grid, name: str) -> Curves:
        return curves(one.for_latents((channels, height, width)), its_grid, num_steps, label=name)

    drawn = [seen(diffusion, grid, label or type(diffusion.schedule).__name__)]
    drawn += [seen(*exchanged(diffusion, grid, entry), entry) for entry in compare]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(shortened(drawn), path, panels=panels)
    print(f"wrote {path}")


def exchanged(diffusion: Diffusion, grid: Grid, entry: str) -> tuple[Diffusion, Grid]:
    """A diffusion and a grid with the parts of an entry of ``compare`` in their place.

    Raises:
        ValueError: There is no such part or choice.
    """
    for word in entry.split():
        part, equals, choice = word.partition("=")
        if not equals:
            part, choice = "diffusion", word
        parts = [
            "diffusion",
            "grid",
            *(field.name for field in fields(Diffusion) if (GROUP / field.name).is_dir()),
        ]
        if part not in parts:
            raise ValueError(
                f"compare: '{word}' names no part that could be exchanged; {nearest(part, parts)}"
            )
        built = built_choice(part if part in ("diffusion", "grid") else f"diffusion/{part}", choice)
        if part == "grid":
            grid = built
        else:
            diffusion = built if part == "diffusion" else replace(diffusion, **{part: built})
    return diffusion, grid


def built_choice(group: str, choice: str) -> Any:
    """The object of one file of a config group."""
    known = sorted(path.stem for path in (compose.CONFIGS / group).glob("*.yaml"))
    if choice not in known:
        raise ValueError(f"compare: {group} has no choice '{choice}'; {nearest(choice, known)}")
    config = compose.load("plot", [f"{group}={choice}"])
    for key in group.split("/"):
        config = config[key]
    return instantiate(config, _convert_="all")


def shortened(drawn: Sequence[Curves]) -> list[Curves]:
    """Labels without what they all begin with: "cosine" for "schedule=cosine" where only schedules are compared."""
    parts = {one.label.partition("=")[0] for one in drawn[1:] if "=" in one.label}
    alike = len(parts) == 1 and all(one.label.count("=") == 1 for one in drawn[1:])
    if not alike:
        return list(drawn)
    return [drawn[0], *(replace(one, label=one.label.partition("=")[2]) for one in drawn[1:])]
