"""Whole trainings, small: what a run leaves behind, and that stopping changes nothing."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.codecs.kl import KLCodec
from ldm.commands.launch import launch
from ldm.commands.load import load_run
from ldm.commands.main import main
from ldm.commands.replay import replay
from ldm.training.checkpoint import foreign_entries
from ldm.training.diffusion_module import DiffusionModule
from tests.commands.places import checkpoint, working_in

VAE = [
    "experiment=shapes_vae",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "network.channels=[16,16]",
    "network.encoder_channels=[16,16]",
    "data.batch_size=4",
    "num_images=24",
    "callbacks.validate.num_images=8",
    "callbacks.checkpoints.every_num_images=8",
]
DIT = [
    "experiment=shapes_dit",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "network.depth=1",
    "network.width=64",
    "network.num_heads=1",
    "text_encoder.num_buckets=64",
    "data.batch_size=4",
    "num_images=24",
    "task.num_steps=2",
    "callbacks.validate.num_images=8",
    "callbacks.checkpoints.every_num_images=8",
    "callbacks.samples.every_num_images=12",
    "callbacks.samples.prompts=[a red circle,two blue rings]",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with pictures and two finished runs: an autoencoder and a denoiser on its latents."""
    folder = tmp_path_factory.mktemp("trainings")
    with working_in(folder, num_train=20, num_val=6):
        launch([*VAE, "run_id=whole"])
        launch([*DIT, "run_id=whole"])
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_a_run_folder_holds_what_the_readme_says(here: Path) -> None:
    vae, dit = here / "runs/shapes_vae/last", here / "runs/shapes_dit/last"
    for run in (vae, dit):
        for name in (
            "config.yaml",
            "resolved.yaml",
            "command.txt",
            "git.json",
            "versions.json",
            "metrics.csv",
            "finished.json",
        ):
            assert (run / name).is_file(), name
        assert list((run / "plots").glob("*.png"))
    assert list((vae / "reconstructions").glob("*.png"))
    grids = sorted((dit / "samples").glob("*.png"))
    assert len(grids) == 2
    assert Image.open(grids[-1]).size[0] > 2 * 64


def test_metrics_have_the_names_that_were_promised(here: Path) -> None:
    vae = (here / "runs/shapes_vae/last/metrics.csv").read_text().splitlines()[0].split(",")
    dit = (here / "runs/shapes_dit/last/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/squared_error", "train/kl", "val/loss", "val/psnr"} <= set(vae)
    assert {"step", "train/loss", "train/lr_factor", "val/loss"} <= set(dit)


def test_checkpoints_hold_plain_data_and_no_frozen_codec(here: Path) -> None:
    saved = checkpoint("shapes_dit/last")
    assert list(foreign_entries(saved)) == []
    assert saved["images_seen"] == 24
    assert not [name for name in saved["state_dict"] if name.startswith("codec.")]


@pytest.mark.parametrize(("recipe", "name"), [(VAE, "shapes_vae"), (DIT, "shapes_dit")])
def test_stop_and_resume_equals_uninterrupted(
    here: Path, recipe: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch([*recipe, f"run_id=parts-{name}", "trainer.max_steps=3"])  # leaves in the middle, unfinished
    run = here / f"runs/{name}/parts-{name}"
    assert checkpoint(f"{name}/parts-{name}")["images_seen"] == 12
    assert not (run / "finished.json").exists()
    if recipe is DIT:  # the queue starts the same command once more
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        launch([*recipe, f"run_id=parts-{name}"])
    else:
        launch([f"resume={run}", "trainer.max_steps=-1"])
    whole, parts = checkpoint(f"{name}/whole"), checkpoint(f"{name}/parts-{name}")
    assert parts["images_seen"] == 24 and (run / "finished.json").is_file()
    torch.testing.assert_close(parts["state_dict"], whole["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(parts["ema"], whole["ema"], rtol=0, atol=0)
    torch.testing.assert_close(parts["optimizer_states"], whole["optimizer_states"], rtol=0, atol=0)


def test_a_bad_step_can_be_made_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = DiffusionModule.losses

    def spoilt(self: Any, *args: Any, purpose: str) -> Any:
        found = losses(self, *args, purpose=purpose)
        if purpose != "noise" or self.images_seen != 4:
            return found
        return found._replace(loss=found.loss * float("nan"), shown=found.shown * float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "losses", spoilt)
        launch([*DIT, "run_id=bad", "name=bad", "num_images=12", "callbacks.samples.every_num_images=100"])
    saved = checkpoint("bad/last")
    assert saved["callbacks"]["BadSteps"]["count"] == 1
    assert all(bool(torch.isfinite(x).all()) for x in saved["state_dict"].values())
    capsys.readouterr()
    replay(capsule="runs/bad/bad/capsules/images_000000008", device="cpu", rows=4)
    told = capsys.readouterr().out
    assert "loss then: nan" in told and "4 samples: " in told
    assert "float32: loss" in told and "bfloat16: loss" in told and "network.blocks" in told


EXACT = [*DIT, "trainer.precision=32-true", "lr_schedule.warmup_images=4", "name=processes"]


@pytest.fixture(scope="module")
def one(place: Path) -> Path:
    """What one process makes of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        launch([*EXACT, "run_id=one"])
    return place / "runs/processes/one"


def same_as_one(run_id: str) -> None:
    """The same losses to 1e-5, the same weights, averages and moments, the same pictures."""

    def losses(run_id: str, column: str) -> list[float]:
        with Path("runs/processes", run_id, "metrics.csv").open() as file:
            return [float(row[column]) for row in csv.DictReader(file) if row[column]]

    for column in ("train/loss", "val/loss"):
        assert len(losses("one", column)) >= 3
        assert losses(run_id, column) == pytest.approx(losses("one", column), abs=1e-5)
    first, second = checkpoint("processes/one"), checkpoint(f"processes/{run_id}")
    assert list(foreign_entries(second)) == []
    assert first["images_seen"] == second["images_seen"] == 24
    for entry in ("state_dict", "ema", "optimizer_states"):
        torch.testing.assert_close(second[entry], first[entry], rtol=1e-3, atol=1e-4)
    for grid in Path("runs/processes/one/samples").glob("*.png"):
        shown = [
            np.asarray(Image.open(f"runs/processes/{name}/samples/{grid.name}"), int)
            for name in ("one", run_id)
        ]
        assert np.abs(shown[0] - shown[1]).max() <= 1  # a value at the border between two levels


def test_accumulated_gradients_train_like_the_whole_batch(here: Path, one: Path) -> None:
    launch([*EXACT, "trainer.accumulate_grad_batches=2", "run_id=pieces"])
    same_as_one("pieces")


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_train_like_one(here: Path, one: Path, trainer: str) -> None:
    """The same global batch, shared by one process and by two over gloo; then one goes on with what two have saved."""
    two = [f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2", f"run_id={trainer}"]
    stops = "trainer.max_steps=4"
    started = [item for item in EXACT if item != "trainer=cpu"] + [*two, stops]
    train = Path(__file__).parents[2] / "train.py"
    done = subprocess.run(
        [sys.executable, train, *started],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    launch(
        [
            f"resume=runs/processes/{trainer}",
            "trainer.max_steps=-1",
            "trainer.devices=1",
            "trainer.strategy=auto",
        ]
    )
    same_as_one(trainer)


@pytest.mark.slow
def test_profiling_leaves_a_table_and_a_trace(here: Path) -> None:
    launch([*VAE, "debug=profile", "num_images=16", "run_id=profiled"])
    run = here / "runs/debug/profiled"
    assert "aten::convolution" in (run / "fit-profile.txt").read_text()
    traces = [json.loads(path.read_text())["traceEvents"] for path in run.glob("*.pt.trace.json")]
    assert traces and any(event.get("name") == "aten::convolution" for event in traces[0])


def test_a_used_run_folder_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch([*VAE, "run_id=whole"])
    assert "resume=runs/shapes_vae/whole" in capsys.readouterr().err


def test_a_denoiser_refuses_latents_of_another_autoencoder(here: Path) -> None:
    launch([*VAE, "run_id=other", "seed=1", "name=other_vae"])
    other = "runs/other_vae/last/autoencoder.safetensors"
    launch([*DIT, "run_id=mixed", "name=mixed", "trainer.max_steps=2"])
    before = content(here / "runs/mixed/mixed")
    with pytest.raises(SystemExit):
        launch(["resume=runs/mixed/mixed", f"codec.path={other}", "trainer.max_steps=-1"])
    assert content(here / "runs/mixed/mixed") == before


def test_a_refused_resume_leaves_the_folder_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here / "runs/shapes_dit/whole"
    before = content(run)
    with pytest.raises(SystemExit):
        launch(["resume=runs/shapes_dit/whole", "network.width=128", "network.num_heads=2", "num_images=32"])
    assert "the checkpoint is of a network of another size" in capsys.readouterr().err
    assert content(run) == before


def content(run: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a run, and when it was written."""
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_what_was_trained_can_be_loaded_and_sampled(here: Path) -> None:
    loaded = load_run("shapes_dit")
    assert loaded.weights == "ema" and loaded.images_seen == 24
    pictures = loaded.module.generation().images(["a red circle"], [0], latent_size=(8, 8), batch_size=2)
    assert pictures.shape == (1, 3, 64, 64)
    codec = KLCodec(path="runs/shapes_vae/last/autoencoder.safetensors")
    assert codec.contract.num_images == 20


def test_an_average_of_another_width_is_made_and_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    power = ["callbacks/ema=power", "~callbacks.ema.decay", "callbacks.ema.snapshot_every_num_images=4"]
    launch([*DIT, *power, "name=power", "run_id=a"])
    main(["ema", "run=power", "sigma_rel=0.08"])
    assert "weights=sigma_rel_0.080_000000024" in capsys.readouterr().out
    loaded = load_run("power", weights="sigma_rel_0.080_000000024")
    assert loaded.weights.startswith("sigma_rel_0.080_000000024#") and loaded.images_seen == 24
    again = load_run("power", weights=loaded.weights)
    shown = load_run("power", weights="ema")
    for name, x in loaded.module.network.state_dict().items():
        assert torch.equal(x, again.module.network.state_dict()[name])
    pairs = zip(loaded.module.network.parameters(), shown.module.network.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match="weights='best' is not known"):
        load_run("power", weights="best")


def test_the_autoencoders_file_normalises_its_latents(here: Path) -> None:
    """Posterior samples over the training set have zero mean and unit variance per channel, by the averaged weights."""
    from ldm.data.pipeline import ShardDataset, in_order

    codec = KLCodec(path="runs/shapes_vae/last/autoencoder.safetensors")
    pictures = in_order(ShardDataset(shards="data/shapes/train", image_size=64), batch_size=8)
    images = torch.cat([batch.images for batch in pictures])
    moments = codec.moments(images)
    torch.manual_seed(0)
    samples = torch.cat([codec.latents(moments, noise=torch.randn(20, 4, 8, 8)) for _ in range(50)])
    torch.testing.assert_close(samples.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.02)
    torch.testing.assert_close(samples.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.02)
