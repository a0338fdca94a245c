"""``python sample.py run=<run> prompts=[...]``: pictures of prompts, each with its whole recipe in its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ldm.commands.again import again
from ldm.commands.film import Film, write_film
from ldm.commands.guide import check_guidance, with_guide
from ldm.commands.inputs import input_size, read_inputs, unit_of
from ldm.commands.load import load_run
from ldm.commands.pictures import Work, generation_of
from ldm.commands.prompts import read_prompts
from ldm.commands.sheet import digest, file_name, write_sheet
from ldm.interfaces import Guidance, Sampler
from ldm.sampling.from_run import FromRun, GuidanceFromRun, with_parts
from ldm.sampling.grids import Grid
from ldm.sampling.modes import Mode
from ldm.sampling.recipe import write_png
from ldm.sampling.request import Request
from ldm.training.ranks import launched


def sample(
    *,
    run: str | None,
    mode: Mode,
    prompts: list[str | dict[str, Any]] | None,
    prompts_file: str | None,
    negative: str | None,
    seeds: list[int] | None,
    num_images: int | None,
    num_steps: int | None,
    image_size: int | list[int] | None,
    original_size: list[int] | None,
    crop: list[int],
    batch_size: int,
    sampler: Sampler | FromRun,
    grid: Grid | FromRun,
    guidance: Guidance | FromRun | GuidanceFromRun,
    weights: str,
    device: str,
    out: str | None,
    trace: bool,
    from_image: str | None,
    runs: str = "runs",
) -> None:
    """Make pictures of prompts with a trained run, edit a picture, or make one again from its own file.

    Every prompt is drawn from every seed. Written are single PNGs, each with its recipe inside, and one labelled
    grid with a row per prompt. Under torchrun or srun the processes share the pictures.

    Args:
        run: Run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``, or one of its checkpoints.
        mode: text, image (mode.image, mode.strength), inpaint (mode.image, mode.mask), variations (mode.seed,
            mode.amount) or interpolate (mode.num_frames).
        prompts: What to draw: texts, or mappings with ``prompt``, ``negative``, ``seed``, ``guidance``.
        prompts_file: The same from a file: .txt with a text per line, or .jsonl with a mapping per line.
        negative: What to draw away from, for prompts without a negative prompt of their own.
        seeds: One picture of each prompt per seed; null means 0, 1, ... up to ``num_images``.
        num_images: Pictures per prompt; null means as many as ``seeds``, or 1.
        num_steps: Sampling steps; null means the run's own number.
        image_size: Pixels, one number or [height, width]; null means the size the run was trained at, or that of
            the picture to edit.
        original_size: [height, width] that a network with size conditioning is told the picture had before it was
            resized; null means the size it is made in.
        crop: [top, left] that such a network is told was cut off the picture, in pixels.
        batch_size: Pictures made at once. Other values may change the last bits of a picture.
        sampler: How to walk from noise to picture.
        grid: Where to stop on the way.
        guidance: How much the prompt counts.
        weights: "ema", "online", or the name of an average that ``ldm ema`` made.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        out: Where the PNGs go; null means ``<run folder>/pictures``.
        trace: Also show how the picture came about, as a film strip and an animated picture; for one picture.
        from_image: A PNG that this command wrote; its picture is made again, bit for bit on the same machine.
        runs: The folder that holds the runs.

    Raises:
        ValueError: Something asked for cannot be; found before any network runs.
    """
    console = Console()
    if from_image is not None:
        if prompts or prompts_file or seeds or num_images or trace:
            raise ValueError(
                "from_image makes its picture again as it was: "
                "leave out prompts, prompts_file, seeds, num_images and trace"
            )
        again(Path(from_image), run=run, device=device, out=out, runs=runs, console=console)
        return
    if not run:
        raise ValueError("no run is named: give run=<run folder or name>, or from_image=<png>")
    chosen_seeds = choose_seeds(seeds, num_images)
    requests = mode.requests(read_prompts(prompts, prompts_file, negative=negative), chosen_seeds)
    requests = [told_sizes(request, original_size, crop) for request in requests]
    if trace and len(requests) > 1:
        raise ValueError(
            f"trace=true shows how one picture came about, and {len(requests)} are asked for: "
            f"give one prompt and one seed"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    inputs = read_inputs(mode.files())

    loaded = load_run(run, weights=weights, runs=runs)
    with launched(device) as (ranks, place):
        console = Console(quiet=not ranks.is_main)
        generation = with_parts(
            generation_of(loaded, place), sampler=sampler, grid=grid, guidance=guidance, num_steps=num_steps
        )
        check_guidance(generation, loaded.module, requests)
        if image_size is None:
            image_size = input_size(inputs, unit_of(loaded.module))
        latent_size = choose_latent_size(image_size, loaded.module)
        diffusion, times = generation.path(latent_size)  # refuses grids that cannot be, too
        generation, guide = with_guide(generation, device=place, runs=runs)
        work = Work(
            loaded=loaded,
            generation=generation,
            mode=mode,
            inputs=inputs,
            guide=guide,
            latent_size=latent_size,
            batch_size=batch_size,
            device=place,
        )
        requests = with_all_scales(requests, generation.guidance)
        film = Film() if trace else None
        pictures = work.make(requests, console=console, on_step=film, ranks=ranks)
    if not ranks.is_main:
        return

    folder = Path(out) if out else loaded.folder.path / "pictures"
    files = []
    for i, request in enumerate(requests):
        recipe = work.recipe(request, row=i % batch_size)
        files.append(folder / file_name(recipe))
        write_png(files[-1], pictures[i], recipe)
    sheet_file = folder / f"grid-{digest(*(file.name for file in files))}.png"
    write_sheet(sheet_file, pictures, requests)
    which = f"{loaded.weights} weights of {loaded.checkpoint_path}"
    console.print(f"{len(requests)} pictures by the {which}, in {folder}", soft_wrap=True, highlight=False)
    console.print(f"grid: {sheet_file}", soft_wrap=True, highlight=False)
    if film is not None:
        strip, animated = write_film(
            film,
            pictures[0],
            codec=generation.codec,
            schedule=diffusion.schedule,
            times=times,
            title=requests[0].prompt or "any picture",
            stem=files[0].with_suffix(""),
        )
        console.print(f"film: {strip} and, animated, {animated}", soft_wrap=True, highlight=False)


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


def told_sizes(request: Request, original_size: list[int] | None, crop: list[int]) -> Request:
    """The request with what size conditioning is told; ValueError for what are no sizes."""
    if original_size is not None and (len(original_size) != 2 or min(original_size) < 1):
        raise ValueError(f"original_size={original_size} must be [height, width] in pixels")
    if len(crop) != 2 or min(crop) < 0:
        raise ValueError(f"crop={crop} must be [top, left] in pixels")
    original = None if original_size is None else (original_size[0], original_size[1])
    return replace(request, original_size=original, crop=(crop[0], crop[1]))


def choose_latent_size(image_size: int | list[int] | None, module: Any) -> tuple[int, int]:
    """(H, W) of the latents of such a picture; ValueError where codec or patches do not divide it."""
    if image_size is None:
        height, width = module.latent_size
        return int(height), int(width)
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    unit = unit_of(module)
    if len(sides) != 2 or any(side < 1 or side % unit for side in sides):
        raise ValueError(f"image_size={image_size} must be one or two multiples of {unit} for this run")
    stride = module.codec.downsample
    return sides[0] // stride, sides[1] // stride


def with_all_scales(requests: list[Request], guidance: Any) -> list[Request]:
    """Where some requests have a guidance scale of their own, all have: see ``Generation.pictures``."""
    if all(request.scale is None for request in requests):
        return requests
    own = float(guidance.scale)
    return [replace(request, scale=own) if request.scale is None else request for request in requests]
