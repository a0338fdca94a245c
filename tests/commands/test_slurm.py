"""On a real Slurm of two nodes: a training that is put back into the queue, and a sweep."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.commands.compose import compose
from ldm.commands.launch import launch
from ldm.commands.messages import ConfigError
from ldm.commands.shapes import shapes
from ldm.training.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
LACKING = [
    program
    for program in ("munged", "slurmctld", "slurmd", "sbatch")
    if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
]
needs_slurm = pytest.mark.skipif(
    bool(LACKING) or os.geteuid() != 0,
    reason=f"needs Slurm and root; lacking: {', '.join(LACKING) or 'root'} (apt-get install slurm-wlm munge)",
)
VAE = [
    "experiment=shapes_vae",
    "network.channels=[16,16]",
    "network.encoder_channels=[16,16]",
    "data.batch_size=4",
    "trainer.log_every_n_steps=1",
    "callbacks.validate.num_images=8",
]

# Stands for a training whose time is up: the first start stops in the middle and says so by its status.
FIRST_START_STOPS = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from ldm.commands.launch import launch
from ldm.training.stopping import Preempted, leave_together
starts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
launch([*sys.argv[1:], f"trainer.max_steps={{-1 if starts else 2}}"])
if not starts:
    leave_together(Preempted())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with pictures, and a cluster that jobs can be sent to."""
    folder = tmp_path_factory.mktemp("slurm")
    shapes(
        out=str(folder / "data/shapes"), num_train=16, num_val=4, seed=0, samples_per_shard=8, num_workers=1
    )
    script, environment = ROOT / "slurm/local_cluster.sh", {**os.environ, "FOLDER": str(folder / "cluster")}
    try:
        subprocess.run([script, "start"], env=environment, check=True, timeout=90)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "cluster/slurm.conf"))
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.chdir(folder)
            yield folder
    finally:
        subprocess.run([script, "stop"], env=environment, check=True, timeout=60)


def ends(job: str, *, within: float) -> None:
    until = time.monotonic() + within
    while time.monotonic() < until:
        listed = subprocess.run(
            ["squeue", "--noheader", "-j", job], capture_output=True, text=True, timeout=30
        )
        if not listed.stdout.strip():
            return
        time.sleep(1)
    pytest.fail(
        f"job {job} is still there after {within:.0f} s: {Path(f'slurm-{job}.out').read_text()[-2000:]}"
    )


@needs_slurm
@pytest.mark.slow
@pytest.mark.timeout(900)  # two starts of two processes, on whatever machine this is
def test_a_job_on_two_nodes_goes_back_into_the_queue_and_continues(place: Path) -> None:
    (place / "train.py").write_text(FIRST_START_STOPS)
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", f"--export=ALL,PYTHON={sys.executable}"]
    sent = subprocess.run(
        ["sbatch", *options, ROOT / "slurm/train.sbatch", *VAE, *two, "num_images=16", "name=queued"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    job = sent.stdout.strip()
    ends(job, within=700)
    said = Path(f"slurm-{job}.out").read_text()
    run = Path("runs/queued", job)
    assert (
        "not finished: back into the queue" in said and f"continuing runs/queued/{job} (start 1)" in said
    ), said
    assert (run / "finished.json").is_file(), said
    assert read_checkpoint(run / "checkpoints/last")["images_seen"] == 16
    launch([*VAE, "trainer=cpu", "num_images=16", "name=queued", "run_id=alone"])  # one process, in one go
    losses = [(Path("runs/queued", name, "metrics.csv").read_text().splitlines()) for name in (job, "alone")]
    table = []
    for lines in losses:
        place_of_loss = lines[0].split(",").index("train/loss")
        told = [line.split(",")[place_of_loss] for line in lines[1:]]
        table.append([float(loss) for loss in told if loss])  # rows of validations tell none
    assert len(table[1]) == 4
    assert table[0] == pytest.approx(table[1], abs=1e-5)


@needs_slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_sends_a_job_for_each_training(place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = ["-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=5", "seed=0,1", "name=sweep"]
    subprocess.run(
        [sys.executable, ROOT / "train.py", *sweep, *VAE, "trainer=cpu", "num_images=8"],
        capture_output=True,
        check=True,
        timeout=500,
    )
    runs = [path for path in Path("runs/sweep").iterdir() if not path.is_symlink()]
    assert len(runs) == 2 and all((run / "finished.json").is_file() for run in runs)


def test_what_lacks_for_jobs_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ldm.commands.launch.shutil.which", lambda name: None)
    with pytest.raises(SystemExit):
        launch(["-m", "hydra/launcher=slurm", "experiment=shapes_vae", "seed=0,1"])
    assert "there is no sbatch here" in capsys.readouterr().err
    monkeypatch.setattr("ldm.commands.compose.hydra_compose", _without_the_package)
    with pytest.raises(
        ConfigError, match=r"hydra-submitit-launcher is not installed: pip install 'ldm\[slurm\]'"
    ):
        compose("train", ["hydra/launcher=slurm"])


def _without_the_package(*_: object, **__: object) -> None:
    from hydra.errors import MissingConfigException

    raise MissingConfigException("no such", "hydra/launcher/submitit_slurm", [])
