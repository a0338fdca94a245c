"""Lightning's way to the disk and back: checkpoint folders, chosen and verified once for all processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.strategies import Strategy

from ldm.training.checkpoint import is_checkpoint, newest_checkpoint, read_checkpoint
from ldm.training.folders import DamagedCheckpoint, remove, verify, write_checkpoint
from ldm.training.fsdp import FullySharded
from ldm.training.hashing import file_hash
from ldm.training.sharded import copy_to_host
from ldm.training.together import write_together

PACKAGES = ("ldm", "torch", "lightning")


class CheckpointFolders(CheckpointIO):
    """Writes and reads the folders of ``folders.py``; reads the single files of earlier versions.

    Written in the background is a copy in the host's memory, which the training that goes on does not change.

    Args:
        strategy: Of the trainer, for its processes to agree.
        run: The run folder.
    """

    def __init__(self, strategy: Strategy, run: Path) -> None:
        self.strategy = strategy
        self.run = run
        self.background = False  # of the next save
        self.failure: OSError | None = (
            None  # of the last save; raised here, it would leave the others waiting
        )
        self._error: BaseException | None = None  # a mistake of ours, met in the background
        self._thread: threading.Thread | None = None
        self._group: Any = None

    @property
    def shared(self) -> bool:
        """Whether each process writes what it holds; otherwise the first one writes everything."""
        return isinstance(self.strategy, FullySharded)

    @property
    def busy(self) -> bool:
        """Whether this process is writing in the background."""
        return self._thread is not None and self._thread.is_alive()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """On the first process, or on all together where each holds a share.

        A full or broken disk is noted in ``failure``; of a save in the background, by ``wait``.
        """
        self.wait()
        self.failure = None
        about = self._about(checkpoint)
        write: Callable[..., None] = write_checkpoint
        if self.shared:
            if self._group is None and dist.is_initialized():
                # Of its own: messages of the background must not come between those of the training.
                self._group = dist.new_group(backend="gloo")
            write = partial(write_together, group=self._group)
        if self.background or self.shared:
            checkpoint = copy_to_host(checkpoint)
        work = partial(self._write, lambda: write(checkpoint, Path(path), about=about))
        if self.background:
            self._thread = threading.Thread(target=work, daemon=True, name="checkpoint")
            self._thread.start()
        else:
            work()
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Until nothing is written in the background, or that long."""
        if self._thread is not None:
            self._thread.join(seconds)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.failure = error
        except BaseException as error:
            self._error = error

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
        return read_checkpoint(place, verified=True, shares=self.shared)

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
