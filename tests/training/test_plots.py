from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ldm.training.plots import draw_metrics, read_curves, smoothed, wants_log_axis


def test_validation_rows_find_their_place_on_the_images_axis(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(
        "step,train/loss,train/images_seen,val/loss\n4,,,0.9\n"
        "9,1.0,100,\n19,0.5,200,\n24,,,0.7\n29,nan,300,\n39,0.25,400,\n"
    )
    curves, label = read_curves(file)
    by_name = {curve.name: curve for curve in curves}
    assert label == "images seen"
    assert by_name["val/loss"].x.tolist() == [50.0, 250.0]
    assert by_name["train/loss"].x.tolist() == [100.0, 200.0, 400.0]  # nan is left out
    assert "train/images_seen" not in by_name


def test_without_images_the_axis_is_steps(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,train/loss\n3,1\n4,2\n")
    curves, label = read_curves(tmp_path / "m.csv")
    assert label == "steps" and curves[0].x.tolist() == [3.0, 4.0]


def test_train_and_val_share_a_picture(tmp_path: Path) -> None:
    steps = np.arange(200)
    rows = ["step,train/loss,val/loss,val/psnr,throughput/samples_per_second"]
    rows += [
        f"{s},{np.exp(-s / 30) + 0.01},{np.exp(-s / 30) + 0.02 if s % 50 == 0 else ''},{20 + s / 20},900"
        for s in steps
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    drawn = draw_metrics(tmp_path / "metrics.csv", tmp_path / "plots")
    assert sorted(path.name for path in drawn) == [
        "loss.png",
        "psnr.png",
        "throughput_samples_per_second.png",
    ]
    assert Image.open(tmp_path / "plots" / "loss.png").size == (840, 480)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in drawn)


def test_smoothing_keeps_a_constant_and_lowers_noise() -> None:
    assert np.allclose(smoothed(np.full(50, 3.0), span=10), 3.0)
    noise = np.random.default_rng(0).normal(size=2000)
    assert smoothed(noise, span=50)[200:].std() < 0.25 * noise.std()


def test_log_axis_only_where_it_helps() -> None:
    assert wants_log_axis(np.geomspace(1, 1e-3, 100))
    assert not wants_log_axis(np.linspace(1, 2, 100))
    assert not wants_log_axis(np.linspace(-1, 100, 100))
    assert not wants_log_axis(np.concatenate([np.full(99, 1.0), [1000.0]]))  # one spike is no decade
