"""Which config a training starts with: composed anew, or that of a run which is resumed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ldm.commands import launch
from ldm.commands.compose import compose
from ldm.commands.main import main
from ldm.commands.messages import ConfigError

BASE = ["codec=identity", "callbacks=default", "data.train_shards=x"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as training leaves it, in a fresh working directory."""
    monkeypatch.chdir(tmp_path)
    config = compose("train", [*BASE, "name=first", "run_id=one", "network.depth=5"]).config
    folder = tmp_path / "runs" / "first" / "one"
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    return folder


def test_a_new_run_is_composed(run: Path) -> None:
    config = launch.checked([*BASE, "network.depth=4"])
    assert config.network.depth == 4 and config.resume is None


@pytest.mark.parametrize("where", ["runs/first/one", "first/one"])
def test_a_resumed_run_keeps_its_own_config(run: Path, where: str) -> None:
    config = launch.checked([f"resume={where}", "tags=[again]"])
    assert config.network.depth == 5 and config.run_id == "one"
    assert config.resume == str(run) and config.tags == ["again"]


def test_a_checkpoint_that_was_named_is_the_one_that_is_taken(run: Path) -> None:
    named = run / "checkpoints" / "images_000000008"
    with pytest.raises(ConfigError, match="images_000000008"):
        launch.checked([f"resume={named}"])
    named.mkdir(parents=True)
    (run / "checkpoints" / "best").symlink_to(named.name)
    for where in (named, run / "checkpoints" / "best"):
        config = launch.checked([f"resume={where}"])
        assert config.resume == str(named) and config.network.depth == 5


def test_a_value_changed_on_resuming_reaches_all_who_refer_to_it(run: Path) -> None:
    config = launch.checked(["resume=first/one", "num_images=7"])
    assert config.task.num_images == config.callbacks.stop.num_images == 7


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["resume=first/two"], ["first/two", "first/one"]),
        (["resume=first/one", "network=dit_small"], ["network=dit_small", "resume"]),
        (["resume=first/one", "experiment=shapes_dit"], ["experiment=shapes_dit", "resume"]),
        (["resume=first/one", "network.dpeth=3"], ["network.dpeth", "'depth'"]),
    ],
)
def test_what_cannot_be_resumed_says_why(run: Path, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        launch.checked(overrides)
    assert all(part in caught.value.message for part in parts), caught.value.message


def test_a_command_gets_plain_values_and_its_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LDM_FULL_ERROR", raising=False)
    small = [f"out={tmp_path}", "num_val=0", "samples_per_shard=2", "num_workers=1"]
    main(["shapes", "num_train=2", *small])
    assert len(list((tmp_path / "train").glob("*.tar"))) == 1
    with pytest.raises(SystemExit) as caught:
        main(["shapes", "num_train=-1", *small])
    line = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 1 and line.startswith("error: num_train is -1") and "LDM_FULL_ERROR" in line
    assert "LDM_FULL_ERROR" not in os.environ
