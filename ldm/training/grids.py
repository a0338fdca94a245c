"""Pictures a training shows of itself: samples of fixed prompts, and an autoencoder's reconstructions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.training.callbacks import EveryNumImages, evaluating, untimed
from ldm.training.ema import averaged_weights
from ldm.training.ranks import Ranks, make_together


class SampleGrid(EveryNumImages):
    """Sample fixed prompts from fixed noise with the averaged weights: <run>/samples/*.png and ``samples/grid``.

    The module gives ``generation(num_steps)`` and ``latent_size``.

    Args:
        prompts: what to draw; each prompt is a picture and the label under it.
        every_num_images: images seen between two grids; null draws one at the end.
        seed: picture i starts from the noise of seed + i, in every grid of every run.
        num_steps: sampling steps; null leaves it to the module.
        columns: pictures in a row.
        batch_size: pictures sampled at a time, by each process.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        every_num_images: int | None,
        seed: int = 0,
        num_steps: int | None = None,
        columns: int = 4,
        batch_size: int = 16,
    ) -> None:
        super().__init__(every_num_images=every_num_images)
        if not prompts:
            raise ValueError("SampleGrid: prompts is empty; give at least one, or take the callback out")
        self.prompts = list(prompts)
        self.seeds = [seed + i for i in range(len(self.prompts))]
        self.num_steps = num_steps
        self.columns = columns
        self.batch_size = batch_size

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        batch_size = min(self.batch_size, len(self.prompts))
        with evaluating(module), averaged_weights(trainer, module) as weights:
            generation = module.generation(self.num_steps)  # type: ignore[operator]

            def make(rows: Sequence[int]) -> Tensor:
                return generation.images(
                    [self.prompts[row] for row in rows],
                    [self.seeds[row] for row in rows],
                    latent_size=module.latent_size,
                    batch_size=batch_size,
                )

            pictures = make_together(
                make,
                len(self.prompts),
                batch_size=batch_size,
                ranks=Ranks(trainer.global_rank, trainer.world_size),
                device=module.device,
            )  # (N, 3, fH, fW) uint8
        if not trainer.is_global_zero:
            return
        title = f"{module.images_seen:,} images seen, {weights}"
        grid = labelled_grid(pictures, self.prompts, columns=self.columns, title=title)
        seen = int(module.images_seen)  # type: ignore[arg-type]
        show(trainer, grid, key="samples/grid", folder="samples", images_seen=seen)
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                told = {
                    "guidance": str(generation.guidance),
                    "num_steps": generation.num_steps,
                    "images_seen": seen,
                    "weights": weights,
                }
                rows = [
                    {"prompt": prompt, "picture": to_picture(picture), "seed": seed, **told}
                    for prompt, picture, seed in zip(self.prompts, pictures, self.seeds, strict=True)
                ]
                logger.log_table("samples/table", rows, images_seen=seen, step=_step(trainer))


class Reconstructions(Callback):
    """At each validation, originals over reconstructions: <run>/reconstructions/*.png and ``reconstructions``.

    The module gives ``reconstruct(images)``; the pictures are the first of the validation set, always the same.

    Args:
        num_pictures: how many.
        columns: pictures in a row.
    """

    def __init__(self, *, num_pictures: int = 16, columns: int = 8) -> None:
        self.num_pictures = num_pictures
        self.columns = columns
        self._originals: list[Tensor] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._originals = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        missing = self.num_pictures - sum(len(images) for images in self._originals)
        shape = self._originals[0].shape[1:] if self._originals else batch.images.shape[1:]
        if missing > 0 and trainer.is_global_zero and batch.images.shape[1:] == shape:  # of the first bucket
            self._originals.append(batch.images[:missing])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not self._originals:
            return
        with untimed(trainer), evaluating(pl_module), averaged_weights(trainer, pl_module) as weights:
            originals = torch.cat(self._originals)  # (N, 3, fH, fW) in [-1, 1]
            results = pl_module.reconstruct(originals)  # type: ignore[operator]
        seen = int(pl_module.images_seen)  # type: ignore[arg-type]
        pairs = torch.cat(
            [to_uint8(originals), to_uint8(results)], dim=2
        )  # (N, 3, 2fH, fW), one over the other
        title = f"originals over reconstructions, {seen:,} images seen, {weights}"
        grid = labelled_grid(pairs, None, columns=self.columns, title=title)
        show(trainer, grid, key="reconstructions", folder="reconstructions", images_seen=seen)
        self._originals = []


def to_uint8(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] -> uint8 in [0, 255], rounded; what lies outside is clipped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def show(trainer: Trainer, grid: Image.Image, *, key: str, folder: str, images_seen: int) -> Path:
    """Write a grid into the run folder and hand it to the loggers that take pictures."""
    path = Path(trainer.default_root_dir) / folder / f"{images_seen:09d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=key, images=[grid], step=_step(trainer))
    return path


def to_picture(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 -> PIL."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _step(trainer: Trainer) -> int:
    """What Lightning logs metrics under."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def labelled_grid(
    pictures: Tensor, captions: Sequence[str] | None, *, columns: int, title: str = "", cell: int = 128
) -> Image.Image:
    """Pictures in rows, each with its caption wrapped under it.

    Args:
        pictures: (N, 3, H, W) uint8; small ones are enlarged by whole numbers until they are ``cell`` pixels wide.
        captions: N of them, or None for none.
        columns: pictures in a row.
        title: a line above all.
    """
    num, _, height, width = pictures.shape
    columns = min(columns, num)
    scale = max(1, -(-cell // width))
    height, width = height * scale, width * scale
    font, gap = _font(12), 8
    line = 15
    lines = [textwrap.wrap(text, width=max(8, width // 7)) or ["(no caption)"] for text in captions or []]
    rows = [range(start, min(start + columns, num)) for start in range(0, num, columns)]
    label_heights = [max((len(lines[i]) for i in row), default=0) * line + 4 if lines else 0 for row in rows]
    top = 26 if title else gap
    size = (columns * (width + gap) + gap, top + sum(height + gap + label for label in label_heights))
    if title:
        size = (max(size[0], int(font.getlength(title)) + 2 * gap), size[1])
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, 6), title, fill="#444444", font=font)
    y = top
    for row, label_height in zip(rows, label_heights, strict=True):
        for column, i in enumerate(row):
            x = gap + column * (width + gap)
            picture = to_picture(pictures[i])
            canvas.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
            if lines:
                draw.multiline_text(
                    (x, y + height + 2), "\n".join(lines[i]), fill="black", font=font, spacing=1
                )
        y += height + gap + label_height
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib brings it: the same on all machines, and it knows most alphabets."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
