"""``ldm evaluate`` with a run that knows the answers, so that every figure in its report is known beforehand."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.commands import evaluate as command
from ldm.commands.load import LoadedRun
from ldm.data.shapes import sample_scene
from ldm.data.shapes_captions import captions, evaluation_prompts
from ldm.data.shapes_render import render
from ldm.sampling.from_run import FromRun, GuidanceFromRun
from ldm.sampling.grids import Uniform
from ldm.sampling.guidance import ClassifierFree
from ldm.sampling.samplers import Euler, Heun
from ldm.training.run import RunFolder

SEED = 3
OWN = {"sampler": FromRun(), "grid": FromRun(), "guidance": GuidanceFromRun()}


@dataclass(frozen=True)
class KnowsTheAnswers:
    """Draws what is asked for: always for seen combinations, and for never-seen ones one thing too few."""

    sampler: object = field(default_factory=Euler)
    grid: object = field(default_factory=Uniform)
    guidance: object = field(default_factory=lambda: ClassifierFree(scale=2.0))
    num_steps: int = 7
    asked: list = field(default_factory=list)  # all prompts so far: they come in batches

    def images(self, prompts, seeds, *, latent_size, batch_size):
        assert len(set(seeds)) == len(prompts)
        assert latent_size == (8, 8)
        assert len(prompts) <= batch_size
        places = range(len(self.asked), len(self.asked) + len(prompts))
        self.asked.extend(prompts)
        scenes = [sample_scene(SEED, f"evaluation/{i:06d}", held_out=i % 2 == 1) for i in places]
        assert all(prompt in captions(scene) for prompt, scene in zip(prompts, scenes, strict=True))
        drawn = [replace(s, things=s.things[1:]) if s.is_held_out else s for s in scenes]
        return torch.from_numpy(np.stack([render(scene) for scene in drawn])).permute(0, 3, 1, 2)


class Module(torch.nn.Module):
    latent_size = (8, 8)

    def generation(self):
        return KnowsTheAnswers()


@pytest.fixture
def run(tmp_path, monkeypatch):
    def load(where, *, weights, runs):
        folder = RunFolder(tmp_path / "shapes_dit" / "1")
        return LoadedRun(folder, OmegaConf.create(), Module(), Path("last.ckpt"), "0" * 64, weights, 1000)

    monkeypatch.setattr(command, "load_run", load)
    return tmp_path / "shapes_dit" / "1"


def test_the_report_tells_seen_from_never_seen(run, capsys):
    report = command.evaluate(run="shapes_dit", num_prompts=60, seed=SEED, **OWN)
    assert report["seen"]["all_right"]["right"] == 30
    assert report["seen"]["all_right"]["asked"] == 30
    assert report["never seen"]["all_right"]["right"] == 0
    assert report["never seen"]["count"]["right"] == 0
    for group in ("seen", "never seen"):
        parts = [report[f"{group}, {kind}"]["all_right"]["asked"] for kind in ("single", "count", "relation")]
        assert sum(parts) == 30
        assert report[group]["relation"]["asked"] == parts[2]
        for share in report[group].values():
            assert share["low"] <= share["share"] <= share["high"]
    printed = capsys.readouterr().out
    assert "100.0" in printed
    assert "never seen" in printed


def test_table_lines_and_pictures_are_written(run):
    command.evaluate(run="shapes_dit", num_prompts=10, seed=SEED, num_steps=3, **OWN)
    folder = run / "evaluation"
    written = json.loads((folder / "composition.json").read_text())
    assert written["recipe"]["checkpoint_hash"] == "0" * 64
    assert written["recipe"]["num_steps"] == 3
    assert written["report"]["seen"]["all_right"]["share"] == 1.0
    lines = list(csv.DictReader((folder / "composition.csv").open()))
    assert [line["prompt"] for line in lines] == [prompt.text for prompt in evaluation_prompts(10, SEED)]
    assert [line["all_right"] for line in lines] == ["True", "False"] * 5
    assert Image.open(folder / "composition.png").width > 600


def test_the_runs_own_sampler_is_taken_unless_another_is_given(run):
    def recipe(**changes):
        command.evaluate(run="shapes_dit", num_prompts=2, seed=SEED, **{**OWN, **changes})
        return json.loads((run / "evaluation" / "composition.json").read_text())["recipe"]

    assert recipe()["sampler"]["_target_"].endswith("Euler")
    assert recipe(sampler=Heun())["sampler"]["_target_"].endswith("Heun")
    assert recipe()["guidance"]["scale"] == 2.0
    assert recipe(guidance=GuidanceFromRun(scale=4.0))["guidance"]["scale"] == 4.0


def test_a_run_that_knows_no_prompts_is_refused(run, monkeypatch):
    monkeypatch.delattr(Module, "generation")
    with pytest.raises(ValueError, match="no pictures from prompts"):
        command.evaluate(run="shapes_vae", **OWN)


def test_no_prompts_are_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="num_prompts=0"):
        command.evaluate(run="nowhere", num_prompts=0, **OWN)
