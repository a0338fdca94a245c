"""How often a run survives being killed and signalled: tests/training/test_reliability.py, many times over.

python benchmarks/reliability.py kills=50 real=10 signals=120 saves=200      all of them
python benchmarks/reliability.py kills=0 real=0 signals=0 saves=1000         saves only
python benchmarks/reliability.py only='1 and 2 in turn' real=0 ...           one kind of kills, or of real, by its name

- kills: kill -9 at random moments of a small training, on one process, on two, on one and two in turn, and on two that
  share the weights (FSDP) and save in the background. At the end no sample was lost or seen twice, and weights,
  averages, optimizer state, counters and metrics.csv are, bit for bit, those of a run that nobody killed (within 1e-5
  where the number of processes changed).
- real: the same of train.py's own trainings, an autoencoder and a denoiser, on one process and on two.
- signals: SIGTERM, SIGUSR1, SIGUSR2 to one rank or all, while it starts, steps, saves, saves in the background or
  validates. All ranks leave with 75, none hangs, and the newest checkpoint is whole.
- saves: kill -9 while one process, and then while two together, do nothing but write checkpoints. The newest folder
  under a final name always verifies, and so does the one before it.

Prints a line for each kind and each failure, and writes JSON with out=<file>; any failure ends it with exit code 1.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.training import stopping
from ldm.training.checkpoint import newest_checkpoint
from ldm.training.folders import folder_name, remove, verify, whole_folders, write_checkpoint
from ldm.training.sharded import Share
from ldm.training.together import write_together
from tests.training.reliable import (
    are_listening,
    finish,
    kill_and_resume,
    kill_now,
    last,
    newest,
    start,
    started,
    survive,
    wait_for,
)

IMAGES = 240
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PHASES = ("starting", "stepping", "saving", "background", "validating")
TARGETS = (
    (1, [0], False),
    (2, [0], False),
    (2, [1], False),
    (2, [0, 1], False),
    (2, [0], True),
    (2, [1], True),
)
KINDS: dict[str, dict[str, Any]] = {
    "1 process": {"worlds": [1]},
    "2 processes": {"worlds": [2]},
    "1 and 2 in turn": {"worlds": [1, 2]},
    "2 processes, FSDP, in the background": {"worlds": [2], "sharded": True},
}
SMALL = ["trainer=cpu", "trainer.log_every_n_steps=1", "data.batch_size=4", "num_images=96"]
SMALL += ["callbacks.validate.num_images=24", "callbacks.checkpoints.every_num_images=8"]
REAL = {
    "autoencoder": [
        "experiment=shapes_vae",
        "network.channels=[16,16]",
        "network.encoder_channels=[16,16]",
    ],
    "denoiser": [
        "experiment=shapes_dit",
        "network.depth=1",
        "network.width=64",
        "network.num_heads=1",
        "text_encoder.num_buckets=64",
        "task.num_steps=2",
        "callbacks.samples.every_num_images=48",
        "callbacks.samples.prompts=[a red circle]",
    ],
}


def main(arguments: list[str]) -> int:
    given = {
        "kills": "50",
        "real": "10",
        "signals": "120",
        "saves": "200",
        "seed": "0",
        "out": "",
        "only": "",
    }
    given |= dict(item.split("=", 1) for item in arguments)
    random_ = random.Random(int(given["seed"]))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if int(given["kills"]):
            results["kills"] = kills(place / "kills", int(given["kills"]), random_, given["only"])
        if int(given["real"]):
            results["real"] = real(place / "real", int(given["real"]), random_, given["only"])
        if int(given["signals"]):
            results["signals"] = signals(place / "signals", int(given["signals"]), random_)
        if int(given["saves"]):
            results["saves"] = saves(place / "saves", int(given["saves"]), random_)
    if given["out"]:
        Path(given["out"]).write_text(json.dumps(results, indent=1) + "\n")
    for failure in (failure for result in results.values() for failure in result["failures"]):
        print(f"FAILED {failure}")
    return int(any(result["failures"] for result in results.values()))


def kills(place: Path, count: int, random_: random.Random, only: str = "") -> dict[str, Any]:
    """``count`` kills of each of the kinds of run."""
    failures: list[str] = []
    met = {}
    for name, kind in KINDS.items():
        if only not in ("", name):
            continue
        worlds, sharded = kind["worlds"], kind.get("sharded", False)
        whole = place / f"whole, {name}"
        assert set(finish(start(whole, num_images=IMAGES, world_size=worlds[0], sharded=sharded))) == {0}
        met[name], done = 0, 0
        while done < count:  # a run takes so many kills that each gets a stretch of its own
            many = min(10, count - done)
            run = place / name / str(done)
            met[name] += kill_and_resume(
                run, kills=many, num_images=IMAGES, random_=random_, pause=0.02, **kind
            )
            found = differences(run, whole, exact=len(worlds) == 1)
            found += [] if last(run)["history"] == list(range(IMAGES)) else ["samples lost or repeated"]
            failures += [f"{name}: {what}" for what in found]
            done += many
        print(
            f"kill -9, {name}: {met[name]} of {count} met a running training; {len(failures)} failures",
            flush=True,
        )
    return {"trials": met, "failures": failures}


def real(place: Path, count: int, random_: random.Random, only: str = "") -> dict[str, Any]:
    """``count`` kills of an autoencoder's and a denoiser's training, on one process and on two."""
    failures: list[str] = []
    met = {}
    place.mkdir(parents=True)
    run_here("shapes", str(place))
    for task, world_size in itertools.product(REAL, (1, 2)):
        name = f"{task}, {world_size} process{'es' if world_size > 1 else ''}"
        wanted = only in ("", task, name)
        if not wanted and (task, world_size) != ("autoencoder", 1):  # the denoiser works on its latents
            continue
        own = [*REAL[task], *SMALL, f"name={task}-{world_size}", f"trainer.devices={world_size}"]
        own += ["trainer.strategy=ddp"] if world_size > 1 else []
        if task == "denoiser":
            own.append("codec.path=runs/autoencoder-1/whole/autoencoder.safetensors")
        runs = place / "runs" / f"{task}-{world_size}"
        assert set(
            finish(started(train_here, str(place), [*own, "run_id=whole"], world_size=world_size))
        ) == {0}

        if not wanted:
            continue

        def begin(_: int, own: list[str] = own, runs: Path = runs, n: int = world_size) -> list[Any]:
            there = (runs / "killed/config.yaml").is_file()
            command = [f"resume={runs / 'killed'}"] if there else [*own, "run_id=killed"]
            return started(train_here, str(place), command, world_size=n)

        met[name] = survive(runs / "killed", kills=count, random_=random_, begin=begin, longest=0.5)
        failures += [f"{name}: {what}" for what in differences(runs / "killed", runs / "whole", exact=True)]
        print(
            f"kill -9, {name}: {met[name]} of {count} met a running training; {len(failures)} failures",
            flush=True,
        )
    return {"trials": met, "failures": failures}


def train_here(place: str, arguments: list[str]) -> None:
    """``python train.py``, in a process that has imported torch already."""
    from ldm.commands.launch import launch

    torch.set_num_threads(1)
    stopping.listen()
    os.chdir(place)
    launch(arguments)


def run_here(verb: str, place: str) -> None:
    """Pictures of shapes to train on."""
    from ldm.commands.main import main as ldm

    before = os.getcwd()
    os.chdir(place)
    ldm([verb, "num_train=40", "num_val=8", "samples_per_shard=10", "num_workers=1"])
    os.chdir(before)


def differences(run: Path, whole: Path, *, exact: bool) -> list[str]:
    """What is not as in the uninterrupted run."""
    one, two = last(run), last(whole)
    found = []
    for key in ("state_dict", "ema", "optimizer_states"):
        try:
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=0 if exact else 1e-5)
        except AssertionError as error:
            found.append(f"{key}: {str(error).splitlines()[0]}")
    if exact and rows(run) != rows(whole):
        found.append("metrics.csv")
    return found


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what tells the time; empty cells left out."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {name: x for name, x in row.items() if x and not name.startswith("throughput/")}
            for row in csv.DictReader(file)
        ]


def signals(place: Path, count: int, random_: random.Random) -> dict[str, Any]:
    """Each phase with each target in turn."""
    failures: list[str] = []
    slowest = 0.0
    trials = itertools.cycle(itertools.product(PHASES, TARGETS))
    for trial, (phase, (world_size, ranks, sharded)) in zip(range(count), trials, strict=False):
        folder = place / str(trial)
        number = random_.choice(SIGNALS)
        spread = ", FSDP" if sharded else ""
        name = f"{phase}, {signal.Signals(number).name} to {ranks} of {world_size}{spread}"
        processes = start(
            folder,
            num_images=10**7,
            world_size=world_size,
            sharded=sharded,
            every=4 if phase in ("saving", "background") else 40,
            background=phase == "background",
            validation=(1000, 0.1) if phase == "validating" else (1, 0.0),
        )
        if phase == "starting":
            wait_for(lambda folder=folder, n=world_size: are_listening(folder, n), processes)  # type: ignore[misc]
            time.sleep(random_.uniform(0, 1.0))
        else:
            there = "validating-*" if phase == "validating" else "checkpoints/images_*"
            wait_for(lambda folder=folder, there=there: any(folder.glob(there)), processes)  # type: ignore[misc]
            time.sleep(random_.uniform(0, 0.3))
        for rank in ranks:
            os.kill(processes[rank].pid, number)
        began = time.monotonic()
        codes = finish(processes, within=60)
        slowest = max(slowest, time.monotonic() - began)
        if codes != [stopping.PREEMPTED] * world_size:
            failures.append(f"{name}: exit codes {codes}")
        elif newest_checkpoint(folder / "checkpoints") is None:
            failures.append(f"{name}: no checkpoint")
    print(f"signals: {count} trials, slowest {slowest:.1f} s, {len(failures)} failures", flush=True)
    return {"trials": count, "slowest_seconds": slowest, "failures": failures}


def saves(place: Path, count: int, random_: random.Random) -> dict[str, Any]:
    """Kill one process, or two together, that write one checkpoint after another, and read what is there."""
    failures = []
    for kind, world_size in (("alone", 1), ("together", 2)):
        folder = place / kind / "checkpoints"
        folder.mkdir(parents=True)
        for trial in range(count):
            before = newest(folder.parent)
            processes = started(save_for_ever, str(folder), world_size=world_size)
            wait_for(lambda before=before, folder=folder: newest(folder.parent) > before, processes)  # type: ignore[misc]
            time.sleep(random_.uniform(0, 0.06))
            kill_now(processes)
            for path in whole_folders(folder):
                try:
                    verify(path)
                except ValueError as error:
                    failures.append(f"{kind}, trial {trial}: {error}")
            if trial and len(whole_folders(folder)) < 2:
                failures.append(f"{kind}, trial {trial}: fewer than two checkpoints")
        print(f"kills during saves, {kind}: {count} trials, {len(failures)} failures", flush=True)
    return {"trials": 2 * count, "failures": failures}


def save_for_ever(folder: str) -> None:
    """Writes 1 MB checkpoints and keeps two, as a training does without training."""
    torch.set_num_threads(1)
    place, group = Path(folder), None
    if together := "RANK" in os.environ:
        dist.init_process_group("gloo")
        group = dist.group.WORLD
    found = whole_folders(place)
    at = int(found[0].name.removeprefix("images_")) if found else 0
    weights = torch.randn(250_000)
    while True:
        at += 1
        about = {"images_seen": at}
        if together:
            half = slice(0, 125_000) if dist.get_rank() == 0 else slice(125_000, 250_000)
            share = Share(weights[half] + at, weights.shape, (half.start,))
            write_together(
                {"state_dict": {"w": share}, **about}, place / folder_name(at), about=about, group=group
            )
        else:
            write_checkpoint(
                {"state_dict": {"w": weights + at}, **about}, place / folder_name(at), about=about
            )
        for path in whole_folders(place)[2:] if not together or dist.get_rank() == 0 else ():
            remove(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
