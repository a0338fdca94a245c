"""All benchmarks that this machine allows, one after another: tables on the screen, one JSON file of all.

    python benchmarks/run.py                  on the GPU where there is one, else on the CPU; some minutes
    python benchmarks/run.py --only loop train_step

Each is a script of its own, and can be called alone with more options. Ratios are theirs over ours: above 1 ours is
faster. What fails or is not to be had here is named at the end, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILED = ["--compile"] if DEVICE == "cuda" else []
SCRIPTS: dict[str, list[str]] = {
    "loop": [],  # against Lightning and a plain loop
    "train_step": ["--device", DEVICE, *COMPILED],  # against diffusers' networks
    "sampling": [],  # against diffusers' schedulers
    "communication": [],  # against the model of it
}


def main() -> None:
    """Run them, and write what each wrote into one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--out", type=Path, default=HERE / "all.json")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": torch.cuda.get_device_name()
        if DEVICE == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            print(f"\n=== {name}", flush=True)
            out = Path(folder, f"{name}.json")
            done = subprocess.run([sys.executable, HERE / f"{name}.py", *SCRIPTS[name], "--out", out])
            if done.returncode == 0 and out.is_file():
                report[name] = json.loads(out.read_text())
            else:
                failed.append(name)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {options.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
