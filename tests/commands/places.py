"""Working directories in which commands are run as a user would run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ldm.commands.shapes import shapes
from ldm.training.checkpoint import read_checkpoint


@contextmanager
def working_in(folder: Path, *, num_train: int, num_val: int) -> Iterator[None]:
    """Draw shapes into data/shapes of the folder, and stand in it."""
    shapes(
        out=str(folder / "data/shapes"),
        num_train=num_train,
        num_val=num_val,
        seed=0,
        samples_per_shard=8,
        num_workers=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def checkpoint(run: str) -> dict:
    """The newest one of runs/<run>, from the working directory."""
    return read_checkpoint(Path("runs", run, "checkpoints/last"))
