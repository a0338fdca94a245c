from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from ldm.training.callbacks import StopAtImages, ValidateEvery
from ldm.training.ema import EMA
from ldm.training.grids import Reconstructions, SampleGrid, labelled_grid, to_uint8
from tests.training.tiny import fit


class PictureLogger(Logger):
    name, version = "pictures", ""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[str, int]] = []
        self.tables: list[list[dict[str, Any]]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None: ...
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        assert all(isinstance(image, Image.Image) for image in images)
        self.shown.append((key, step))

    def log_table(self, key: str, rows: list[dict[str, Any]], *, images_seen: int, step: int) -> None:
        assert key == "samples/table" and all(row["images_seen"] == images_seen for row in rows)
        self.tables.append(rows)


def test_samples_are_drawn_by_images_and_logged(tmp_path: Path) -> None:
    logger = PictureLogger()
    grid = SampleGrid(prompts=["a red circle", ""], every_num_images=10)
    _, module = fit(tmp_path, [EMA(), grid, StopAtImages(num_images=24)], loggers=logger)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["000000012.png", "000000020.png", "000000024.png"]
    assert [key for key, _ in logger.shown] == ["samples/grid"] * 3
    assert [(row["prompt"], row["seed"], row["images_seen"]) for row in logger.tables[0]] == [
        ("a red circle", 0, 12),
        ("", 1, 12),
    ]
    assert logger.tables[0][0]["picture"].size == (8, 8) and len(logger.tables) == 3
    assert module.network.training


def test_drawing_changes_nothing_in_the_training(tmp_path: Path) -> None:
    grid = SampleGrid(prompts=["x"], every_num_images=4)
    _, drawn = fit(tmp_path / "a", [EMA(), grid, StopAtImages(num_images=24)])
    _, plain = fit(tmp_path / "b", [EMA(), StopAtImages(num_images=24)])
    assert torch.equal(drawn.network[0].weight, plain.network[0].weight)
    assert torch.equal(drawn.network[1].running_mean, plain.network[1].running_mean)


def test_reconstructions_show_the_first_validation_pictures(tmp_path: Path) -> None:
    logger = PictureLogger()
    parts = [
        EMA(),
        Reconstructions(num_pictures=6, columns=3),
        ValidateEvery(num_images=12),
        StopAtImages(num_images=24),
    ]
    fit(tmp_path, parts, loggers=logger)
    assert sorted(path.name for path in (tmp_path / "reconstructions").iterdir()) == [
        "000000012.png",
        "000000024.png",
    ]
    assert [key for key, _ in logger.shown] == ["reconstructions"] * 2
    width, height = Image.open(tmp_path / "reconstructions" / "000000012.png").size
    assert height > 2 * 2 * 128 and width > 3 * 128


@pytest.mark.parametrize(("num", "columns", "side"), [(1, 4, 64), (5, 3, 64), (4, 4, 200)])
def test_grid_holds_every_picture_unchanged(num: int, columns: int, side: int) -> None:
    pictures = torch.randint(0, 256, (num, 3, side, side), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    captions = [
        "a long caption that has to be wrapped over more lines than one " * (i + 1) for i in range(num)
    ]
    canvas = np.asarray(labelled_grid(pictures, captions, columns=columns, title="title"))
    scale = max(1, -(-128 // side))
    cell = side * scale + 8
    for i in range(min(num, columns)):  # the first row stands right under the title
        x = 8 + i * cell
        shown = canvas[26 : 26 + side * scale : scale, x : x + side * scale : scale]
        assert np.array_equal(shown, pictures[i].permute(1, 2, 0).numpy())


def test_to_uint8_ends_and_middle() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 255, 255]


def test_no_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="prompts is empty"):
        SampleGrid(prompts=[], every_num_images=10)
