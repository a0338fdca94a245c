"""The whole way: runs trained, evaluated, compared. What a seed alone parts is not told apart, what is crippled is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm.commands.compare import make_comparison
from ldm.commands.compare_verdicts import SAME
from ldm.commands.launch import launch
from ldm.commands.main import main
from ldm.commands.shapes import shapes
from ldm.evaluation.scores import read_per_sample, read_scores

pytestmark = pytest.mark.slow

TINY = [
    "experiment=shapes_dit",
    "trainer=cpu",
    "codec=pooled",
    "~codec.path",
    "data=shapes_images",
    "data.batch_size=16",
    "network.depth=1",
    "network.width=64",
    "network.num_heads=1",
    "text_encoder.num_buckets=64",
    "num_images=320",
    "task.num_steps=1",
    "callbacks.samples.prompts=[a red circle]",
    "callbacks.ema.decay=0.8",
    "lr_schedule.warmup_images=64",
    "name=tiny",
]
RUNS = {"first": [], "second": ["seed=1"], "crippled": ["optimizer.lr=1e-5"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shapes(out="data/shapes", num_train=64, num_val=24, seed=0, samples_per_shard=32, num_workers=1)
        for run_id, others in RUNS.items():
            launch([*TINY, f"run_id={run_id}", *others])
            for weights in ("ema", "online"):
                main(["evaluate", f"run=tiny/{run_id}", "metrics=[pinned_loss]", f"weights={weights}"])
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_each_run_has_its_pinned_losses_of_both_weights_over_the_same_pictures(here: Path) -> None:
    found = {run: read_scores(here / "runs/tiny" / run) for run in RUNS}
    for run, scores in found.items():
        assert sorted(score.protocol.weights for score in scores) == ["ema", "online"]
        for score in scores:
            losses = read_per_sample(here / "runs/tiny" / run, score)
            assert losses is not None and losses.values.shape == (24, 10)
            assert score.value == pytest.approx(losses.values.mean()) and score.low < score.value < score.high
            assert score.images_seen == 320 and score.num == 24
        ema, online = (read_per_sample(here / "runs/tiny" / run, score) for score in scores)
        assert not np.allclose(ema.values, online.values)
    hashes = {score.protocol.hash for scores in found.values() for score in scores}
    assert len(hashes) == 2, "the runs' seeds and weights change nothing about how they are measured"
    assert (here / "runs/tiny/first/evaluation/pinned_loss.png").is_file()


def test_two_runs_that_differ_by_their_seed_only_are_not_distinguishable(here: Path) -> None:
    found = make_comparison(["tiny/first", "tiny/second"])
    assert {verdict.text for row in found.rows for verdict in row.verdicts.values()} == {SAME}


def test_a_crippled_run_is_found_to_be_worse_also_beside_several_seeds(here: Path) -> None:
    found = make_comparison(["tiny/first", "tiny/crippled"])
    assert len(found.rows) == 2
    for row in found.rows:
        assert row.verdicts["tiny/crippled"].text == "worse, these two runs", row
        worse = [level.verdicts["tiny/crippled"].text.startswith("worse") for level in row.levels]
        assert sum(worse) >= 3, "at several noise levels by themselves"
    losses = [row.cells["tiny/first"].value for row in found.rows]
    assert max(losses) < min(row.cells["tiny/crippled"].value for row in found.rows)


def test_the_command_takes_them_as_they_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "runs=[tiny/first,tiny/crippled]", "out=page"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "optimizer.lr" in printed and "worse" in printed and "images/s" in printed
    page = (here / "page.html").read_text()
    assert page.count("<figure>") >= 2 and "the same prompts from the same noise" in page
    assert (here / "page.csv").is_file()
