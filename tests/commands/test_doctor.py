"""``ldm doctor``: what is there, what is missing, and the exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.commands import launch
from ldm.commands.checkup import examined
from ldm.commands.findings import FAIL, OK, WARN, Finding
from ldm.commands.main import main
from ldm.commands.shapes import shapes

TINY = ["experiment=sdxl_base", "debug=tiny", "trainer=cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    shapes(
        out=str(folder / "data/shapes"), num_train=8, num_val=0, seed=0, samples_per_shard=8, num_workers=1
    )
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HOME", str(place / "nothing"))


def status(*arguments: str) -> int:
    try:
        main(["doctor", *arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def findings(*overrides: str) -> dict[str, Finding]:
    return {one.what: one for one in examined(launch.checked(overrides))}


def test_a_training_that_could_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*TINY, "data.train_shards=data/shapes/train") == 0, capsys.readouterr()
    assert "1 shards" in capsys.readouterr().out


def test_files_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("experiment=sd15", "trainer=cpu") == 69
    out, err = capsys.readouterr()
    for part in ("weights/kl_sd", "ViT-L-14", "data/train", "ldm import", "ldm pack"):
        assert part in out.replace("\n", " "), part
    assert "checks failed" in err


def test_a_config_that_cannot_be_used() -> None:
    assert status("experiment=sd15", "trainer.devises=2") == 2


@pytest.mark.parametrize(
    ("overrides", "what", "level", "part"),
    [
        (["trainer.devices=3"], "devices", FAIL, "cannot be shared equally"),
        (["data.caption_field=title"], "captions of data.train_shards", FAIL, "no title"),
        (
            ["data.caption_field={title: 1, captions: 1}"],
            "captions of data.train_shards",
            OK,
            "8 of the first 8",
        ),
        (["init_from=runs/none"], "init_from", FAIL, "runs/none"),
        (["logger=wandb"], "W&B", WARN, "offline"),
        (["network/attention=xformers"], "attention", FAIL, "needs a GPU"),
        (["callbacks.checkpoints.keep_every_num_images=1", "num_images=1000000000"], "disk", FAIL, "free"),
    ],
)
def test_each_trouble_is_found(
    overrides: list[str], what: str, level: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.commands.checkup.has_key", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found = findings(*TINY, "data.train_shards=data/shapes/train", *overrides)
    assert found[what].level == level, found
    assert part in found[what].found


def test_an_autoencoder_of_other_latents_is_found(tmp_path: Path) -> None:
    from ldm.codecs.contract import LatentContract
    from ldm.codecs.kl import write_autoencoder
    from ldm.nn.autoencoder import AutoencoderKL

    path = tmp_path / "autoencoder.safetensors"
    autoencoder = AutoencoderKL(latent_channels=3, channels=[8, 8], blocks_per_level=1, num_groups=4)
    contract = LatentContract(mean=(0.0,) * 3, std=(1.0,) * 3, downsample=2, num_images=1)
    write_autoencoder(path, autoencoder=autoencoder, contract=contract)
    found = findings("experiment=sd15", "trainer=cpu", f"codec.path={path}")
    assert found["autoencoder"].level == OK
    assert found["latents"].level == FAIL and "4 channels, the autoencoder gives 3" in found["latents"].found
