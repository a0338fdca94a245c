"""``ldm evaluate``: what is measured, written, left out and gone on with; a run that knows the answers is graded."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.shapes import sample_scene
from ldm.data.shapes_captions import captions, evaluation_prompts
from ldm.data.shapes_render import render
from ldm.evaluation.clip_score import ClipScore
from ldm.evaluation.distribution import Frechet, KernelDistance, Manifold
from ldm.evaluation.features import Features, OwnEncoder, Pixels
from ldm.evaluation.inception import Inception
from ldm.evaluation.looking import WHOLE
from ldm.evaluation.scores import read_per_sample, read_scores
from ldm.needs import MissingNeeds, Need
from ldm.sampling.from_run import GuidanceFromRun
from ldm.sampling.samplers import Heun
from ldm.training.graded import Composition
from tests.commands.scored import Run, make_run, make_shards, noise, pictures_of

SEED = 3
SMALL = Pixels(size=4)


class KnowsTheAnswers:
    """Draws what is asked for: always for seen combinations, and for never-seen ones one thing too few."""

    def __init__(self) -> None:
        self.place = 0

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        assert len(set(seeds)) == len(seeds)
        places = range(self.place, self.place + len(prompts))
        self.place += len(prompts)
        scenes = [sample_scene(SEED, f"evaluation/{i:06d}", held_out=i % 2 == 1) for i in places]
        assert all(prompt in captions(scene) for prompt, scene in zip(prompts, scenes, strict=True))
        drawn = [replace(s, things=s.things[1:]) if s.is_held_out else s for s in scenes]
        return torch.from_numpy(np.stack([render(scene) for scene in drawn])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def run(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return make_run(tmp_path, shards, KnowsTheAnswers(), monkeypatch)


# ------------------------------------------------------------------------------------------------ the composition


def graded(num: int) -> dict[str, Composition]:
    return {"composition": Composition(num_prompts=num)}


def test_the_report_tells_seen_from_never_seen(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {one.metric: one for one in run.evaluate(graded(60), seed=SEED)}
    assert scores["composition/seen/all_right"].value == 1
    assert scores["composition/never_seen/all_right"].value == 0
    assert scores["composition/seen/all_right"].num == 30
    report = scores["composition/seen/all_right"].extra["report"]
    assert report["never seen"]["count"]["right"] == 0
    for group in ("seen", "never seen"):
        parts = [report[f"{group}, {kind}"]["all_right"]["asked"] for kind in ("single", "count", "relation")]
        assert sum(parts) == 30
        assert report[group]["relation"]["asked"] == parts[2]
    assert all(one.low <= one.value <= one.high for one in scores.values())  # type: ignore[operator]
    printed = capsys.readouterr().out
    assert "100.0" in printed
    assert "never seen" in printed


def test_table_lines_and_pictures_are_written(run: Run) -> None:
    run.evaluate(graded(10), seed=SEED, num_steps=3)
    folder = run.path / "evaluation"
    written = json.loads((folder / "composition.json").read_text())
    assert written["recipe"]["num_steps"] == 3
    assert written["report"]["seen"]["all_right"]["share"] == 1.0
    lines = list(csv.DictReader((folder / "composition.csv").open()))
    assert [line["prompt"] for line in lines] == [prompt.text for prompt in evaluation_prompts(10, SEED)]
    assert [line["all_right"] for line in lines] == ["True", "False"] * 5
    assert Image.open(folder / "composition.png").width > 600


def test_the_verdict_on_each_picture_is_kept_for_pairs(run: Run) -> None:
    scores = {one.metric: one for one in run.evaluate(graded(10), seed=SEED)}
    kept = read_per_sample(run.path, scores["composition/never_seen/all_right"])
    assert kept is not None
    assert kept.keys == tuple(f"{SEED}/{i}" for i in range(1, 10, 2)) and not kept.values.any()


def test_the_runs_own_sampler_is_taken_unless_another_is_given(run: Run) -> None:
    def protocol(**changes: object):
        run.draw = KnowsTheAnswers()
        return run.evaluate(graded(2), seed=SEED, **changes)[0].protocol

    own = protocol()
    assert own.sampler["_target_"].endswith("Euler")
    assert protocol(sampler=Heun()).sampler["_target_"].endswith("Heun")
    assert own.guidance["scale"] == 2.0
    assert protocol(guidance=GuidanceFromRun(scale=4.0)).guidance["scale"] == 4.0
    assert own.ema_width == 0.99 and own.seeds == (SEED,)


# ------------------------------------------------------------------------------------------------ distributions


def of_samples(num: int = 40) -> dict[str, object]:
    given = {"features": SMALL, "num_samples": num}
    return {"frechet": Frechet(**given), "kernel": KernelDistance(**given), "manifold": Manifold(**given)}


def test_noise_is_far_from_the_data_and_the_data_are_near(run: Run, shards: Path) -> None:
    run.draw = noise
    far = run.value(of_samples())
    drawn = iter(pictures_of(shards / "val").split(16))
    run.draw = lambda prompts, seeds: next(drawn)[: len(prompts)]
    near = run.value(of_samples(), again=True)
    assert near.keys() == far.keys() == {
        "frechet_pixels", "kernel_pixels", "precision_pixels", "recall_pixels", "density_pixels", "coverage_pixels"
    }  # fmt: skip
    assert near["frechet_pixels"] < 0.2 * far["frechet_pixels"]
    assert near["kernel_pixels"] < 0.2 * far["kernel_pixels"]
    assert far["precision_pixels"] == 0 and near["precision_pixels"] > 0.6


def test_every_score_is_a_record_with_an_interval_and_its_passport(run: Run) -> None:
    run.draw = noise
    run.evaluate(of_samples(), num_seeds=2)
    for score in read_scores(run.path):
        assert score.low is not None and score.high is not None and score.low <= score.value <= score.high
        assert len(score.per_seed) == 2 and score.value == pytest.approx(sum(score.per_seed) / 2)
        protocol = score.protocol
        assert protocol.seeds == (0, 1) and protocol.num_images == 40
        assert protocol.reference == "training set of 96" and len(protocol.reference_hash) == 64
        assert protocol.features == "plain pixels, 4x4" and protocol.resize == "area 4"
        assert protocol.sampler and protocol.guidance and len(protocol.prompts_hash) == 64
        kept = read_per_sample(run.path, score)
        assert kept is not None and float(kept.values.mean()) == pytest.approx(score.value)
    assert len(run.asked) == 80, "one walk for all metrics, for each seed"


def test_captions_of_the_reference_are_asked_for_and_in_other_words_the_second_time(
    run: Run, shards: Path
) -> None:
    run.draw = noise
    run.evaluate({"frechet": Frechet(features=SMALL, num_samples=150)})
    assert len(run.asked) == 150
    again = [a != b for a, b in zip(run.asked[:54], run.asked[96:], strict=True)]
    assert any(again) and len(set(run.asked)) > 60


def test_own_features_are_labelled_as_such(run: Run) -> None:
    run.draw = noise
    (score,) = run.evaluate({"frechet": Frechet(features=OwnEncoder(), num_samples=20)})
    assert score.metric == "frechet_own" and "trained on these data" in score.protocol.features


COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


@dataclass(frozen=True)
class ColourClip:
    """Pictures and texts in one space of three colours."""

    label: str = "colours"
    title: str = "colours"
    resizing: str = "none"

    def needs(self) -> list[Need]:
        return []

    def open(self, *, device: torch.device, codecs: object) -> Features:
        def texts(captions: Sequence[str]) -> Tensor:
            return torch.tensor([colour_of(caption) for caption in captions]).float()

        return Features(
            "colours", "none", lambda x: torch.nn.functional.normalize(x.float().mean((2, 3)), dim=1), texts
        )


def colour_of(caption: str) -> tuple[int, int, int]:
    return next((rgb for name, rgb in COLOURS.items() if name in caption), COLOURS["blue"])


def plain(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """A plain picture in the colour of the prompt."""
    colours = torch.tensor([colour_of(prompt) for prompt in prompts], dtype=torch.uint8)
    return (200 * colours)[:, :, None, None].expand(-1, -1, 64, 64).contiguous()


def test_the_clip_score_is_the_cosine_between_a_picture_and_its_own_prompt(run: Run) -> None:
    metrics = {"clip": ClipScore(features=ColourClip(), num_samples=30)}
    run.draw = plain
    assert run.value(metrics) == {"clip_score": pytest.approx(100)}
    run.draw = lambda prompts, seeds: plain(prompts, seeds).flip(1)  # red for blue, green stays
    shares = [colour_of(prompt) == COLOURS["green"] for prompt in run.asked]
    found = run.value(metrics, again=True)["clip_score"]
    assert found == pytest.approx(100 * sum(shares) / len(shares)) and 0 < found < 100


def test_a_network_that_reads_no_texts_gives_no_clip_score(run: Run) -> None:
    run.draw = plain
    with pytest.raises(ValueError, match="reads no texts; give features=clip"):
        run.evaluate({"clip": ClipScore(features=SMALL, num_samples=4)})


# ------------------------------------------------------------------------------------------- done, and interrupted


def test_what_is_scored_is_not_scored_again(run: Run) -> None:
    run.draw = noise
    first = run.value(of_samples())
    asked = len(run.asked)
    assert run.value(of_samples()) == first
    assert len(run.asked) == asked
    run.evaluate(of_samples(), seed=1)
    assert len(run.asked) == 2 * asked, "another seed is another score"
    run.evaluate(of_samples(), again=True)
    assert len(run.asked) == 3 * asked
    assert not (run.path / "evaluation" / "walks").exists()


def test_an_interrupted_evaluation_goes_on(run: Run) -> None:
    def fails_late(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        if len(run.asked) >= 32:
            raise KeyboardInterrupt
        return noise(prompts, seeds)

    run.draw = fails_late
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(of_samples(48))
    assert len(run.asked) == 32
    run.draw = noise
    found = run.value(of_samples(48))
    assert len(run.asked) == 48
    assert run.value(of_samples(48), again=True) == pytest.approx(found, rel=1e-12)


def test_reference_sets_are_looked_at_once_for_all_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.draw = noise
    references = tmp_path / "references"
    alone = {"frechet": Frechet(features=SMALL, num_samples=20)}
    first = run.value(alone, references=str(references))
    assert [file.name for file in references.rglob("*.safetensors")] == ["moments.safetensors"]
    first |= run.value(of_samples(), references=str(references))
    assert sorted(file.name for file in references.rglob("*.safetensors")) == [WHOLE, "moments.safetensors"]

    def read(*_: object) -> None:
        raise AssertionError("the training set was read again")

    monkeypatch.setattr("ldm.data.pipeline.ShardDataset.read", read)
    assert run.value(of_samples(), references=str(references), again=True) == pytest.approx(first, rel=1e-9)
    run.value(alone, references=str(references), again=True)


def test_all_checkpoints_are_measured_oldest_first(run: Run) -> None:
    run.draw = noise
    places = [run.checkpoint(images) for images in (100, 300, 200)]
    run.evaluate({"frechet": Frechet(features=SMALL, num_samples=20)}, checkpoint="all")
    assert run.loaded == sorted(places)
    assert [score.images_seen for score in read_scores(run.path)] == [100, 200, 300]
    run.evaluate({"frechet": Frechet(features=SMALL, num_samples=20)}, checkpoint="images_000000200")
    assert run.loaded[-1] == places[2]
    with pytest.raises(FileNotFoundError, match="no checkpoint 'best'; there are images_000000300"):
        run.evaluate(of_samples(), checkpoint="best")


def test_following_measures_what_comes_until_the_training_ends(run: Run) -> None:
    run.draw = noise
    run.checkpoint(100)

    def train() -> None:
        while not read_scores(run.path):
            time.sleep(0.01)
        run.checkpoint(200)
        (run.path / "finished.json").write_text("{}")

    training = threading.Thread(target=train)
    training.start()
    metrics = {"frechet": Frechet(features=SMALL, num_samples=20)}
    scores = run.evaluate(metrics, checkpoint="all", follow=True, poll=0.01)
    training.join()
    assert [score.images_seen for score in scores] == [100, 200]


# ------------------------------------------------------------------------------------------------------- refused


def test_missing_weights_are_told_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "x.pth")
    with pytest.raises(MissingNeeds, match=r"give metrics\.fid\.features\.path=<file>") as error:
        run.evaluate({"fid": Frechet(features=Inception(path=nowhere)), **of_samples()})
    assert nowhere in str(error.value) and not run.loaded


def test_pictures_that_are_no_shapes_are_not_graded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.draw = noise
    monkeypatch.setattr("ldm.data.index.SampleIndex.read", lambda *_: b'{"captions": ["a photo"]}')
    with pytest.raises(ValueError, match=r"no shapes.*metrics=\[frechet,kernel,manifold\]"):
        run.evaluate(graded(4))
    assert not run.asked


def test_a_run_that_makes_no_pictures_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("tests.commands.scored.Module.generation")
    with pytest.raises(ValueError, match="makes no pictures from prompts"):
        run.evaluate(of_samples())


@pytest.mark.parametrize("wrong", [{"num_prompts": 0}, {"num_samples": 0}, {"num_seeds": 0}, {"metrics": {}}])
def test_nothing_to_do_is_refused_before_anything_is_loaded(run: Run, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        run.evaluate(**{"metrics": graded(2), **wrong})  # type: ignore[arg-type]
    assert not run.loaded


def test_one_checkpoint_has_no_others(run: Run) -> None:
    place = run.checkpoint(100)
    with pytest.raises(ValueError, match="one checkpoint already"):
        run.evaluate(of_samples(), run=str(place), follow=True)
