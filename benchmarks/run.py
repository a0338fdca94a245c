"""All benchmarks that this machine allows, one after another: their tables, one of all ratios, and one JSON file.

    python benchmarks/run.py                  on the GPU where there is one, else on the CPU: a quarter of an hour
    python benchmarks/run.py --quick          fewer repetitions and pairs: some minutes on two cores
    python benchmarks/run.py --only loop train_step
    python benchmarks/run.py --table all.json [more.json ...]      the ratios of files written before

Each is a script of its own, and can be called alone with more options. Ratios are theirs over ours, or our rate over
theirs: above 1 ours is faster. What fails is named at the end, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a CPU that others may use, too: the time that the process was given, on one thread.
STEP = ["--device", "cuda", "--compile"] if DEVICE == "cuda" else ["--clock", "process", "--threads", "1"]
DATA = ["--parts", "speed", "--workers", "0"]
NEAR = ["ldm", "webdataset + PIL", "mosaicml-streaming + PIL", "litdata + PIL"]
SCRIPTS: dict[str, list[str]] = {
    "loop": [],
    "train_step": STEP,
    "sampling": ["--device", DEVICE],
    "data": DATA,
    "communication": [],
}
QUICK: dict[str, list[str]] = {
    "loop": ["--chunks", "5"],
    "train_step": [*STEP, "--pairs", "dit_tiny", "unet", "--batch", "2", "--repeats", "5"],
    "sampling": ["--device", DEVICE, "--repeats", "7"],
    "data": [*DATA, "--num", "1000", "--turns", "3", "--batches", "3", "--readers", *NEAR],
    "communication": [],
}


class Row(NamedTuple):
    """One comparison: what of ours, with whom, and how many times as fast ours is."""

    part: str
    of_ours: str
    peer: str
    ratio: float


def ratios(report: Mapping[str, Any]) -> Iterator[Row]:
    """Every comparison with a peer in what the scripts wrote."""
    if loop := report.get("loop"):
        ours = loop["rows"]["ours, all callbacks"]["overhead_ms"]
        theirs = loop["rows"]["Lightning, no callbacks"]["overhead_ms"]
        yield Row(
            "loop", "what a step costs beside its mathematics", "Lightning without callbacks", theirs / ours
        )
    for row in report.get("train_step", {}).get("rows", []):
        name = f"{row['network']}, batch {row['batch']}, {row['precision']}"
        yield Row("training step", name, "diffusers", row["ratio"])
    for row in report.get("sampling", {}).get("networks", {}).get("nothing", []):
        yield Row("sampler's step", row["sampler"], f"diffusers' {row['diffusers']}", 1 / row["ratio"])
    for part, rows in report.get("data", {}).items():
        if part.startswith("speed "):
            rates = {row["reader"]: row["pictures/s"] for row in rows}
            for reader, rate in rates.items():
                if not reader.startswith("ldm"):
                    _, kind, workers = part.split()
                    name = f"pictures {kind}, {workers} workers"
                    yield Row("loading", name, reader, rates["ldm"] / rate)


def show(rows: list[Row]) -> None:
    print(f"\n{'':16}{'ours':44}{'beside':38}{'ratio':>7}")
    for row in rows:
        print(f"{row.part:16}{row.of_ours:44}{row.peer:38}{row.ratio:7.2f}")


def main() -> None:
    """Run them, write what each wrote into one file, and show how ours stands beside others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", nargs="+", type=Path, help="show only what these files hold")
    parser.add_argument("--out", type=Path, default=HERE / "all.json")
    options = parser.parse_args()
    if options.table:
        show([row for path in options.table for row in ratios(json.loads(path.read_text()))])
        return
    report: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": torch.cuda.get_device_name()
        if DEVICE == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "quick": options.quick,
    }
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            print(f"\n=== {name}", flush=True)
            out = Path(folder, f"{name}.json")
            given = (QUICK if options.quick else SCRIPTS)[name]
            if name == "data":
                given = [*given, "--folder", f"{folder}/data"]
            began = time.monotonic()
            done = subprocess.run([sys.executable, HERE / f"{name}.py", *given, "--out", out])
            if done.returncode == 0 and out.is_file():
                report[name] = json.loads(out.read_text()) | {"took_seconds": time.monotonic() - began}
            else:
                failed.append(name)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    report["ratios"] = [row._asdict() for row in ratios(report)]
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    show(list(ratios(report)))
    print(f"\nwritten to {options.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
