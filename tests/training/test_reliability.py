"""The promise as a whole: killed, signalled, resumed, a run is the one that was never interrupted.

A few trials of each kind; benchmarks/reliability.py makes many.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ldm.training import stopping
from ldm.training.checkpoint import newest_checkpoint
from tests.training.reliable import (
    finish,
    kill_and_resume,
    last,
    newest,
    start,
    wait_for,
)
from tests.training.test_saving import assert_same

IMAGES = 160
KEPT = ("state_dict", "optimizer_states", "ema", "images_seen", "history", "global_step")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start(folder, num_images=IMAGES)) == [0]
    assert last(folder)["history"] == list(range(IMAGES))
    return folder


def assert_the_same_run(first: Path, second: Path) -> None:
    one, two = last(first), last(second)
    for key in KEPT:
        assert_same(one[key], two[key], key)
    assert (first / "metrics.csv").read_text() == (second / "metrics.csv").read_text()


def test_killed_at_random_moments_it_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    met = kill_and_resume(
        tmp_path, kills=5, num_images=IMAGES, worlds=[1], random_=random.Random(os.getpid())
    )
    assert met >= 3, "the kills came too late to meet anything"
    assert_the_same_run(whole, tmp_path)


def test_killed_and_resumed_on_another_number_of_processes(whole: Path, tmp_path: Path) -> None:
    """One, two, one: the same samples exactly, the weights up to the order of sums."""
    kill_and_resume(tmp_path, kills=2, num_images=IMAGES, worlds=[1, 2], random_=random.Random(0))
    assert last(tmp_path)["history"] == last(whole)["history"]
    for key in ("state_dict", "ema"):
        torch.testing.assert_close(last(tmp_path)[key], last(whole)[key], rtol=0, atol=1e-5)


def test_a_rank_that_dies_ends_the_job_and_is_named(tmp_path: Path) -> None:
    """The second of two processes that Lightning started is killed: the first would wait for it."""
    command = [sys.executable, "-m", "tests.training.reliable", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while newest(tmp_path) < 8 and time.monotonic() < until:
        time.sleep(0.05)
    child = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[0]
    os.kill(int(child), signal.SIGKILL)
    _, told = job.communicate(timeout=60)
    assert job.returncode not in (0, stopping.PREEMPTED)
    assert f"rank 1 (process {child}) died by signal 9" in told
    assert newest_checkpoint(tmp_path / "checkpoints") is not None


@pytest.mark.parametrize("target", ["first", "second", "both"])
def test_a_signal_to_any_rank_stops_all_at_the_same_step(tmp_path: Path, target: str) -> None:
    number = {"first": signal.SIGTERM, "second": signal.SIGUSR1, "both": signal.SIGUSR2}[target]
    spoilt = (1, 8) if target == "second" else None  # one rank's bad picture is every rank's bad step
    processes = start(tmp_path, num_images=100_000, world_size=2, pause=0.005, spoilt=spoilt)
    assert wait_for(lambda: newest(tmp_path) >= 16, processes)
    for process in {"first": processes[:1], "second": processes[1:], "both": processes}[target]:
        os.kill(process.pid, number)
    began = time.monotonic()
    assert finish(processes, within=60) == [stopping.PREEMPTED] * 2
    assert time.monotonic() - began < 30
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    saved = last(tmp_path)
    assert saved["history"] == list(range(saved["images_seen"]))
    assert saved["callbacks"]["BadSteps"]["count"] == (1 if spoilt else 0)
    assert all(bool(torch.isfinite(x).all()) for x in saved["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_long_validation_is_left_soon(tmp_path: Path, sharded: bool) -> None:
    """100 seconds of it, and one of two processes is asked after the first batches."""
    processes = start(
        tmp_path, num_images=10_000, world_size=2, sharded=sharded, every=1000, validation=(1000, 0.1)
    )
    assert wait_for(lambda: (tmp_path / "validating-24-3").exists(), processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    began = time.monotonic()
    assert finish(processes, within=60) == [stopping.PREEMPTED] * 2
    assert time.monotonic() - began < 30
    assert newest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints/images_000000024"
    saved = last(tmp_path)
    assert saved["history"] == list(range(24)) and saved["callbacks"]["Checkpoints"]["validation_left"]
