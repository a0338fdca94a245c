"""Lightning's way to the disk and back: checkpoint folders, chosen and verified once for all processes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.strategies import Strategy

from ldm.training.checkpoint import is_checkpoint, newest_checkpoint, read_checkpoint
from ldm.training.folders import DamagedCheckpoint, file_hash, remove, verify, write_checkpoint

PACKAGES = ("ldm", "torch", "lightning")


class CheckpointFolders(CheckpointIO):
    """Writes and reads the folders of ``folders.py``; reads the single files of earlier versions.

    Args:
        strategy: Of the trainer, for its processes to agree.
        run: The run folder.
    """

    def __init__(self, strategy: Strategy, run: Path) -> None:
        self.strategy = strategy
        self.run = run
        self.failure: OSError | None = (
            None  # of the last save; raised here, it would leave the others waiting
        )

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """On the first process. A full or broken disk is noted in ``failure``."""
        self.failure = None
        try:
            write_checkpoint(checkpoint, Path(path), about=self._about(checkpoint))
        except OSError as error:
            self.failure = error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """One checkpoint, or the newest whole one of a folder of them: the first process chooses and verifies.

        Raises:
            DamagedCheckpoint: The one that was named is damaged, or all are; on all processes.
        """
        answer = ("", "")
        if self.strategy.is_global_zero:
            try:
                answer = (str(_chosen(Path(path))), "")
            except (ValueError, OSError) as error:
                answer = ("", str(error))
        place, problem = self.strategy.broadcast(answer)
        if problem:
            raise DamagedCheckpoint(problem)
        return read_checkpoint(place, verified=True)

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))

    def _about(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        config = self.run / "resolved.yaml"
        return {
            "images_seen": checkpoint.get("images_seen"),
            "global_step": checkpoint.get("global_step"),
            "world_size": getattr(self.strategy, "world_size", 1),
            "config_sha256": file_hash(config) if config.is_file() else None,
            "versions": {package: version(package) for package in PACKAGES},
        }


def _chosen(path: Path) -> Path:
    if is_checkpoint(path):  # named: none other will do
        if path.is_dir():
            verify(path)
        return path
    found = newest_checkpoint(path, set_aside=True)
    if found is None:
        raise FileNotFoundError(f"there is no checkpoint in {path}")
    return found
