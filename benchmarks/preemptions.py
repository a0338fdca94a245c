"""A job on two nodes of a real Slurm, taken off its nodes three times by a job of higher rank, against one left alone.

python benchmarks/preemptions.py times=3

Needs root and Debian's slurm-wlm and munge; slurm/local_cluster.sh starts a cluster of two nodes on this machine. Both
jobs are slurm/train.sbatch with an autoencoder over two nodes and W&B offline. At the end there is one run folder with
one history: metrics.csv, weights, averages and optimizer state are bit for bit those of the job that was left alone,
the parts for W&B have one id, and ``ldm sync`` makes one run of them. Any difference ends it with exit code 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reliability import differences, rows
from ldm.commands.main import main as ldm
from ldm.training.wandb_files import read_records
from ldm.training.wandb_parts import STEP, join, offline_parts, row_of
from tests.training.reliable import newest

ROOT = Path(__file__).resolve().parents[1]
IMAGES, BATCH = 480, 4
TRAINING = [
    "experiment=shapes_vae",
    "network.channels=[16,16]",
    "network.encoder_channels=[16,16]",
    f"data.batch_size={BATCH}",
    f"num_images={IMAGES}",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.num_nodes=2",
    "trainer.log_every_n_steps=1",
    "callbacks.validate.num_images=80",
    "callbacks.checkpoints.every_num_images=40",
    "logger=wandb",
]


def main(arguments: list[str]) -> int:
    given = {"times": "3"} | dict(item.split("=", 1) for item in arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ |= {
            "FOLDER": str(place / "cluster"),
            "SLURM_CONF": str(place / "cluster/slurm.conf"),
            "PYTHONPATH": str(ROOT),
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }
        os.chdir(place)
        (place / "train.py").symlink_to(ROOT / "train.py")
        ldm(["shapes", "num_train=40", "num_val=8", "samples_per_shard=10", "num_workers=1"])
        script = str(ROOT / "slurm/local_cluster.sh")
        try:
            subprocess.run([script, "start"], check=True)
            return compare(int(given["times"]))
        finally:
            subprocess.run([script, "stop"], check=True)


def compare(times: int) -> int:
    job = send("taken")
    run = Path("runs/taken", job)
    for number in range(1, times + 1):
        before = newest(run)
        wait(job, lambda before=before: newest(run) > before + 40)  # type: ignore[misc]
        urgent = sbatch("--partition=urgent", "--exclusive", "--nodes=2", "--wrap=sleep 2")
        began = time.monotonic()
        wait(urgent, lambda: False)
        print(f"taken off its nodes at {newest(run)} images, {time.monotonic() - began:.0f} s", flush=True)
        wait(job, lambda number=number: restarts(job) >= number)  # type: ignore[misc]
    wait(job, lambda: False)
    alone = send("alone")
    wait(alone, lambda: False)
    said = Path(f"slurm-{job}.out").read_text()
    problems = differences(run, Path("runs/alone", alone), exact=True)
    problems += [] if len(list(Path("runs/taken").glob("[0-9]*"))) == 1 else ["more than one run folder"]
    problems += [] if (run / "finished.json").is_file() else [f"not finished: {said[-2000:]}"]
    parts = offline_parts(run / "wandb")
    ids = {record.run.run_id for part in parts for record in read_records(part) if record.HasField("run")}
    problems += [] if ids == {job} else [f"W&B ids {ids}"]
    (file,) = join(run / "wandb", job).folder.glob("*.wandb")
    history = [
        row_of(record) for record in read_records(file) if record.WhichOneof("record_type") == "history"
    ]
    steps = [row[STEP] for row in history if "train/loss" in row]
    problems += [] if steps == list(range(IMAGES // BATCH)) else [f"W&B's rows: {steps}"]
    print(f"{said.count('continuing')} continuations, {len(parts)} parts for W&B, ids {sorted(ids)}, "
          f"{len(rows(run))} rows of metrics.csv, {len(history)} joined")  # fmt: skip
    for problem in problems:
        print(f"FAILED {problem}")
    print(f"{times} preemptions, {len(problems)} failures")
    return int(bool(problems))


def send(name: str) -> str:
    options = ["--nodes=2", "--ntasks-per-node=1", "--export=ALL"]
    return sbatch(*options, str(ROOT / "slurm/train.sbatch"), *TRAINING, f"name={name}")


def sbatch(*arguments: str) -> str:
    """The job's number."""
    sent = subprocess.run(["sbatch", "--parsable", *arguments], capture_output=True, text=True, check=True)
    return sent.stdout.strip()


def restarts(job: str) -> int:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    return int(shown.split("Restarts=")[1].split()[0]) if "Restarts=" in shown else 0


def wait(job: str, condition: object, *, within: float = 400.0) -> None:
    """Until it comes true or the job is over.

    Raises:
        TimeoutError: Neither happened.
    """
    until = time.monotonic() + within
    while time.monotonic() < until:
        if condition():  # type: ignore[operator]
            return
        listed = subprocess.run(["squeue", "--noheader", "-j", job], capture_output=True, text=True)
        if not listed.stdout.strip():
            return
        time.sleep(0.2)
    said = Path(f"slurm-{job}.out")
    raise TimeoutError(f"job {job}: {said.read_text()[-3000:] if said.exists() else 'said nothing'}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
