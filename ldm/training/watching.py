"""A rank that dies ends the job, within seconds, and is named.

Where Lightning starts the processes of a machine, the first one watches the others and they watch the first: a process
that was killed leaves the rest waiting in a collective operation, some of them for half an hour. Under SLURM
(``srun --kill-on-bad-exit``) and torchrun the launcher does this, and nothing here is active.

Lightning's own watcher kills everybody, the first process included, as soon as one exit code is not 0. Ours knows the
codes with which ranks leave together, and lets the others come to their end.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import subprocess_script

from ldm.training.stopping import INTERRUPTED, PREEMPTED, UNSAVED, Stopped

PLANNED = (0, INTERRUPTED, PREEMPTED, UNSAVED)
FIRST = "LDM_FIRST_PROCESS"  # environment variable: the process that started this one
EVERY = 1.0  # seconds between two looks
GRACE = 10.0  # seconds for a rank to notice by itself that another is gone, and to close its files
_named: set[int] = set()  # processes whose death was said
PATIENCE = 120.0  # seconds for the first one to end after the others left as planned: it may be sending logs


@contextmanager
def ranks_watched(trainer: Trainer) -> Iterator[None]:
    """Around ``trainer.fit``."""
    former = subprocess_script._launch_process_observer
    subprocess_script._launch_process_observer = watch_children
    if os.environ.get(FIRST) == str(os.getppid()):
        rank = trainer.global_rank
        _in_background(lambda: watch_parent(os.getppid(), rank))
    before = os.environ.get(FIRST)
    os.environ[FIRST] = str(os.getpid())  # children inherit it
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Stopped):
            for rank, child in enumerate(getattr(trainer.strategy.launcher, "procs", []), start=1):
                _name_the_dead(rank, child)  # what failed here may only follow from that
                child.kill()  # it may wait for us in a collective operation
        raise
    finally:
        subprocess_script._launch_process_observer = former
        del os.environ[FIRST]
        if before is not None:
            os.environ[FIRST] = before


def watch_children(child_processes: list[subprocess.Popen[Any]]) -> None:
    """In the background: end the job when a child dies, and say which."""
    _in_background(lambda: _watch_children(child_processes))


def watch_parent(parent: int, rank: int) -> None:
    """End this process when the first one is gone."""
    while os.getppid() == parent:
        time.sleep(EVERY)
    time.sleep(GRACE)  # where it has left as planned, this rank is about to
    _say(f"rank 0 (process {parent}) is gone; rank {rank} ends, too")
    os._exit(1)


def _watch_children(children: Sequence[subprocess.Popen[Any]]) -> None:
    codes: list[int | None] = [None]
    while None in codes:
        time.sleep(EVERY)
        codes = [child.poll() for child in children]
        for rank, child in enumerate(children, start=1):
            if _name_the_dead(rank, child):
                for other in children:
                    other.kill()
                _end_soon(GRACE)
    if any(codes):  # all have left as they were asked to, and the first process is about to
        _end_soon(PATIENCE)


def _name_the_dead(rank: int, child: subprocess.Popen[Any]) -> bool:
    """Whether a rank has died; it is said once."""
    code = child.poll()
    if code is None or code in PLANNED:
        return False
    if child.pid not in _named:
        _named.add(child.pid)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        _say(f"rank {rank} (process {child.pid}) died by {how}; ending the job on all ranks")
    return True


def _end_soon(seconds: float) -> None:
    """Threads like this one end with the process: it lives on only if it is stuck."""
    time.sleep(seconds)
    os._exit(1)


def _say(line: str) -> None:
    print(f"{line} [{socket.gethostname()}]", file=sys.stderr, flush=True)


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True, name="watching ranks").start()
