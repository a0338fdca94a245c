"""Every config file is a test case, found by listing the folder."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ldm.commands.compose import CONFIGS, compose
from ldm.commands.launch import TRAINING, launch
from ldm.commands.main import verbs
from ldm.commands.schema import check
from ldm.commands.shapes import shapes
from ldm.data.shards import ShardWriter

FILES = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))
CHOICES = [name for name in FILES if "/" in name]


def groups_of(command: str) -> set[str]:
    """The groups in a command's list of defaults."""
    entries = yaml.safe_load((CONFIGS / f"{command}.yaml").read_text(encoding="utf-8")).get("defaults", [])
    return {group for entry in entries if isinstance(entry, dict) for group in entry}


def is_for_training(choice: str) -> bool:
    return choice.split("/")[0] in {*groups_of("train"), "hydra"}


EXPERIMENTS = [name.removeprefix("experiment/") for name in FILES if name.startswith("experiment/")]


def teacher_of(experiment: str) -> str | None:
    """The run whose parts an experiment takes over, if it has one."""
    task = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")).get(
        "task"
    )
    return task.get("teacher") if isinstance(task, dict) else None


def made_small(choice: str) -> tuple[str, str] | None:
    """(group, choice) that a file of debug=tiny is for: it is taken in where both are chosen."""
    debug, *group, tiny, name = ["", *choice.split("/")][-4:]
    return (group[0], name) if (debug, tiny) == ("debug", "tiny") and group else None


@pytest.mark.parametrize(
    "choice", [name for name in CHOICES if is_for_training(name) and not made_small(name)]
)
def test_every_choice_of_a_group_composes_and_passes_the_schema(choice: str) -> None:
    group, _, name = choice.rpartition("/")
    # Only an autoencoder's training does without the parts that a ``none`` leaves out.
    task = ["task=autoencoder"] if name == "none" and group != "debug" else []
    network = ["network=dit_s_2"] if choice == "text_encoder/labels" else []  # that is told classes
    if group in ("terms", "bottleneck"):
        task, network = ["task=autoencoder"], ["network=kl_small"]
    config = compose("train", [*task, *network, f"{group}={name}", "run_id=x"]).config
    check(config, record=TRAINING["record"], complete=False)


@pytest.mark.parametrize("choice", [name for name in CHOICES if made_small(name)])
def test_every_file_of_debug_tiny_changes_the_part_it_is_named_for(choice: str) -> None:
    of = made_small(choice)
    assert of is not None
    group, name = of
    chosen = [f"{group}={name}", "codec=pooled", "run_id=x", "data.train_shards=x", "callbacks.samples=null"]
    if group == "network":
        chosen += ["text_encoder=labels" if name.startswith("dit_") else "text_encoder=t5_xxl"]
    tiny, full = (compose("train", [*chosen, f"debug={debug}"]).config for debug in ("tiny", "none"))
    check(tiny, record=TRAINING["record"])
    assert tiny[group] != full[group] and tiny[group]._target_ == full[group]._target_


@pytest.mark.parametrize("choice", [name for name in CHOICES if not is_for_training(name)])
def test_every_choice_of_a_commands_own_group_does_too(choice: str) -> None:
    group, _, name = choice.rpartition("/")
    owners = [verb for verb in verbs() if group in groups_of(verb)]
    assert owners, f"no command has the group {group}"
    for verb in owners:
        check(compose(verb, [f"{group}={name}"]).config, complete=False)


@pytest.mark.parametrize("verb", verbs())
def test_every_command_composes_and_passes_the_schema(verb: str) -> None:
    check(compose(verb, []).config, complete=False)


def test_every_file_at_the_top_is_a_command() -> None:
    assert {name for name in FILES if "/" not in name} == {*verbs(), "train"}


def test_every_experiment_is_complete_but_for_the_paths_of_data() -> None:
    for name in EXPERIMENTS:
        if teacher_of(name):  # the teacher's parts are put in when there is one: below
            continue
        config = compose("train", [f"experiment={name}", "run_id=x", "data.train_shards=x"]).config
        check(config, record=TRAINING["record"])
        assert config.name == name, "a run is found by the name of its experiment"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a few captioned pictures, and a few whose captions are class numbers."""
    folder = tmp_path_factory.mktemp("experiments")
    shapes(
        out=str(folder / "data/shapes"), num_train=16, num_val=8, seed=0, samples_per_shard=8, num_workers=1
    )
    for split in ("train", "val"):
        with ShardWriter(folder / "data/classes" / split, samples_per_shard=8) as writer:
            for number in range(8):
                writer.write(picture(number), "png", str(number), {})
    return folder


def picture(number: int) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (30 * number, 100, 200)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_two_steps(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that build on a run here at their own size, published recipes with small parts of the same structure."""
    monkeypatch.chdir(place)
    take_two_steps(name)
    folder = place / "runs" / name / "last"
    assert (folder / "finished.json").is_file()
    assert (folder / "checkpoints" / "last").is_dir()
    assert len((folder / "metrics.csv").read_text().splitlines()) > 2


@cache
def take_two_steps(name: str) -> None:
    """In the working directory; the autoencoder or the teacher that an experiment builds on is trained first."""
    if teacher := teacher_of(name):
        take_two_steps(teacher)
        launch([f"experiment={name}", "debug=fast", "trainer=cpu", f"name={name}"])
        return
    whole = compose("train", [f"experiment={name}", "data.train_shards=x", "run_id=x"]).config
    published = "path" in (whole.codec or {}) and not whole.codec.path.startswith("runs/")
    data = "classes" if "num_classes" in whole.text_encoder else "shapes"
    overrides = [
        f"experiment={name}",
        f"debug={'tiny' if published else 'fast'}",
        "trainer=cpu",
        f"data.train_shards=data/{data}/train",
        f"data.val_shards=data/{data}/val",
        f"name={name}",
    ]
    if "path" in (whole.codec or {}) and not published:
        take_two_steps(Path(whole.codec.path).relative_to("runs").parts[0])
    launch(overrides)
