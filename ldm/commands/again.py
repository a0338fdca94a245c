"""``python sample.py from_image=<png>``: make a picture again from the recipe in its file, and compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from ldm.commands.guide import GUIDE, with_guide
from ldm.commands.inputs import read_inputs
from ldm.commands.load import device_for, load_run
from ldm.commands.pictures import Work, decoder_hash, generation_of
from ldm.sampling.recipe import Recipe, plain_to_part, read_recipe, write_png
from ldm.training.checkpoint import checkpoint_with_hash, is_checkpoint, list_checkpoints
from ldm.training.run import find_run


def again(
    picture_file: Path, *, run: str | None, device: str, out: str | None, runs: str, console: Console
) -> Path:
    """Make the picture again, say whether it is the same, and return the file it was written to.

    Args:
        picture_file: A PNG that sample.py wrote.
        run: Where its checkpoint is now, if it has moved.
        device: "auto" takes the kind of device it was made on.
        out: Folder for the new file; None means beside the old one.
        runs: The folder that holds the runs.

    Raises:
        FileNotFoundError: A picture it was made from is not there any more.
        ValueError: The file has no recipe, or its checkpoint or autoencoder is not there any more, or a picture it was
            made from is another one now.
    """
    recipe = read_recipe(picture_file)
    parts = {name: plain_to_part(getattr(recipe, name)) for name in ("sampler", "grid", "guidance")}
    mode = plain_to_part(recipe.mode)
    inputs = read_inputs(mode.files(), made_with=recipe.inputs)
    place = device_for(recipe.device if device == "auto" else device)
    loaded = load_run(find_checkpoint(recipe, run, runs=runs), weights=recipe.weights, runs=runs)
    codec_hash = decoder_hash(loaded.module.codec)
    if codec_hash != recipe.codec_hash:
        raise ValueError(
            f"{picture_file} was decoded by autoencoder {recipe.codec_hash[:12]}, the run's is now "
            f"{codec_hash[:12]}: bring the former file back to where the run's config names it"
        )
    generation, guide = with_guide(
        replace(generation_of(loaded, place), num_steps=recipe.num_steps, **parts),
        device=place,
        runs=runs,
        made_with=recipe.inputs.get(GUIDE, {}).get("sha256"),
    )
    work = Work(
        loaded=loaded,
        generation=generation,
        mode=mode,
        inputs=inputs,
        guide=guide,
        latent_size=recipe.latent_size,
        batch_size=recipe.batch_size,
        device=place,
    )
    # A batch full of this one picture: kernels see the shape they saw then, and it stands in its former row.
    batch = work.make([recipe.request()] * recipe.batch_size, console=console)
    made = batch[recipe.row]  # (3, fH, fW)
    now = work.recipe(recipe.request(), row=recipe.row)
    file = (Path(out) if out else picture_file.parent) / f"{picture_file.stem}-again.png"
    write_png(file, made, now)
    console.print(f"{file}: {compare(made, picture_file)}", soft_wrap=True, highlight=False)
    for name, version in recipe.versions.items():
        if now.versions.get(name) != version:
            console.print(f"note: made with {name} {version}, now {now.versions.get(name)}", highlight=False)
    return file


def find_checkpoint(recipe: Recipe, run: str | None, *, runs: str) -> Path:
    """The checkpoint the picture was made with, known by its hash.

    Looked for where the recipe says, or in ``run`` if that is given; among all checkpoints of a run, because the newest
    is another one while a run trains.
    """
    named = Path(run or recipe.checkpoint)
    if is_checkpoint(named):
        files = [named, *list_checkpoints(named.resolve().parent)]
    else:
        files = list_checkpoints(find_run(run or recipe.run, runs=runs).checkpoints)
    if found := checkpoint_with_hash(files, recipe.checkpoint_hash):
        return found
    looked = ", ".join(dict.fromkeys(map(str, files))) or "none, the run has no checkpoints"
    raise ValueError(
        f"the picture was made with checkpoint {recipe.checkpoint_hash[:12]}, once {recipe.checkpoint}, and none "
        f"looked at has this hash ({looked}): name it by run=<checkpoint>"
    )


def compare(made: Tensor, picture_file: Path) -> str:
    """In words, how (3, H, W) uint8 differs from the picture in a file."""
    with Image.open(picture_file) as picture:
        before = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    if before.shape != made.shape:
        return f"differs from {picture_file}: {tuple(made.shape[1:])} pixels instead of {tuple(before.shape[1:])}"
    difference = (made.int() - before.int()).abs()
    if not difference.any():
        return f"the same picture as {picture_file}, bit for bit"
    share = float((difference.amax(0) > 0).float().mean())
    return (
        f"differs from {picture_file} in {share:.1%} of its pixels, by at most {int(difference.max())} of 255"
    )
