"""The metrics of ``ldm evaluate`` that leave pictures behind: reconstruction, latents, memorization."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.pipeline import ShardDataset
from ldm.data.shards import ShardWriter
from ldm.evaluation.features import Pixels
from ldm.evaluation.quality import psnr
from ldm.evaluation.reconstruction import Reconstruction, ReconstructionFrechet
from ldm.evaluation.scores import read_per_sample
from ldm.randomness import address
from ldm.training.latent_report import LatentReport
from ldm.training.memorized import Memorization, picture_at
from ldm.training.picture_sets import Reference
from tests.commands.scored import Run, make_run, make_shards, pictures_of
from tests.evaluation.test_memorization import pictures as natural


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shapes"))


def unasked(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    raise AssertionError("pictures were asked for")


@pytest.fixture
def run(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return make_run(tmp_path, shards, unasked, monkeypatch)


def test_reconstructions_are_measured_against_their_originals(run: Run, shards: Path) -> None:
    """The run's codec keeps mean colours of squares of 8 pixels, and paints them plainly."""
    metrics = {"pairs": Reconstruction(), "frechet": ReconstructionFrechet(features=Pixels(size=4))}
    scores = {one.metric: one for one in run.evaluate(metrics)}
    originals = pictures_of(shards / "val")
    squares = (
        torch.nn.functional.avg_pool2d(originals.float(), 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )
    known = psnr(originals, squares.round().to(torch.uint8))
    assert scores["psnr"].value == pytest.approx(float(known.mean()), abs=0.02)
    kept = read_per_sample(run.path, scores["psnr"])
    assert kept is not None
    assert kept.values[:, 0] == pytest.approx(known.numpy(), abs=0.05)
    assert 0 < scores["ssim"].value < 1
    assert scores["reconstruction_frechet_pixels"].value < 1e-3, "squares of 16 pixels keep their mean colour"
    assert not scores["psnr"].protocol.sampler


def test_the_report_on_latents(run: Run) -> None:
    scores = {one.metric: one.value for one in run.evaluate({"latents": LatentReport()})}
    assert scores["latents/collapsed"] == 0
    assert scores["latents/equivariance_rotation"] == pytest.approx(0, abs=1e-6), (
        "mean colours turn with the picture"
    )
    assert scores["latents/equivariance_scale"] == pytest.approx(0, abs=1e-6)
    assert scores["latents/robustness"] > 0
    folder = run.path / "evaluation"
    report = json.loads((folder / "latents.json").read_text())
    assert len(report["channels"]["kurtosis"]) == 3
    levels = list(report["psnr_at_noise"].values())
    assert levels == sorted(levels, reverse=True)
    assert Image.open(folder / "latents.png").width > 800


def test_memorized_pictures_are_shown_beside_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of pictures with detail, of which the run draws some again, and some pictures of its own."""
    training, own = natural(60, 0), natural(20, 1)
    shards = pack(tmp_path, training, natural(20, 2))
    order = pictures_of(shards / "train")
    drawn = own.clone()
    drawn[4], drawn[11] = order[30], order[7].flip(-1)
    places = {address(0, "evaluation noise", i): i for i in range(20)}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return torch.stack([drawn[places[seed]] for seed in seeds])

    run = make_run(tmp_path, shards, draw, monkeypatch, caption_field="txt")
    scores = {one.metric: one.value for one in run.evaluate({"m": Memorization(num_samples=20)})}
    assert scores == {
        "memorization/copies": 2 / 20, "memorization/val_copies": 0, "memorization/train_duplicates": 0
    }  # fmt: skip
    folder = run.path / "evaluation"
    lines = [
        line for line in csv.DictReader((folder / "memorization.csv").open()) if line["is copy"] == "True"
    ]
    assert [line["picture"].split(",")[0] for line in lines] == ["sample 4", "sample 11"]
    assert [line["mirrored"] for line in lines] == ["False", "True"]
    index = ShardDataset(shards=str(shards / "train"), image_size=64).index
    assert [line["training picture"] for line in lines] == [index.key(30), index.key(7)]
    for name in ("memorization.png", "memorization_pairs.png"):
        assert Image.open(folder / name).width > 500


def pack(folder: Path, training: Tensor, validation: Tensor) -> Path:
    """Shards of these pictures."""
    for split, images in (("train", training), ("val", validation)):
        with ShardWriter(folder / "natural" / split, samples_per_shard=100) as writer:
            for i, image in enumerate(images):
                buffer = io.BytesIO()
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "png")
                writer.write(buffer.getvalue(), "png", f"picture {i}", {})
    return folder / "natural"


def test_a_picture_of_a_set_by_its_place(run: Run, shards: Path) -> None:
    dataset = ShardDataset(shards=str(shards / "val"), image_size=64)
    reference = Reference(dataset, tuple(range(48)), "validation set", batch_size=10)
    assert torch.equal(picture_at(reference, 37), pictures_of(shards / "val")[37])
    with pytest.raises(IndexError):
        picture_at(reference, 48)
