import csv
import math

import pytest
import torch
from PIL import Image

from ldm.training.noise_levels import BY_LOG_SNR, LEVELS, LossByNoise, draw_noise_levels
from ldm.training.plots import draw_metrics


def test_means_are_those_of_each_bin_and_the_outermost_take_the_rest():
    levels = torch.tensor([-math.inf, -3.9, -2.1, 0.5, 0.9, math.inf])
    sums = LossByNoise()
    for rows in (slice(0, 2), slice(2, 6)):  # batches of any size
        sums.add(torch.arange(6.0)[rows], levels[rows])
    assert sums.means() == {LEVELS[0]: 0.0, -3: 1.5, 1: 3.5, LEVELS[-1]: 5.0}


def test_two_processes_sums_add_up_to_one_processes():
    losses, levels = torch.rand(50), 4 * torch.randn(50)
    whole, first, second = LossByNoise(), LossByNoise(), LossByNoise()
    whole.add(losses, levels)
    first.add(losses[::2], levels[::2])
    second.add(losses[1::2], levels[1::2])
    assert LossByNoise(sums=first.sums + second.sums).means() == pytest.approx(whole.means())


def test_the_picture_is_drawn_once_something_was_logged(tmp_path):
    metrics, picture = tmp_path / "metrics.csv", tmp_path / "loss_by_noise.png"
    names = [f"{BY_LOG_SNR}{level:+d}" for level in (-3, -1, 1)]
    with metrics.open("w") as file:
        table = csv.DictWriter(file, ["step", "train/loss", *names])
        table.writeheader()
        table.writerow({"step": 0, "train/loss": 1.0})
        file.flush()
        assert draw_noise_levels(metrics, picture) is None and not picture.exists()
        table.writerow({"step": 1, **dict.fromkeys(names, 0.5)})
        table.writerow({"step": 2, **dict.fromkeys(names, 0.25)})
    assert picture in draw_metrics(metrics, tmp_path)
    assert Image.open(picture).size[0] > 400
    assert not list(tmp_path.glob("val_by*"))  # not a picture of its own for every level
