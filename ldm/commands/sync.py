"""``ldm sync``: the offline parts of a resumed run as one run of Weights & Biases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from ldm.training.run import find_run
from ldm.training.wandb_parts import join


def sync(*, run: str, send: bool = False, runs: str = "runs") -> Path:
    """Join what a run has logged to W&B offline, in as many parts as it was started, to one continuous run.

    Written is <run>/wandb/joined-run-<run id>, which ``wandb sync`` sends; the parts stay as they are. Rows that a part
    logged beyond the checkpoint from which a later one went on are left out: that one has made them anew.

    Args:
        run: run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``.
        send: send it, too, by ``wandb sync``; needs a key and the network.
        runs: folder of all runs.

    Raises:
        FileNotFoundError: There is no such run, or it has logged nothing offline.
        OSError: It could not be sent.
    """
    folder = find_run(run, runs=runs)
    made = join(folder.path / "wandb", folder.id)
    command = ["wandb", "sync", str(made.folder)]
    told = f", without {made.made_anew} that were made anew" if made.made_anew else ""
    then = "" if send else f"\nsend it by:  {' '.join(command)}"
    Console(soft_wrap=True, highlight=False).print(
        f"wrote {made.folder}: {made.rows} rows from {made.parts} parts{told}{then}"
    )
    if send:
        code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        if code:
            raise OSError(f"wandb sync ended with exit code {code}; {made.folder} can be sent later")
    return made.folder
