"""Composition on a small tree of configs: every mistake becomes one line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from ldm.commands.compose import expand, load
from ldm.commands.messages import ConfigError
from ldm.commands.settings import TrainConfig

SCHEDULE = "_target_: ldm.diffusion.schedules.VPLinear\nbeta_min: 0.1\n"
RECORD = f"{TrainConfig.__module__}.{TrainConfig.__name__}"
GROUPS = ("task", "network", "data", "optimizer", "lr_schedule", "trainer")
NONE = ("diffusion", "codec", "text_encoder", "sampler", "grid", "guidance")
PRIMARY = """  - callbacks: default
  - experiment: null
name: x
seed: 0
num_images: 10
run_id: null
tags: []
paths: {data: d, runs: r}
logger: {}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A config tree in which every part is a noise schedule: the mechanism does not care."""
    folder = tmp_path / "configs"
    files = {f"{group}/linear.yaml": SCHEDULE for group in GROUPS}
    files |= {f"{group}/none.yaml": "" for group in NONE}
    files["network/cosine.yaml"] = "_target_: ldm.diffusion.schedules.Cosine\n"
    files["network/inner/linear.yaml"] = SCHEDULE
    files["callbacks/default.yaml"] = "first:\n  " + SCHEDULE.replace("\n", "\n  ").rstrip() + "\n"
    files["experiment/good.yaml"] = "# @package _global_\nname: good\nnetwork:\n  beta_max: 3.0\n"
    files["experiment/key.yaml"] = "# @package _global_\n\nnetwork:\n  beta_mix: 3.0\n"
    files["experiment/type.yaml"] = "# @package _global_\nnetwork:\n  beta_min: low\n"
    files["experiment/top.yaml"] = "# @package _global_\nnam: x\n"
    files["experiment/choice.yaml"] = "# @package _global_\ndefaults:\n  - override /network: cosin\n"
    files["experiment/code.yaml"] = (
        "# @package _global_\ncallbacks:\n  x: {_target_: os.system, command: ls}\n"
    )
    files["experiment/hook.yaml"] = (
        "# @package _global_\nhydra:\n  callbacks:\n    x: {_target_: os.system}\n"
    )
    files["experiment/log.yaml"] = (
        "# @package _global_\nhydra:\n  job_logging:\n    handlers: {x: {(): os.system}}\n"
    )
    groups = [f"  - {group}: linear" for group in GROUPS] + [f"  - {group}: none" for group in NONE]
    files["train.yaml"] = "\n".join(["defaults:", "  - _self_", *groups, PRIMARY])
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def compose(tree: Path, *overrides: str) -> DictConfig:
    return load("train", overrides, folder=tree, record=RECORD)


def refusal(tree: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(tree, *overrides)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_tree_composes(tree: Path) -> None:
    config = compose(tree, "experiment=good", "num_images=20")
    assert (config.name, config.num_images, config.network.beta_max) == ("good", 20, 3.0)
    assert "hydra" not in config


def test_hydras_habits(tree: Path) -> None:
    assert compose(tree, "network=cosine").network._target_.endswith("Cosine")
    assert compose(tree, "+network.beta_max=3").network.beta_max == 3
    assert compose(tree, "++network.beta_max=3").network.beta_max == 3
    assert "beta_min" not in compose(tree, "~network.beta_min").network
    assert compose(tree, "tags=[a,b]").tags == ["a", "b"]


def test_a_parameter_need_not_stand_in_the_yaml(tree: Path) -> None:
    assert compose(tree, "network.beta_max=3").network.beta_max == 3


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("network.beta_mix=3", ["network.beta_mix", "'beta_mi", "(command line)"]),
        ("+network.beta_mix=3", ["network.beta_mix", "(command line)"]),
        ("netwrok=linear", ["netwrok", "'network'", "(command line)"]),
        ("netwrok.beta_min=3", ["netwrok", "'network'", "(command line)"]),
        ("callbacks.frist.beta_min=3", ["callbacks.frist", "'first'", "(command line)"]),
        ("callbacks.first.beta_mn=3", ["callbacks.first.beta_mn", "'beta_min'", "(command line)"]),
        ("network=cosin", ["network", "'cosin'", "'cosine'", "(command line)"]),
        ("network/iner=linear", ["'network/iner'", "'network/inner'", "(command line)"]),
        ("network.beta_min=low", ["network.beta_min", "float", "'low'", "(command line)"]),
        ("seed=1.5", ["seed", "int", "1.5", "(command line)"]),
        ("tags=a", ["tags", "list[str]", "[first,second]"]),
        ("paths.dta=a", ["paths.dta", "'data'"]),
        ("~network.beta_mn", ["~network.beta_mn", "'network.beta_min'"]),
        ("network.beta_min=[1", ["cannot read", "network.beta_min=[1"]),
        ("seed=1,2", ["seed", "add -m"]),
        ("seed", ["cannot read 'seed'"]),
        ("experiment=key", ["network.beta_mix", "'beta_mi", "(configs/experiment/key.yaml:4)"]),
        ("experiment=type", ["network.beta_min", "float", "(configs/experiment/type.yaml:3)"]),
        ("experiment=top", ["nam", "'name'", "(configs/experiment/top.yaml:2)"]),
        ("experiment=choice", ["'cosin'", "'cosine'", "(configs/experiment/choice.yaml:3)"]),
        ("experiment=god", ["'god'", "'good'", "(command line)"]),
        ("experiment=code", ["callbacks.x._target_", "'os.system' is refused", "experiment/code.yaml:3"]),
        ("experiment=hook", ["hydra.callbacks.x._target_", "'os.system' is refused"]),
        ("experiment=log", ["hydra.job_logging.handlers.x.()", "'os.system' is refused"]),
    ],
)
def test_mistakes_are_named_with_their_place_and_the_nearest(
    tree: Path, override: str, parts: list[str]
) -> None:
    message = refusal(tree, override)
    for part in parts:
        assert part in message, message


def test_a_missing_value_says_which_file_asks_for_it(tree: Path) -> None:
    (tree / "network" / "asks.yaml").write_text(
        "_target_: ldm.diffusion.schedules.VPLinear\n\nbeta_min: ???\n"
    )
    message = refusal(tree, "network=asks")
    assert (
        message
        == "network.beta_min has no value yet; give network.beta_min=... (configs/network/asks.yaml:3)"
    )


def test_values_known_later_are_stood_in_for(tree: Path) -> None:
    override = "network.beta_min=${run_id}"
    assert "expected float, got null" in refusal(tree, override)
    with pytest.raises(ConfigError, match="got 'later'"):
        load("train", [override], folder=tree, record=RECORD, later={"run_id": "later"})
    (tree / "experiment" / "good.yaml").write_text("# @package _global_\nname: ${run_id}\n")
    config = load("train", ["experiment=good"], folder=tree, record=RECORD, later={"run_id": "later"})
    assert config.run_id is None


def test_what_is_wrong_comes_before_what_is_lacking(tree: Path) -> None:
    assert "'beta_mi" in refusal(tree, "network.beta_min=???", "trainer.beta_mix=1")


def test_a_sweep_is_taken_apart(tree: Path) -> None:
    freed, jobs = expand(["network=linear,cosine", "seed=range(0,3)", "name=x"], folder=tree)
    assert freed == ["network=linear,cosine", "++seed=range(0,3)", "++name=x"]
    assert len(jobs) == 6 and jobs[0] == ["network=linear", "seed=0", "name=x"]


def test_every_config_of_the_record_is_in_the_tree(tree: Path) -> None:
    message = refusal(tree, "~network")
    assert "also needs network" in message
