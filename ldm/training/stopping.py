"""How a training is asked to stop: signals that set a flag and do nothing else.

Imports neither torch nor Lightning, so that ``train.py`` can listen before they are loaded: a preemption in the seconds
of their import is not lost. What is done about the flag stands in ``saving.py``, at the border between two steps.

Exit codes: 75 a signal asked to stop, and the job may go on later (EX_TEMPFAIL of sysexits.h; a batch script puts such
a job back into the queue); 130 Ctrl-C; 74 no checkpoint could be written (EX_IOERR).
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # so that its exit handler is there before ours, and comes after it
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
INTERRUPTED, PREEMPTED, UNSAVED = 128 + signal.SIGINT, 75, 74

_asked: list[int] = []  # the signals that came
_prepared = False
_former: dict[int, Any] = {}  # what answered them before
_keys: Any = None  # what answered Ctrl-C before


class Stopped(SystemExit):
    """The training leaves, on purpose, with an exit code that says why."""


class Interrupted(Stopped):
    """By Ctrl-C."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


class Preempted(Stopped):
    """By a signal of the queue, or of whoever needs the machine."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class Unsaved(Stopped):
    """No checkpoint could be written, several times in a row."""

    def __init__(self) -> None:
        super().__init__(UNSAVED)


def listen() -> None:
    """From now on. Only a process's main thread can; elsewhere nothing changes."""
    global _prepared
    if threading.current_thread() is threading.main_thread():
        if not _prepared:
            os.register_at_fork(after_in_child=_in_a_worker)
            atexit.register(_end_workers)  # before multiprocessing's own, which asks by SIGTERM and waits
            _prepared = True
        for number in SIGNALS:
            former = signal.signal(number, _note)
            if former is not _note:
                _former[number] = former


def listening() -> bool:
    return bool(_former)


def stop_listening() -> None:
    """Signals do again what they did before ``listen``; what was asked is forgotten."""
    leave_keys_alone()
    while _former:
        signal.signal(*_former.popitem())
    _asked.clear()


def asked() -> int:
    """The exit code that has been asked for, 0 for none. Ctrl-C counts for more: a person waits for it."""
    if not _asked:
        return 0
    return INTERRUPTED if signal.SIGINT in _asked else PREEMPTED


def listen_to_keys() -> None:
    """While there is something to save, Ctrl-C sets the flag as well; a second one leaves at once."""
    global _keys
    if threading.current_thread() is threading.main_thread() and _keys is None:
        _keys = signal.signal(signal.SIGINT, _interrupt)


def leave_keys_alone() -> None:
    """Ctrl-C interrupts again, as it did before."""
    global _keys
    if _keys is not None:
        signal.signal(signal.SIGINT, _keys)
        _keys = None


def leave(code: int) -> Stopped:
    return Interrupted() if code == INTERRUPTED else Preempted()


def leave_together(leaving: Stopped) -> NoReturn:
    """End this process when all of its Slurm step are ready to.

    ``srun --kill-on-bad-exit`` ends a step as soon as one task has left with a code that is not 0. That would cut off
    the others, who may still be closing files, and with them the code that the batch script waits for.
    """
    if "SLURM_STEP_ID" in os.environ and (torch := sys.modules.get("torch")) is not None:
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            with suppress(Exception):  # its helper process may have been told to leave as well, and has
                wandb.finish()
        sys.stdout.flush()
        sys.stderr.flush()
        _end_workers()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            with suppress(RuntimeError):  # another one is gone already
                torch.distributed.barrier()
            os._exit(int(str(leaving.code)))
    raise leaving


def _in_a_worker() -> None:
    """A queue signals every process of a job, Ctrl-C all of a terminal: workers that load data outlive both, so that
    the step can be finished. SIGTERM and its like they have inherited as flags that nobody reads."""
    if _former:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def _note(number: int, frame: Any) -> None:
    _asked.append(number)


def _interrupt(number: int, frame: Any) -> None:
    if number in _asked:
        raise Interrupted
    _asked.append(number)
    print("\nStopping after this step; Ctrl-C once more leaves at once.", file=sys.stderr, flush=True)
