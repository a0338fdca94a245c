from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ldm.training import run
from ldm.training.run import choose_run_id, exported_run_id, find_run, finish_run, start_run

CONFIG = {"name": "shapes", "seed": 1, "twice": "${seed}"}
COMMAND = ["train.py", "experiment=shapes", "prompts=[a b]"]


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LDM_RUN_ID", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


def test_the_folder_tells_how_the_run_was_made(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "shapes" / "a", config=CONFIG, command=COMMAND)
    assert folder.name == "shapes" and folder.id == "a"
    assert OmegaConf.load(folder.config) == {"name": "shapes", "seed": 1, "twice": 1}
    assert "train.py experiment=shapes 'prompts=[a b]'" in (folder.path / "command.txt").read_text()
    assert "commit" in json.loads((folder.path / "git.json").read_text())
    assert (folder.path / "git.diff").exists()
    assert json.loads((folder.path / "versions.json").read_text())["torch"]


def test_a_used_folder_is_refused_and_nothing_in_it_changes(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "shapes" / "a", config=CONFIG, command=COMMAND)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(FileExistsError, match=r"resume=.*run_id"):
        start_run(folder.path, config={**CONFIG, "seed": 2}, command=COMMAND)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_resuming_keeps_what_it_replaces(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "shapes" / "a", config=CONFIG, command=COMMAND)
    finish_run(folder, images_seen=10)
    start_run(folder.path, config={**CONFIG, "seed": 2}, command=["train.py", "resume=shapes/a"], resume=True)
    start_run(folder.path, config={**CONFIG, "seed": 2}, command=["train.py", "resume=shapes/a"], resume=True)
    assert folder.read_config().seed == 2
    assert OmegaConf.load(folder.path / "config.1.yaml").seed == 1
    assert not (folder.path / "config.2.yaml").exists()
    assert len((folder.path / "command.txt").read_text().splitlines()) == 3
    assert not folder.finished.exists()


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        start_run(tmp_path / "no", config=CONFIG, command=COMMAND, resume=True)


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "is_main_process", lambda: False)
    folder = start_run(tmp_path / "shapes" / "a", config=CONFIG, command=COMMAND)
    finish_run(folder, images_seen=1)
    assert not folder.path.exists()
    with pytest.raises(ValueError, match="LDM_RUN_ID"):
        choose_run_id()


def test_ids_come_from_the_user_then_the_job_then_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    made = choose_run_id()
    assert made != choose_run_id()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert choose_run_id() == "77"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert choose_run_id() == "70_3"
    with exported_run_id("abc"):
        assert choose_run_id() == "abc" and os.environ["LDM_RUN_ID"] == "abc"
        assert choose_run_id("mine") == "mine"
    assert "LDM_RUN_ID" not in os.environ


def test_runs_are_found_by_path_by_id_and_by_name(tmp_path: Path) -> None:
    first = start_run(tmp_path / "shapes" / "a", config=CONFIG, command=COMMAND)
    second = start_run(tmp_path / "shapes" / "b", config=CONFIG, command=COMMAND)
    os.utime(first.config, (1, 1))
    assert find_run(first.path).path == first.path
    assert find_run("shapes/a", runs=tmp_path).path == first.path
    assert find_run("shapes", runs=tmp_path).path == second.path  # the newest, as long as none has finished
    finish_run(first, images_seen=10)
    assert find_run("shapes", runs=tmp_path).path == first.path.resolve()
    assert find_run("shapes/last", runs=tmp_path).id == "a"
    finish_run(second, images_seen=10)
    assert find_run("shapes", runs=tmp_path).id == "b"


def test_an_unknown_run_is_answered_with_the_nearest(tmp_path: Path) -> None:
    start_run(tmp_path / "shapes_dit" / "a", config=CONFIG, command=COMMAND)
    with pytest.raises(FileNotFoundError, match="did you mean shapes_dit"):
        find_run("shape_dit", runs=tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        find_run("shape_dit", runs=tmp_path / "empty")
