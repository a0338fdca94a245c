"""Whether a training was asked to leave: all processes hear it at the same place, or none does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer

from ldm.training import stopping


class LeftUndone(Exception):
    """Something that can be made again was given up because the training was asked to leave."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def agreed(trainer: Trainer, *others: int) -> list[int]:
    """The exit code that any process was asked for, 0 for none; of ``others``, too, the largest of all processes.

    Signals reach the processes at different moments, or only one. All must ask together.
    """
    own = [stopping.asked(), *others]
    if trainer.world_size == 1:
        return own
    asked = torch.tensor(own, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(asked, reduce_op="max").tolist()


def look_up(trainer: Trainer) -> None:
    """In the middle of something that takes long and can be made again; on all processes together.

    Raises:
        LeftUndone: Any of them was asked to leave.
    """
    if code := agreed(trainer)[0]:
        raise LeftUndone(code)


@contextmanager
def as_validation(trainer: Trainer) -> Iterator[None]:
    """Around a validation that is begun between two steps: Lightning's own words for where it is."""
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    try:
        yield
    finally:
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first
