"""The front door as a user meets it: a process of its own, one line, in under three seconds, without torch."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 3.0  # of the processor's time, so that a busy machine does not fail the test
# Runs a script as a program would be, with torch made impossible to import.
GUARD = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LDM = "import sys; sys.modules['torch'] = None; from ldm.commands.main import main; main(sys.argv[1:])"


def run(folder: Path, *command: str) -> tuple[subprocess.CompletedProcess[str], float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", *command], cwd=folder, capture_output=True, text=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    return run(folder, GUARD, str(ROOT / "train.py"), *arguments)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["netwrok.depth=3"], ["netwrok", "'network'"]),
        (["network.dpeth=3"], ["network.dpeth", "'depth'"]),
        (["network=dti_small"], ["network", "'dit_small'"]),
        (["network.depth=deep"], ["network.depth", "int", "'deep'"]),
        (["optimizer._target_=os.system"], ["optimizer._target_", "refused"]),
        (["-m", "seed=0,1", "network.dpeth=3,4"], ["network.dpeth", "'depth'"]),
        (["seed=0", "-m", "network.dpeth=3,4"], ["network.dpeth", "'depth'"]),
        (["--multrun"], ["'--multirun'"]),
        (["resume=nowhere"], ["resume", "'nowhere'"]),
    ],
)
def test_train_refuses_in_one_line(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    done, seconds = train(tmp_path, *arguments)
    message = one_line(done)
    assert all(part in message for part in parts), message
    assert seconds < SECONDS
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_a_misspelt_key_inside_an_experiment_names_the_file(tmp_path: Path) -> None:
    extra = tmp_path / "extra" / "experiment"
    extra.mkdir(parents=True)
    (extra / "mine.yaml").write_text("# @package _global_\nnetwork:\n  dpeth: 3\n")
    done, seconds = train(tmp_path, "experiment=mine", f"hydra.searchpath=[file://{tmp_path}/extra]")
    message = one_line(done)
    assert "network.dpeth" in message and "'depth'" in message and "mine.yaml:3" in message
    assert seconds < SECONDS


def test_the_config_can_be_shown(tmp_path: Path) -> None:
    done, _ = train(tmp_path, "--cfg", "job", "network.depth=7")
    assert "depth: 7" in done.stdout
    assert not list(tmp_path.iterdir())


def test_help_lists_the_groups(tmp_path: Path) -> None:
    done, _ = train(tmp_path, "--help")
    networks = next(line for line in done.stdout.splitlines() if line.startswith("network:"))
    assert done.returncode == 0 and "dit_small" in networks


def test_ldm_help_is_instant_and_names_the_verbs(tmp_path: Path) -> None:
    done, seconds = run(tmp_path, LDM, "--help")
    assert done.returncode == 0 and "shapes" in done.stdout and seconds < SECONDS


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["shpaes"], ["'shpaes'", "'shapes'"]),
        (["shapes", "num_tran=3"], ["num_tran", "'num_train'"]),
        (["shapes", "seed=x"], ["seed", "int"]),
        (["shapes", "--halp"], ["'--help'"]),
        (["evaluate"], ["run has no value yet", "run=..."]),
        (["sample", "sampler=heum"], ["'heun'"]),
        (["sample", "guidance.sclae=3"], ["guidance.sclae", "'scale'"]),
    ],
)
def test_ldm_refuses_in_one_line(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    done, seconds = run(tmp_path, LDM, *arguments)
    message = one_line(done)
    assert all(part in message for part in parts), message
    assert seconds < SECONDS


def test_a_verb_explains_itself(tmp_path: Path) -> None:
    done, _ = run(tmp_path, LDM, "shapes", "--help")
    assert done.returncode == 0 and "num_train: 20000" in done.stdout
