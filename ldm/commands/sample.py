"""``python sample.py run=<run> prompts=[...]``: pictures of prompts, each with its whole recipe in its file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from ldm.commands.again import again
from ldm.commands.load import device_for, load_run
from ldm.commands.pictures import generation_of, make, recipe_of
from ldm.interfaces import Guidance, Sampler
from ldm.sampling.from_run import FromRun, GuidanceFromRun, with_parts
from ldm.sampling.grids import Grid
from ldm.sampling.recipe import Recipe, write_png
from ldm.training.grids import labelled_grid

PIXELS_PER_CELL = 128  # small pictures are enlarged in the grid


def sample(
    *,
    run: str | None,
    prompts: list[str] | None,
    seeds: list[int] | None,
    num_images: int | None,
    num_steps: int | None,
    image_size: int | list[int] | None,
    batch_size: int,
    sampler: Sampler | FromRun,
    grid: Grid | FromRun,
    guidance: Guidance | FromRun | GuidanceFromRun,
    weights: str,
    device: str,
    out: str | None,
    from_image: str | None,
    runs: str = "runs",
) -> None:
    """Make pictures of prompts with a trained run, or make a picture again from its own file.

    Every prompt is drawn from every seed. Written are single PNGs, each with its recipe inside, and one labelled
    grid with a row per prompt.

    Args:
        run: Run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``, or one checkpoint file.
        prompts: What to draw.
        seeds: One picture of each prompt per seed; null means 0, 1, ... up to ``num_images``.
        num_images: Pictures per prompt; null means as many as ``seeds``, or 1.
        num_steps: Sampling steps; null means the run's own number.
        image_size: Pixels, one number or [height, width]; null means the size the run was trained at.
        batch_size: Pictures made at once. Other values may change the last bits of a picture.
        sampler: How to walk from noise to picture.
        grid: Where to stop on the way.
        guidance: How much the prompt counts.
        weights: "ema" or "online".
        device: "auto", "cpu", "cuda", "cuda:1", ...
        out: Where the PNGs go; null means ``<run folder>/pictures``.
        from_image: A PNG that this command wrote; its picture is made again, bit for bit on the same machine.
        runs: The folder that holds the runs.

    Raises:
        ValueError: Something asked for cannot be; found before any network runs.
    """
    console = Console()
    if from_image is not None:
        if prompts or seeds or num_images:
            raise ValueError(
                "from_image makes its picture again as it was: leave out prompts, seeds and num_images"
            )
        again(Path(from_image), run=run, device=device, out=out, runs=runs, console=console)
        return
    if not run:
        raise ValueError("no run is named: give run=<run folder or name>, or from_image=<png>")
    prompts, seeds = list(prompts or []), choose_seeds(seeds, num_images)
    if not prompts:
        raise ValueError("there are no prompts: give prompts=['a red circle','two blue squares']")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")

    loaded = load_run(run, weights=weights, runs=runs)
    place = device_for(device)
    generation = with_parts(
        generation_of(loaded, place), sampler=sampler, grid=grid, guidance=guidance, num_steps=num_steps
    )
    latent_size = choose_latent_size(image_size, loaded.module)
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    all_prompts, all_seeds = zip(*jobs, strict=True)
    pictures = make(
        generation, all_prompts, all_seeds, latent_size=latent_size, batch_size=batch_size, console=console
    )

    folder = Path(out) if out else loaded.folder.path / "pictures"
    names = []
    for i, (prompt, seed) in enumerate(jobs):
        recipe = recipe_of(
            loaded,
            generation,
            prompt=prompt,
            seed=seed,
            latent_size=latent_size,
            batch_size=batch_size,
            row=i % batch_size,
            device=place,
        )
        names.append(file_name(recipe))
        write_png(folder / names[-1], pictures[i], recipe)
    several = len(seeds) > 1
    labels = [f"{prompt} (seed {seed})" if several else prompt for prompt, seed in jobs]
    sheet = labelled_grid(pictures, labels, columns=len(seeds) if several else 8, cell=PIXELS_PER_CELL)
    sheet_file = folder / f"grid-{digest(*names)}.png"
    sheet.save(sheet_file)
    which = f"{loaded.weights} weights of {loaded.checkpoint_path}"
    console.print(f"{len(jobs)} pictures by the {which}, in {folder}", soft_wrap=True, highlight=False)
    console.print(f"grid: {sheet_file}", soft_wrap=True, highlight=False)


def choose_seeds(seeds: list[int] | None, num_images: int | None) -> list[int]:
    """Seeds as given, or 0, 1, ...; ValueError where ``num_images`` says something else."""
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images={num_images} must be at least 1")
    if seeds is None:
        return list(range(num_images or 1))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)} must name at least one seed, and none twice")
    if num_images not in (None, len(seeds)):
        raise ValueError(
            f"num_images={num_images} but {len(seeds)} seeds are given: leave one of the two out"
        )
    return list(seeds)


def choose_latent_size(image_size: int | list[int] | None, module: Any) -> tuple[int, int]:
    """(H, W) of the latents of such a picture; ValueError where codec or patches do not divide it."""
    if image_size is None:
        height, width = module.latent_size
        return int(height), int(width)
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    stride = module.codec.downsample
    unit = stride * getattr(module.network, "patch_size", 1)
    if len(sides) != 2 or any(side < 1 or side % unit for side in sides):
        raise ValueError(f"image_size={image_size} must be one or two multiples of {unit} for this run")
    return sides[0] // stride, sides[1] // stride


def file_name(recipe: Recipe) -> str:
    """Readable, and another one for every other recipe: nothing is overwritten but by the same picture."""
    words = re.sub(r"\W+", "-", recipe.prompt.lower()).strip("-")[:60].strip("-") or "no-prompt"
    return f"{words}-seed{recipe.seed}-{digest(recipe.to_json())}.png"


def digest(*texts: str) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=4).hexdigest()
