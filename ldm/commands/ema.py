"""``ldm ema``: an average of another width from the snapshots of a training that is over."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ldm.training.run import find_run
from ldm.training.snapshots import FOLDER, average_path, make_average, read_snapshots, write_average


def ema(*, run: str, sigma_rel: float, images_seen: int | None = None, runs: str = "runs") -> Path:
    """Make the power-function average of any width from the snapshots that callbacks/ema=power left.

    Written is <run>/averages/<name>.safetensors; ``weights=<name>`` of sample.py, ``ldm evaluate`` and ``ldm export``
    then uses it. See Karras et al. 2023 (2312.02696), section 3.1.

    Args:
        run: run folder, ``<name>/<run id>`` or ``<name>`` inside ``runs``.
        sigma_rel: width of the average relative to the length of training, e.g. 0.08.
        images_seen: make it as of an earlier snapshot; null for the last.
        runs: folder of all runs.

    Raises:
        FileNotFoundError: There is no such run.
        ValueError: It has no snapshots, or none at ``images_seen``, or no power function has this width.
    """
    folder = find_run(run, runs=runs)
    snapshots = read_snapshots(folder.path / FOLDER)
    if not snapshots:
        raise ValueError(
            f"{folder.path} has no snapshots of its averages: they are written by callbacks/ema=power"
        )
    made = make_average(snapshots, sigma_rel=sigma_rel, images_seen=images_seen)
    path = write_average(average_path(folder.path, sigma_rel, made.images_seen), made, sigma_rel=sigma_rel)
    used = sum(snapshot.images_seen <= made.images_seen for snapshot in snapshots)
    Console().print(
        f"wrote {path}: from {used} snapshots, profile within {100 * made.misfit:.2g} % of the one wanted, "
        f"their rounding enlarged {made.amplification:.1f} times at most\n"
        f"use it by weights={path.stem}",
        soft_wrap=True,
        highlight=False,
    )
    if made.misfit > 0.1:
        Console().print(
            f"note: the snapshots tell little of an average this {'short' if sigma_rel < 0.05 else 'wide'}: take more "
            f"of them (callbacks.ema.snapshot_every_num_images), or widths nearer to it (callbacks.ema.sigma_rels)",
            soft_wrap=True,
            highlight=False,
        )
    return path
