"""``sample.py`` and ``ldm evaluate`` started by torchrun: two processes make the pictures and grades of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.commands.launch import launch
from tests.commands.places import working_in
from tests.processes import free_port

ROOT = Path(__file__).parents[2]
RUN = [
    "experiment=shapes_dit",
    "codec=pooled",
    "~codec.path",
    "data=shapes_images",
    "trainer=cpu",
    "network.depth=1",
    "network.width=64",
    "network.num_heads=1",
    "text_encoder.num_buckets=64",
    "data.batch_size=4",
    "num_images=16",
    "task.num_steps=2",
    "callbacks.samples=null",
    "name=tiny",
    "run_id=one",
]
OF_THE_PROCESSES = {"seconds", "time", "processes", "ranks", "world_size"}  # may differ in a report


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a run that makes pictures, if poor ones."""
    folder = tmp_path_factory.mktemp("torchrun")
    with working_in(folder, num_train=16, num_val=4):
        launch(RUN)
    return folder


def run(place: Path, command: list[str], *, processes: int) -> str:
    """What the first process says; where there are several, torchrun starts them."""
    start = [sys.executable]
    if processes > 1:
        port = free_port()
        start += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC"))
    }
    done = subprocess.run(
        [*start, *command],
        cwd=place,
        env={**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "srun" not in done.stderr, (
        "Lightning's hint where Slurm is installed says nothing about this command"
    )
    return done.stdout


def assert_same_files(first: Path, second: Path) -> None:
    """The same names, pictures of the same pixels, tables and reports that say the same."""
    names = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert names and names == {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    for name in names:
        one, two = first / name, second / name
        if name.suffix == ".png":
            assert np.array_equal(*(np.asarray(Image.open(path)) for path in (one, two))), name
        elif name.suffix == ".json":
            assert plain(json.loads(one.read_text())) == plain(json.loads(two.read_text())), name
        else:
            assert one.read_bytes() == two.read_bytes(), name


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(x) for name, x in value.items() if name not in OF_THE_PROCESSES}
    return [plain(x) for x in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_two_processes_make_the_pictures_of_one(place: Path) -> None:
    """Five pictures in batches of two: the second process has one batch less to make."""
    said = {}
    for processes in (1, 2):
        asked = ["prompts=[a red circle]", "num_images=5", "batch_size=2", f"out=pictures{processes}"]
        said[processes] = run(place, [str(ROOT / "sample.py"), "run=tiny", *asked], processes=processes)
    assert len(list((place / "pictures1").glob("*.png"))) == 6  # and the sheet of all
    assert_same_files(place / "pictures1", place / "pictures2")
    assert said[2].count("5 pictures by the ema weights") == 1, "one process tells"


@pytest.mark.slow
def test_two_processes_give_the_grades_of_one(place: Path) -> None:
    for processes in (1, 2):
        asked = ["num_prompts=10", "batch_size=4", "again=true", f"out=grades{processes}"]
        command = ["-m", "ldm.commands.main", "evaluate", "run=tiny", *asked]
        said = run(place, command, processes=processes)
        assert said.count("written to") == 1
    assert_same_files(place / "grades1", place / "grades2")
