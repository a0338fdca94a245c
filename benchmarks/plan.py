"""How long ``ldm plan`` and ``ldm doctor`` take for each experiment: CPU seconds of a whole process, the best of some.

    python benchmarks/plan.py                                   every experiment
    python benchmarks/plan.py --experiments sdxl_base --runs 5

CPU seconds, user and system together, and not the time that went by: a machine that others use, too, gives a process
less of it, not fewer of them. What is printed is the best of ``--runs``; the file system's cache is warm then.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = [path.stem for path in sorted((ROOT / "configs" / "experiment").glob("*.yaml"))]
VERBS = {"plan": ["num_pictures=1000000"], "doctor": []}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    print(f"import torch: {best(options.runs, '-c', 'import torch'):.1f}")
    print(f"{'experiment':16}" + "".join(f"{verb:>8}" for verb in VERBS))
    for name in options.experiments:
        seconds = [
            best(options.runs, "-m", "ldm.commands.main", verb, f"experiment={name}", *more)
            for verb, more in VERBS.items()
        ]
        print(f"{name:16}" + "".join(f"{one:8.1f}" for one in seconds), flush=True)


def best(runs: int, *arguments: str) -> float:
    """The least CPU seconds of a few processes."""
    return min(cpu_seconds([sys.executable, *arguments]) for _ in range(runs))


def cpu_seconds(command: list[str]) -> float:
    """Of one process, whatever its exit status: a plan that does not fit has taken its time, too."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
