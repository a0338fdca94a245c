"""Runs beside each other: what is found, what is not, what is refused, and what is written."""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ldm.commands.compare import compare, make_comparison
from ldm.commands.compare_tables import latex, markdown
from ldm.commands.compare_verdicts import ALIKE, SAME, UNKNOWN
from ldm.commands.main import main
from ldm.evaluation.protocol import RECORDED, MixedProtocols, Protocol
from ldm.evaluation.scores import Score, write_score
from ldm.evaluation.significance import PICTURES, RUNS
from tests.commands.folders import CONFIG, KEYS, PROTOCOL, add_score, write_run
from tests.commands.folders import PICTURES as LOSSES
from tests.evaluation.test_protocol import OTHERWISE

CRIPPLED = {"network": {**CONFIG["network"], "depth": 1}}
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def verdicts(*runs: str, folder: Path, **given) -> dict[str, str]:
    """Label -> verdict of the pinned loss."""
    [row] = [
        row for row in make_comparison(runs, folder=str(folder), **given).rows if row.metric == "pinned_loss"
    ]
    return {label: verdict.text for label, verdict in row.verdicts.items()}


def test_runs_that_differ_by_seed_only_are_not_distinguishable_however_far_apart(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", seed=1, effect=0.05)
    assert verdicts("tiny/a", "tiny/b", folder=tmp_path) == {"tiny/b": SAME}
    notes = make_comparison(["tiny/a", "tiny/b"], folder=str(tmp_path)).notes
    assert any("differ by their seed only" in note for note in notes)


def test_a_crippled_run_is_found_at_the_levels_where_it_is_crippled(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", seed=0, config=CRIPPLED, effect=[0.0, 0.05])
    found = make_comparison(["tiny/a", "tiny/b"], folder=str(tmp_path))
    [row] = found.rows
    verdict = row.verdicts["tiny/b"]
    assert verdict.text == "worse, these two runs" and verdict.difference.over == PICTURES
    assert verdict.difference.low < 0.025 < verdict.difference.high
    texts = {level.metric: level.verdicts["tiny/b"].text for level in row.levels}
    assert texts == {"pinned_loss/-1": ALIKE, "pinned_loss/+1": "worse, these two runs"}
    assert any("train several seeds" in note for note in found.notes)
    assert verdicts("tiny/b", "tiny/a", folder=tmp_path) == {"tiny/a": "better, these two runs"}


def test_another_recipe_that_changes_nothing_is_not_distinguishable(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", config=CRIPPLED)
    assert verdicts("tiny/a", "tiny/b", folder=tmp_path) == {"tiny/b": ALIKE}


def test_what_seeds_do_decides_where_there_are_several(tmp_path):
    """One run of each would be told apart by an effect that seeds make as well."""
    names = []
    for recipe, config, effect in (
        ("a", {}, 0.0),
        ("b", CRIPPLED, 0.02),
        ("c", CRIPPLED | {"num_images": 9}, 0.5),
    ):
        for seed, luck in enumerate((-0.03, 0.0, 0.04) if recipe != "b" else (0.03, -0.04, 0.01)):
            write_run(tmp_path, f"{recipe}{seed}", seed=seed, config=config, effect=effect + luck)
            names.append(f"tiny/{recipe}{seed}")
    assert verdicts("tiny/a0", "tiny/b0", folder=tmp_path) == {"tiny/b0": "worse, these two runs"}
    found = make_comparison(names, folder=str(tmp_path))
    assert [recipe.seeds for recipe in found.recipes] == [[0, 1, 2]] * 3
    [row] = found.rows
    texts = [verdict.text for verdict in row.verdicts.values()]
    assert texts == [ALIKE, "worse"]
    assert {verdict.difference.over for verdict in row.verdicts.values()} == {RUNS}
    assert row.cells["tiny/a0 and 2 more"].per_run == pytest.approx(
        [LOSSES.mean() + luck for luck in (-0.03, 0.0, 0.04)], abs=0.01
    )


@pytest.mark.parametrize("name", [name for name in OTHERWISE if name != "metric"])
def test_each_single_changed_field_of_the_protocol_is_refused(tmp_path, name):
    other = dataclasses.replace(PROTOCOL, **{name: OTHERWISE[name]})
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", config=CRIPPLED, protocol=other)
    with pytest.raises(MixedProtocols, match=rf"pinned_loss of tiny/a and of tiny/b .* {name}[ .]"):
        compare(runs=["tiny/a", "tiny/b"], folder=str(tmp_path), out=str(tmp_path / "c"))
    assert not (tmp_path / "c.html").exists()
    assert verdicts("tiny/a", "tiny/b", folder=tmp_path, across=[name]) == {"tiny/b": ALIKE}


def test_who_measured_is_no_reason_to_refuse(tmp_path):
    assert RECORDED == ("made_with",)
    write_run(tmp_path, "a")
    write_run(
        tmp_path, "b", config=CRIPPLED, protocol=dataclasses.replace(PROTOCOL, made_with={"commit": "x"})
    )
    assert verdicts("tiny/a", "tiny/b", folder=tmp_path) == {"tiny/b": ALIKE}


def test_ways_of_measuring_that_all_share_stand_in_rows_of_their_own(tmp_path):
    online = dataclasses.replace(PROTOCOL, weights="online")
    for name, config in (("a", {}), ("b", CRIPPLED)):
        add_score(write_run(tmp_path, name, config=config), online, LOSSES + (name == "b"))
    add_score(tmp_path / "tiny/a", dataclasses.replace(PROTOCOL, num_images=3), LOSSES)
    rows = make_comparison(["tiny/a", "tiny/b"], folder=str(tmp_path)).rows
    assert {row.way: row.verdicts["tiny/b"].text for row in rows} == {
        "ema": ALIKE,
        "online": "worse, these two runs",
    }


def test_schedules_of_different_reach_are_compared_where_both_reach(tmp_path):
    less = dataclasses.replace(PROTOCOL, details={"levels": [-1, 1], "reached": [1]})
    write_run(tmp_path, "a")
    folder = write_run(tmp_path, "b", config=CRIPPLED)
    shutil.rmtree(folder / "evaluation")
    add_score(folder, less, LOSSES[:, 1:] + 0.1)
    [row] = make_comparison(["tiny/a", "tiny/b"], folder=str(tmp_path)).rows
    assert row.verdicts["tiny/b"].difference.value == pytest.approx(0.1, abs=0.01)
    assert row.cells["tiny/a"].value == pytest.approx(LOSSES[:, 1].mean(), abs=0.01)


def test_scores_without_single_samples_are_judged_by_their_intervals_and_without_those_not_at_all(tmp_path):
    fid, bare = (Protocol(metric=name, num_images=500) for name in ("fid", "kid"))
    for name, config, value in (("a", {}, 10.0), ("b", CRIPPLED, 30.0)):
        folder = write_run(tmp_path, name, config=config)
        told = {"num": 500, "run": f"tiny/{name}", "checkpoint": "images_000001000", "images_seen": 1000}
        write_score(folder, Score(protocol=fid, value=value, low=value - 2, high=value + 2, **told))
        write_score(folder, Score(protocol=bare, value=value, lower_is_better=False, **told))
    rows = {row.metric: row for row in make_comparison(["tiny/a", "tiny/b"], folder=str(tmp_path)).rows}
    assert rows["fid"].verdicts["tiny/b"].text == "worse, these two runs"
    assert rows["kid"].verdicts["tiny/b"].text == UNKNOWN


def test_many_metrics_are_judged_together(tmp_path):
    """Twenty metrics that say nothing: now and then one would, each alone."""
    generator = np.random.default_rng(5)
    for name, config in (("a", {}), ("b", CRIPPLED)):
        folder = write_run(tmp_path, name, config=config)
        for i in range(20):
            add_score(folder, Protocol(metric=f"m{i:02d}"), generator.normal(size=(40, 1)))
    found = make_comparison(["tiny/a", "tiny/b"], folder=str(tmp_path))
    judged = [row.verdicts["tiny/b"] for row in found.rows]
    assert all(verdict.adjusted >= verdict.difference.p for verdict in judged)
    assert {verdict.text for verdict in judged} == {ALIKE}
    assert any("21 comparisons with tiny/a" in note and "Holm" in note for note in found.notes)


def test_what_is_missing_is_said(tmp_path):
    write_run(tmp_path, "a")
    folder = write_run(tmp_path, "b", config=CRIPPLED, finished=False)
    add_score(tmp_path / "tiny/a", Protocol(metric="psnr"), LOSSES[:, :1])
    found = make_comparison(["tiny/a", "tiny/b"], folder=str(tmp_path))
    assert found.lacking == ("psnr: not measured for tiny/b",)
    assert "tiny/b has not finished" in found.notes
    shutil.rmtree(folder / "evaluation")
    found = make_comparison(["tiny/a", "tiny/b"], folder=str(tmp_path))
    assert not found.rows and any("metrics=[pinned_loss]" in note for note in found.notes)


def test_only_scores_at_so_many_images(tmp_path):
    for name, config in (("a", {}), ("b", CRIPPLED)):
        folder = write_run(tmp_path, name, config=config)
        add_score(folder, PROTOCOL, LOSSES + (name == "b"), images_seen=500)
    assert verdicts("tiny/a", "tiny/b", folder=tmp_path, at_images=500) == {"tiny/b": "worse, these two runs"}
    assert verdicts("tiny/a", "tiny/b", folder=tmp_path) == {"tiny/b": ALIKE}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runs": ["tiny/a"]}, "name two or more"),
        ({"runs": ["tiny/a", "tiny/a"]}, "tiny/a is named twice"),
        ({"runs": ["tiny/a", "tiny/b"], "labels": ["x"]}, "1 labels for 2 runs"),
        ({"runs": ["tiny/a", "tiny/b"], "metrics": ["fid"]}, "fid was not measured.*what was: pinned_loss"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, given, message):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b")
    with pytest.raises(ValueError, match=message):
        make_comparison(given.pop("runs"), folder=str(tmp_path), **given)


@pytest.fixture
def written(tmp_path, capsys) -> Path:
    """A comparison of three runs, written by the command; names that HTML and LaTeX must not take at their word."""
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", config=CRIPPLED | {"notes": "x"}, effect=0.1)
    write_run(tmp_path, "c_<i>", config={"num_images": 7, "network": {**CONFIG["network"], "act": "<b>"}})
    for name in ("a", "b", "c_<i>"):
        add_score(tmp_path / "tiny" / name, PROTOCOL, LOSSES + 0.3, images_seen=500)
    runs = ",".join(f"'{tmp_path}/tiny/{name}'" for name in ("a", "b", "c_<i>"))
    main(["compare", f"runs=[{runs}]", f"out={tmp_path}/out/comparison"])
    (tmp_path / "printed.txt").write_text(capsys.readouterr().out)
    return tmp_path


def test_the_command_prints_tables(written):
    printed = (written / "printed.txt").read_text()
    for text in ("pinned_loss", "worse", ALIKE, "network.depth", "num_images", "Holm", "comparison.html"):
        assert text in " ".join(printed.split()), text
    assert "notes" not in printed.split("config, beside")[1].split("training")[0], "a note is no difference"


def test_the_csv_has_every_number(written):
    with (written / "out/comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3  # the metric and two levels, for three runs
    crippled = next(row for row in rows if row["recipe"] == "tiny/b" and row["metric"] == "pinned_loss")
    assert float(crippled["difference"]) == pytest.approx(0.1, abs=0.01)
    assert float(crippled["difference_low"]) < 0.1 < float(crippled["difference_high"])
    assert crippled["verdict"].startswith("worse") and crippled["protocol"] == PROTOCOL.hash
    assert float(crippled["p_holm"]) >= float(crippled["p"]) > 0
    assert not next(row for row in rows if row["recipe"] == "tiny/a")["difference"]


def test_the_page_has_no_addresses_and_what_runs_are_called_is_text(written):
    page = (written / "out/comparison.html").read_text()
    sources = re.findall(r'src="([^"]{0,30})', page)
    text = re.sub(r'src="data:[^"]*"', "", page)
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(|src=", text)
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "c_&lt;i&gt;" in page and "<i>" not in page and "<b>" not in page


def test_a_real_browser_shows_the_page(written):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no headless Chromium here: none of {', '.join(BROWSERS)} is installed")
    page = written / "out/comparison.html"
    # The page has no scripts: a copy is given one that notes what the browser made of it, and any wish to go elsewhere.
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "broken: [...document.images].filter(x => !x.complete || !x.naturalWidth).length, "
        "images: document.images.length, tables: document.querySelectorAll('table').length, "
        "fetched: performance.getEntriesByType('resource').filter(x => !x.name.startsWith('data:')).length, "
        "wide: document.documentElement.scrollWidth > innerWidth}); });</script></body>"
    )
    copy = written / "probed.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        "--window-size=1280,900",
    ]
    options += [f"--user-data-dir={written}/browser", "--host-resolver-rules=MAP * ~NOTFOUND"]
    dumped = subprocess.run(
        [browser, *options, "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    title = re.search(r"<title>(\{.*?\})</title>", dumped)
    assert title, dumped[:300]
    told = title[1]
    for expected in ('"broken":0', '"images":5', '"fetched":0', '"wide":false'):
        assert expected in told, told
    assert int(re.search(r'"tables":(\d+)', told)[1]) >= 5
    shot = written / "page.png"
    subprocess.run(
        [browser, *options, f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    from PIL import Image

    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape == (900, 1280) and (pixels < 100).mean() > 0.005, "there is text"


def test_the_papers_tables(written):
    runs = [str(written / "tiny" / name) for name in ("a", "b", "c_<i>")]
    found = make_comparison(runs, labels=["base", "depth_1 & more", "c"])
    table = markdown(found.recipes, found.rows, notes=found.notes)
    lines = table.splitlines()
    assert lines[0] == "|  | pinned_loss, ema ↓ |" and lines[1] == "| --- | ---: |"
    assert lines[3].startswith("| depth_1 & more | ") and lines[3].endswith("† |")
    tex = latex(found.recipes, found.rows, notes=found.notes)
    assert "depth\\_1 \\& more" in tex and "$^\\dagger$" in tex and tex.count("\\\\\n") == 4
    turned = make_comparison([runs[1], runs[0]], labels=["depth 1", "base"])
    assert "| base | **" in markdown(turned.recipes, turned.rows, notes=())
    assert "\\textbf{" in latex(turned.recipes, turned.rows, notes=())


def test_speed_and_cost_are_of_all_devices(written):
    found = make_comparison([str(written / "tiny" / name) for name in ("a", "b")])
    speed = found.recipes[0].runs[0].speed
    assert (speed.images_per_second, speed.devices, speed.peak_memory_gib) == (100, 2, 2.5)
    assert speed.device_hours(1000) == pytest.approx(1000 / 100 * 2 / 3600)
    assert len(KEYS) == 40
