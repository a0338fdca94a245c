"""How often a run survives being killed and signalled: tests/training/test_reliability.py, many times over.

python benchmarks/reliability.py kills=50 signals=120 saves=200      all of them
python benchmarks/reliability.py kills=0 signals=0 saves=1000        saves only

- kills: kill -9 at random moments of a training, on one process, on two, and on one and two in turn. At the end no
  sample was lost or seen twice, and weights, averages, optimizer state, counters and metrics.csv are, bit for bit,
  those of a run that nobody killed (within 1e-5 where the number of processes changed).
- signals: SIGTERM, SIGUSR1, SIGUSR2 to one rank or all, while it starts, steps, saves or validates. All ranks leave
  with 75, none hangs, and the newest checkpoint is whole.
- saves: kill -9 while a process does nothing but write checkpoints. The newest folder under a final name always
  verifies, and so does the one before it.

Prints a line for each kind and each failure, and writes JSON with out=<file>; any failure ends it with exit code 1.
"""

from __future__ import annotations

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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.training import stopping
from ldm.training.checkpoint import newest_checkpoint
from ldm.training.folders import folder_name, remove, verify, whole_folders, write_checkpoint
from tests.training.reliable import (
    are_listening,
    finish,
    kill_and_resume,
    kill_now,
    last,
    newest,
    server,
    start,
    wait_for,
)

IMAGES = 240
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PHASES = ("starting", "stepping", "saving", "later")


def main(arguments: list[str]) -> int:
    given = {"kills": "50", "signals": "120", "saves": "200", "seed": "0", "out": ""}
    given |= dict(item.split("=", 1) for item in arguments)
    random_ = random.Random(int(given["seed"]))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if int(given["kills"]):
            results["kills"] = kills(place / "kills", int(given["kills"]), random_)
        if int(given["signals"]):
            results["signals"] = signals(place / "signals", int(given["signals"]), random_)
        if int(given["saves"]):
            results["saves"] = saves(place / "saves" / "checkpoints", int(given["saves"]), random_)
    if given["out"]:
        Path(given["out"]).write_text(json.dumps(results, indent=1) + "\n")
    for failure in (failure for result in results.values() for failure in result["failures"]):
        print(f"FAILED {failure}")
    return int(any(result["failures"] for result in results.values()))


def kills(place: Path, count: int, random_: random.Random) -> dict[str, Any]:
    """``count`` kills of each of three kinds of run."""
    failures: list[str] = []
    met = {}
    whole = {}
    for world_size in (1, 2):
        whole[world_size] = place / f"whole-{world_size}"
        assert set(finish(start(whole[world_size], num_images=IMAGES, world_size=world_size))) == {0}
    for name, worlds in {"1 process": [1], "2 processes": [2], "1 and 2 in turn": [1, 2]}.items():
        folder, met[name], done = place / name, 0, 0
        while done < count:  # a run takes so many kills that each gets a stretch of its own
            many = min(10, count - done)
            run = folder / str(done)
            met[name] += kill_and_resume(
                run, kills=many, num_images=IMAGES, worlds=worlds, random_=random_, pause=0.02
            )
            failures += [
                f"{name}: {what}" for what in differences(run, whole[worlds[0]], exact=len(worlds) == 1)
            ]
            done += many
        print(
            f"kill -9, {name}: {met[name]} of {count} met a running training; {len(failures)} failures",
            flush=True,
        )
    return {"trials": met, "failures": failures}


def differences(run: Path, whole: Path, *, exact: bool) -> list[str]:
    """What is not as in the uninterrupted run."""
    one, two = last(run), last(whole)
    found = [] if one["history"] == list(range(IMAGES)) else ["samples were lost or repeated"]
    for key in ("state_dict", "ema", "optimizer_states"):
        try:
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=0 if exact else 1e-5)
        except AssertionError as error:
            found.append(f"{key}: {str(error).splitlines()[0]}")
    if exact and (run / "metrics.csv").read_text() != (whole / "metrics.csv").read_text():
        found.append("metrics.csv")
    return found


def signals(place: Path, count: int, random_: random.Random) -> dict[str, Any]:
    """Each phase with each target in turn."""
    failures: list[str] = []
    slowest = 0.0
    targets = [(1, [0]), (2, [0]), (2, [1]), (2, [0, 1])]
    trials = itertools.cycle(itertools.product(PHASES, targets))
    for trial, (phase, (world_size, ranks)) in zip(range(count), trials, strict=False):
        folder = place / str(trial)
        number = random_.choice(SIGNALS)
        name = f"{phase}, {signal.Signals(number).name} to {ranks} of {world_size}"
        processes = start(
            folder, num_images=10**7, world_size=world_size, every=4 if phase == "saving" else 40
        )
        if phase == "starting":
            wait_for(lambda folder=folder, n=world_size: are_listening(folder, n), processes)  # type: ignore[misc]
            time.sleep(random_.uniform(0, 1.0))
        else:
            images = 40 if phase == "later" else 4
            wait_for(lambda folder=folder, n=images: newest(folder) >= n, processes)  # type: ignore[misc]
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
    """Kill a process that writes one checkpoint after another, and read what is there."""
    failures = []
    place.mkdir(parents=True)
    for trial in range(count):
        process = server().Process(target=save_for_ever, args=(str(place),))
        process.start()
        before = newest(place.parent)
        wait_for(lambda before=before: newest(place.parent) > before, [process], within=1.0)  # type: ignore[misc]
        time.sleep(random_.uniform(0, 0.06))
        kill_now([process])
        for path in whole_folders(place):
            try:
                verify(path)
            except ValueError as error:
                failures.append(f"trial {trial}: {error}")
        if trial and len(whole_folders(place)) < 2:
            failures.append(f"trial {trial}: fewer than two checkpoints")
    print(f"kills during saves: {count} trials, {len(failures)} failures", flush=True)
    return {"trials": count, "failures": failures}


def save_for_ever(folder: str) -> None:
    """Writes 1 MB checkpoints and keeps two, as a training does without training."""
    torch.set_num_threads(1)
    found = whole_folders(Path(folder))
    at = int(found[0].name.removeprefix("images_")) if found else 0
    weights = torch.randn(250_000)
    while True:
        at += 1
        content = {"state_dict": {"w": weights + at}, "images_seen": at}
        write_checkpoint(content, Path(folder) / folder_name(at), about={"images_seen": at})
        for path in whole_folders(Path(folder))[2:]:
            remove(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
