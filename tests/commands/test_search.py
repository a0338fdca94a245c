"""A search over ways of sampling: what is turned, what is counted, what is kept, and its front."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from PIL import Image

from ldm.commands import search as search_command
from ldm.commands.search import Tried, calls_for_one_picture, pareto, search
from ldm.commands.search_space import RANGES, Choice, Knob, Real, Span, Whole, knobs_of, overrides
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.scores import Score
from ldm.needs import MissingNeeds
from ldm.sampling.guidance import ClassifierFree, Unguided
from ldm.sampling.samplers import Euler, Heun
from tests.commands.folders import write_run
from tests.sampling.tiny import generation


def test_what_is_turned_and_within_what():
    found = knobs_of(["guidance.scale", "num_steps=5:30", "sampler=euler|heun", "guidance.interval=0:0.8"])
    assert found == [
        Knob("guidance.scale", RANGES["guidance.scale"]),
        Knob("num_steps", Whole(5, 30)),
        Knob("sampler", Choice(("euler", "heun"))),
        Knob("guidance.interval", Span(0.0, 0.8)),
    ]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["guidance.scal"], "guidance.scale"),
        (["num_steps=30:5"], r"no range of num_steps; write num_steps=4:64"),
        (["num_steps=many"], "no range of num_steps"),
        (["num_steps", "num_steps=1:2"], "each once"),
        ([], "name one or more"),
    ],
)
def test_what_cannot_be_turned_is_told(over, message):
    with pytest.raises(ValueError, match=message):
        knobs_of(over)


def test_turns_become_overrides_of_evaluate_with_groups_before_their_values():
    values = {"guidance.interval": [0.1, 0.9], "ema.sigma_rel": 0.08, "sampler": "heun", "num_steps": 7}
    assert overrides(values, average=lambda width: f"average-{width}") == [
        "weights=average-0.08",
        "sampler=heun",
        "num_steps=7",
        "guidance.interval=[0.1,0.9]",
    ]


def test_every_choice_is_a_config():
    from ldm.commands.compose import CONFIGS

    for name, within in RANGES.items():
        if isinstance(within, Choice):
            for option in within.options:
                assert (CONFIGS / name / f"{option}.yaml").is_file(), option
        else:
            assert isinstance(within, Real | Whole | Span)


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        ({"sampler": Euler(), "guidance": Unguided()}, 4),
        ({"sampler": Euler(), "guidance": ClassifierFree(scale=2.0)}, 8),
        ({"sampler": Heun(), "guidance": Unguided()}, 7),  # the last step is Euler's
    ],
)
def test_network_calls_are_counted(parts, calls):
    from dataclasses import replace

    made = replace(generation(), num_steps=4, **parts)
    assert calls_for_one_picture(made, (4, 6)) == calls
    assert calls_for_one_picture(made, (4, 6)) == calls, "the counter was taken off again"


def test_the_front_is_what_no_other_beats_at_as_few_calls():
    points = [(8, 0.5), (4, 0.9), (16, 0.4), (8, 0.6), (32, 0.45), (4, 0.95)]
    tried = [Tried(i, (), value, None, None, calls) for i, (calls, value) in enumerate(points)]
    assert [(one.calls, one.value) for one in pareto(tried, lower_is_better=True)] == [
        (4, 0.9),
        (8, 0.5),
        (16, 0.4),
    ]
    assert [(one.calls, one.value) for one in pareto(tried, lower_is_better=False)] == [(4, 0.95)]


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    write_run(tmp_path, "a")
    monkeypatch.setattr(search_command, "package", lambda name, extra: lacking())
    with pytest.raises(MissingNeeds, match=r"pip install 'ldm\[search\]'"):
        search(run="tiny/a", over=["num_steps"], runs=str(tmp_path))


def lacking():
    from ldm.needs import package

    return package("no-such-package", extra="search")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A run whose grade grows with steps and falls away from a scale of 3, in place of a real evaluation."""
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'ldm[search]'")
    write_run(tmp_path, "a")
    asked: list[list[str]] = []

    def evaluate(verb: str, arguments: list[str]) -> list[Score]:
        given = dict(entry.split("=", 1) for entry in arguments)
        asked.append(arguments)
        if given["num_steps"] == "13":
            raise KeyboardInterrupt
        value = 1 - 1 / int(given["num_steps"]) - 0.05 * math.log(float(given["guidance.scale"]) / 3) ** 2
        told = {"num": 9, "run": "tiny/a", "checkpoint": "x", "images_seen": 1, "lower_is_better": False}
        names = ("composition/seen/all_right", "composition/seen/colour")
        return [
            Score(protocol=Protocol(metric=name), value=value, low=value - 0.1, high=value + 0.1, **told)
            for name in names
        ]

    def calls(self, turned: list[str]) -> int:
        return 2 * int(next(entry for entry in turned if entry.startswith("num_steps")).partition("=")[2])

    monkeypatch.setattr(search_command, "run_verb", evaluate)
    monkeypatch.setattr(search_command._Judge, "calls", calls)
    return asked


def test_a_search_finds_its_front_and_goes_on_where_it_was(tmp_path, measured, capsys):
    given = {"run": "tiny/a", "over": ["guidance.scale", "num_steps=4:12"], "runs": str(tmp_path)}
    given["score"] = "composition/seen/all_right"
    search(**given, trials=4)
    assert len(measured) == 4
    front = search(**given, trials=15)
    assert len(measured) == 15, "trials are counted over both calls"
    assert [entry.split("=")[0] for entry in measured[0][-2:]] == ["num_steps", "guidance.scale"]
    assert len({tuple(arguments) for arguments in measured[:8]}) > 4, (
        "it does not propose the first ones again"
    )
    values = [one.value for one in front]
    assert values == sorted(values) and front[-1].value > 0.85
    folder = tmp_path / "tiny/a/search/search"
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15 and sum(row["on_front"] == "True" for row in rows) == len(front)
    assert Image.open(folder / "front.png").size[0] > 400
    assert "network calls" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"is a study over guidance\.scale, num_steps: give this one another name"
    ):
        search(**{**given, "over": ["num_steps"]}, trials=1)
    with pytest.raises(ValueError, match="name one of composition/seen/all_right, composition/seen/colour"):
        search(**{**given, "score": None, "name": "other"}, trials=1)


def test_what_was_cut_off_does_not_count(tmp_path, measured):
    given = {"run": "tiny/a", "runs": str(tmp_path), "score": "composition/seen/all_right"}
    with pytest.raises(KeyboardInterrupt):
        search(**given, over=["guidance.scale", "num_steps=12:13"], trials=60)
    done = len(measured) - 1
    search(**given, over=["guidance.scale", "num_steps=11:12"], trials=done + 2)
    assert len(measured) == done + 1 + 2
