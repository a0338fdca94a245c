"""One change at a time: which runs are made, which are not made again, and what comes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.commands import ablate as ablate_command
from ldm.commands.ablate import BASE, ablate, plan, refuse_another_recipe, slug
from ldm.commands.jobs import launch_jobs
from ldm.commands.messages import ConfigError
from ldm.commands.override_lists import with_quotes
from ldm.commands.shapes import shapes
from tests.commands.folders import KEYS, PICTURES, PROTOCOL, add_score

COMMON = [
    "trainer=cpu",
    "codec=pooled",
    "~codec.path",
    "data=shapes_images",
    "data.batch_size=4",
    "network.depth=1",
    "network.width=64",
    "network.num_heads=1",
    "text_encoder.num_buckets=64",
    "num_images=8",
    "task.num_steps=1",
    "callbacks.samples.prompts=[a red circle]",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shapes(out="data/shapes", num_train=8, num_val=4, seed=0, samples_per_shard=8, num_workers=1)
    return tmp_path


def test_each_change_alone_with_each_seed():
    vary = ["network.depth=8", "sampler=heun num_steps=9"]
    trainings = plan("shapes_dit", vary, seeds=2, common=["x=1"], name="a", folder="r")
    assert [training.label for training in trainings] == [BASE, BASE] + ["network.depth=8"] * 2 + [
        "sampler=heun num_steps=9"
    ] * 2
    assert [training.folder.path.as_posix() for training in trainings[1::2]] == [
        "r/a/base-seed1",
        "r/a/network.depth-8-seed1",
        "r/a/sampler-heun-num_steps-9-seed1",
    ]
    assert trainings[4].overrides[:4] == ("experiment=shapes_dit", "x=1", "sampler=heun", "num_steps=9")
    assert {"seed=1", "group=a", "run_id=base-seed1"} <= set(trainings[1].overrides)


def test_names_of_changes():
    assert slug("diffusion/weighting=min_snr") == "weighting-min_snr"
    assert slug("~callbacks.ema") == "callbacks.ema" and slug("a.b=[1,2]") == "a.b-1-2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vary": []}, "vary is empty"),
        ({"vary": ["network.depth=1", "network.depth=1"]}, "same name"),
        ({"vary": ["network.depth=1"], "seeds": [1, 1]}, "each once"),
        ({"vary": ["network.depth=1"], "seeds": 0}, "one or more"),
    ],
)
def test_what_makes_no_ablation_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        plan("shapes_dit", given.pop("vary"), seeds=given.pop("seeds", 1), common=[], name="a", folder="r")


def test_a_change_that_does_not_fit_stops_everything_before_it_begins(here):
    with pytest.raises(ConfigError, match="dept"):
        ablate(base="shapes_dit", vary=["network.dept=2"], common=COMMON, metrics=[])
    assert not (here / "runs").exists()


def test_lists_of_overrides_need_no_quotes():
    assert with_quotes("vary=[a/b=c,d.e=false]") == "vary=['a/b=c','d.e=false']"
    assert with_quotes("vary=[x=[1,2],'a=b',{c: d}]") == "vary=['x=[1,2]','a=b',{c: d}]"
    assert with_quotes("vary=[a=it's]") == "vary=['a=it\\'s']"
    assert with_quotes("a=[1,2]") is None and with_quotes("a=b=c") is None


@pytest.mark.slow
def test_an_ablation_from_its_trainings_to_its_table(here, monkeypatch, capsys):
    """Scores are put into the run folders in place of an evaluation: that has its own tests."""

    def scored(verb: str, arguments: list[str]) -> None:
        assert verb == "evaluate" and "metrics=[pinned_loss]" in arguments
        folder = Path(arguments[0].removeprefix("run="))
        effect = 0.3 if "qk_norm" in folder.name else 0.0
        seed = int(folder.name[-1])
        add_score(folder, PROTOCOL, PICTURES + effect + 0.01 * seed)

    monkeypatch.setattr(ablate_command, "run_verb", scored)
    given = {
        "base": "shapes_dit",
        "vary": ["network.qk_norm=true"],
        "seeds": 2,
        "common": COMMON,
        "name": "study",
    }
    found = ablate(**given, metrics=["pinned_loss"])
    runs = sorted(
        path.parent.name for path in here.glob("runs/study/*/finished.json") if path.parent.name != "last"
    )
    assert runs == ["base-seed0", "base-seed1", "network.qk_norm-true-seed0", "network.qk_norm-true-seed1"]
    [row] = found.rows
    assert row.verdicts["network.qk_norm=true"].text == "worse"
    assert list(row.cells) == [BASE, "network.qk_norm=true"] and len(KEYS) == 40
    table = (here / "runs/study/ablation.md").read_text()
    assert "| base | " in table and "network.qk_norm=true" in table and "†" in table
    assert "\\begin{tabular}" in (here / "runs/study/ablation.tex").read_text()
    assert (here / "runs/study/ablation.html").is_file() and (here / "runs/study/ablation.csv").is_file()

    # Again: nothing is trained, and a stopped one goes on.
    stamps = {run: (here / "runs/study" / run / "finished.json").stat().st_mtime_ns for run in runs}
    (here / "runs/study/base-seed1/finished.json").unlink()
    capsys.readouterr()
    ablate(**given, metrics=["pinned_loss"])
    assert "4 runs, 3 of them finished before" in capsys.readouterr().out
    again = {run: (here / "runs/study" / run / "finished.json").stat().st_mtime_ns for run in runs}
    assert [run for run in runs if again[run] != stamps[run]] == ["base-seed1"]
    commands = (here / "runs/study/base-seed1/command.txt").read_text().splitlines()
    assert len(commands) == 2 and "resume=" in commands[1] and "train.py" in commands[0]

    # A run of that name and another recipe is not taken for this one.
    with pytest.raises(ValueError, match=r"base-seed0 is a run of another recipe \(num_images 8 / 12"):
        ablate(**{**given, "common": [*COMMON, "num_images=12"]}, metrics=[])
    first = plan(
        "shapes_dit", ["network.qk_norm=true"], seeds=[0], common=COMMON, name="study", folder="runs"
    )[0]
    refuse_another_recipe(first)


def test_a_job_that_fails_is_told_and_the_next_one_is_tried(here, capfd):
    bad = ["experiment=shapes_dit", *COMMON, "data.train_shards=nowhere", "name=j", "run_id=bad"]
    worse = ["experiment=shapes_dit", *COMMON, "init_from=nowhere", "name=j", "run_id=worse"]
    told = launch_jobs([bad, worse])
    assert all("exit status 1" in why for why in told), told
    assert "nowhere" in capfd.readouterr().err
