"""``ldm plan`` on the published recipes: known sizes, and the exit status of jobs that would fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.commands import launch
from ldm.commands.compose import CONFIGS
from ldm.commands.main import main
from ldm.commands.plan import largest_batch, reckoned
from ldm.planning.hardware import GIB, Hardware

H100 = Hardware(title="H100", memory_gib=79.6, reserved_gib=1.5, tflops=989.0, tflops_float32=67.0, gpu=True)
# trained parameters as published, frozen text parameters; see configs/network
RECIPES = {
    "sd15": (859_520_964, "123"),
    "sdxl_base": (2_567_463_684, "818"),
    "dit_xl_2": (674_834_720, "0"),
    "sd3_medium": (2_028_328_000, "5"),
    "flux_dev_style": (11_901_408_320, "4"),
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def status(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, what was printed, and the error."""
    code = 0
    try:
        main(["plan", *arguments])
    except SystemExit as left:
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_sdxl_on_eight_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = status(capsys, "experiment=sdxl_base", "trainer.devices=8")
    assert code == 0, err
    for part in ("2,567,463,684", "818,310,144", "83,653,863", "DDP", "FSDP", "kl_sd", "device hours"):
        assert part in out, part
    assert {path.name for path in Path.cwd().iterdir()} == set(), "a plan leaves nothing behind"


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_has_the_published_number_of_parameters(name: str) -> None:
    report = reckoned(
        launch.checked([f"experiment={name}", "trainer.devices=8"]),
        hardware=H100,
        mfu=0.35,
        num_pictures=1000,
    )
    assert report.state.trained == RECIPES[name][0]
    # twice the forward pass, attention 2.5 times, and the blocks once more for checkpointing
    assert 1.9 < report.cost.backward_flops / report.cost.forward_flops < 3.5
    assert report.per_sample.forward_flops * report.batch / 8 == pytest.approx(report.cost.forward_flops)
    assert report.disk[0].size and report.seconds > 0


def test_published_operations_of_dit() -> None:
    """118.6 Gflops a forward pass (2212.09748, table 4), which are multiplications with additions."""
    config = launch.checked(["experiment=dit_xl_2", "trainer.devices=8"])
    report = reckoned(config, hardware=H100, mfu=0.35, num_pictures=None)
    assert report.per_sample.forward_flops == pytest.approx(2 * 118.6e9, rel=0.03)


@pytest.mark.parametrize(
    ("overrides", "code", "parts"),
    [
        (["experiment=sdxl_base", "hardware=rtx4090"], 1, ["do not fit", "RTX 4090", "not even one"]),
        (
            ["experiment=sd15", "trainer.devices=7"],
            1,
            ["data.batch_size=2048", "7 processes", "2044 or 2072"],
        ),
        (["experiment=sd15", "network.dpeth=3"], 2, ["network.dpeth"]),
        (["experiment=sd15", "network.in_channels=5"], 1, ["5"]),
        (["experiment=sd15", "mfu=35"], 1, ["mfu=35"]),
        (["experiment=sd15", "hardware=h10"], 2, ["'h100'"]),
    ],
)
def test_a_job_that_would_fail_is_refused(
    overrides: list[str], code: int, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    left, _, err = status(capsys, *overrides)
    assert left == code, err
    assert all(part in err for part in parts), err


def test_an_autoencoder_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = status(capsys, "experiment=shapes_vae", "hardware=cpu")
    assert code == 0, err
    assert "autoencoder" in out and "pictures a second" in out


def test_kernels_that_need_a_gpu_can_be_planned_without(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = status(capsys, "experiment=dit_xl_2", "network/attention=xformers", "trainer.devices=8")
    assert code == 0, err


def test_the_largest_batch_is_reckoned_from_two() -> None:
    assert largest_batch(2 * GIB, 5 * GIB, 4, 10 * GIB) == 9
    assert largest_batch(11 * GIB, 12 * GIB, 2, 10 * GIB) == 0


def test_the_catalogue_is_of_devices() -> None:
    names = {path.stem for path in (CONFIGS / "hardware").glob("*.yaml")}
    assert {"h100", "a100", "cpu"} <= names
