"""Autoencoders of every kind by one command line, and a denoiser on the latents of each."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ldm.codecs.kl import KLCodec
from ldm.commands.launch import launch
from ldm.commands.load import load_run
from ldm.commands.main import main
from tests.commands.places import working_in

VAE = [
    "experiment=shapes_vae",
    "debug=fast",
    "trainer=cpu",
    "network.channels=[16,16]",
    "network.encoder_channels=[16,16]",
    "run_id=a",
]
DIT = [
    "experiment=shapes_dit",
    "debug=fast",
    "trainer=cpu",
    "network.depth=1",
    "network.width=64",
    "network.num_heads=1",
    "text_encoder.num_buckets=64",
    "task.num_steps=2",
    "callbacks.samples.prompts=[a red circle]",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with pictures and a finished autoencoder, on which other recipes build."""
    folder = tmp_path_factory.mktemp("recipes")
    with working_in(folder, num_train=16, num_val=8):
        launch([*VAE, "name=shapes_vae"])
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def logged(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name for row in rows for name, value in row.items() if value}


def test_everything_together_is_trained_logged_and_loaded_again(here: Path) -> None:
    terms = "adversary,equivariance,scale_equivariance,channel_masking,latent_noise"
    terms += ",features,alignment,discriminator_features"
    launch([*VAE, f"terms=[{terms}]", "name=all"])
    names = logged(here / "runs/all/a")
    for term in ("squared_error", "kl", "scale_equivariance", "autoencoder_features", "alignment"):
        assert {f"train/{term}", f"val/{term}"} <= names, term
    assert {"train/discriminator_features", "train/adversarial_strength", "train/logits_made"} <= names
    assert {"train/grad_norm_autoencoder", "train/grad_norm_discriminator"} <= names
    assert "val/equivariance_error" in names and "train/equivariance_error" not in names
    assert list((here / "runs/all/a/reconstructions").glob("*.png"))
    loaded = load_run("all/a")
    assert loaded.weights == "ema" and set(loaded.parts) == {"autoencoder", "alignment", "discriminator"}


@pytest.mark.parametrize("bottleneck", ["fixed_noise", "vq", "fsq"])
def test_a_denoiser_learns_the_latents_of_every_bottleneck(here: Path, bottleneck: str) -> None:
    launch([*VAE, f"bottleneck={bottleneck}", f"name={bottleneck}"])
    path = f"runs/{bottleneck}/a/autoencoder.safetensors"
    codec = KLCodec(path=path)
    assert type(codec.autoencoder.bottleneck).__name__.lower().startswith(bottleneck.replace("_", ""))
    used = "val/codes_used" in logged(here / f"runs/{bottleneck}/a")
    assert used == (bottleneck in ("vq", "fsq"))
    main(["encode", f"run={bottleneck}", "shards=data/shapes/train"])
    launch([*DIT, f"codec.path={path}", f"name=on_{bottleneck}", "run_id=a"])
    generation = load_run(f"on_{bottleneck}").module.generation()
    pictures = generation.images(["a red circle"], [0], latent_size=(8, 8), batch_size=1)
    assert pictures.shape == (1, 3, 64, 64)


def test_a_denoiser_goes_on_with_a_new_decoder(here: Path) -> None:
    """Trained on the first autoencoder's latents, it is loaded with the second's file and trained further."""
    launch([*VAE, "terms=[decoder_only,adversary]", "name=decoder"])
    first, second = (
        KLCodec(path=f"runs/{run}/autoencoder.safetensors") for run in ("shapes_vae/a", "decoder/a")
    )
    launch([*DIT, "name=before", "run_id=a", "codec.path=runs/shapes_vae/a/autoencoder.safetensors"])
    launch(["resume=runs/before/a", "codec.path=runs/decoder/a/autoencoder.safetensors", "num_images=12"])
    assert second.content_hash == first.content_hash != second.decoder_hash


def test_missing_weights_are_told_before_anything_is_made(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for terms, said in (
        ("terms=lpips", "the classifier weights/lpips/vgg16-397923af.pth is missing"),
        ("terms=[decoder_only] task.decoder_of.path=nowhere.safetensors", "nowhere.safetensors is missing"),
    ):
        with pytest.raises(SystemExit) as leaving:
            launch([*VAE, *terms.split(), "name=missing"])
        assert leaving.value.code == 69
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (here / "runs/missing").exists()


def test_a_plan_counts_the_discriminator_and_goes_without_missing_weights(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["plan", "experiment=shapes_vae", "terms=[adversary,lpips]", "hardware=cpu"])
    told = " ".join(capsys.readouterr().out.split())
    assert "discriminator" in told and "reckoned without the term lpips" in told
