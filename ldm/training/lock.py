"""One job in a run folder: a lock that tells who has it, and that a dead job does not keep.

A file ``.lock`` with host, process and the moment it began. On the same host a lock is stale when no such process is
alive. Of other hosts nothing can be asked, so who holds a lock touches it now and then: one that was not touched for
``STALE`` seconds is stale. A job that the queue has started again takes its own lock over at once, wherever it ran.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

NAME = ".lock"
TOUCHED_EVERY, STALE = 20.0, 120.0  # seconds


class FolderInUse(OSError):
    """Another job works in the run folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock inside.

    Raises:
        FolderInUse: Another job has it; host and process are named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    own = _own()
    _take(path, own)
    done = threading.Event()
    threading.Thread(target=_touch, args=(path, done), daemon=True, name="run folder's lock").start()
    try:
        yield
    finally:
        done.set()
        if _read(path) == own:
            with suppress(OSError):
                path.unlink()


def _own() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": secrets.token_hex(8),
    }


def _take(path: Path, own: Mapping[str, Any]) -> None:
    for _ in range(10):
        if _create(path, own):
            return
        holder = _read(path)
        if holder is None:  # let go just now, or cut off by a crash
            if not path.exists():
                continue
            holder = {}
        if reason := _alive(path, holder):
            raise FolderInUse(
                f"another job works in {path.parent}: process {holder.get('pid')} on {holder.get('host')}, since "
                f"{holder.get('since')} ({reason}); wait for it, or start a run of your own with another run_id"
            )
        # Only one can take the stale lock away; what it took is looked at again, in case another was faster.
        taken = path.with_name(f"{NAME}-{own['token']}")
        with suppress(FileNotFoundError):
            os.rename(path, taken)
            again = _read(taken)
            if again is not None and again != holder:
                with suppress(OSError):
                    os.link(taken, path)
            else:
                log.warning("took over the lock of a job that is gone: process %s on %s", *_who(holder))
            taken.unlink()
    raise FolderInUse(f"the lock {path} changes hands all the time: are several jobs started at once?")


def _create(path: Path, own: Mapping[str, Any]) -> bool:
    """Written first and named afterwards, so that nobody reads half a lock."""
    draft = path.with_name(f"{NAME}-{own['token']}")
    draft.write_text(json.dumps(own) + "\n")
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    finally:
        draft.unlink()


def _alive(path: Path, holder: Mapping[str, Any]) -> str:
    """Why the holder must be believed to be alive; "" when it is not."""
    if not holder:
        return ""  # locks appear whole; this one lost its content in a crash
    job = os.environ.get("SLURM_JOB_ID")
    if job and holder.get("job") == job:
        return ""  # the queue runs a job once: this is what is left of its former start
    if holder.get("host") == socket.gethostname():
        pid = int(holder.get("pid", 0))
        return "it is running" if pid and _began(pid) == holder.get("began") else ""
    try:
        age = _now(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return ""
    return f"it gave a sign of life {age:.0f} s ago" if age < STALE else ""


def _began(pid: int) -> str | None:
    """When a process began, in its kernel's ticks: a number that is used again is another process. None: not alive."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text[text.rindex(")") + 2 :].split()
        return None if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if Path("/proc").is_dir():
            return None
    except (OSError, ValueError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _now(folder: Path) -> float:
    """The file system's clock: that of another host may differ from ours."""
    probe = folder / f"{NAME}-{secrets.token_hex(8)}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCHED_EVERY):
        with suppress(OSError):
            os.utime(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _who(holder: Mapping[str, Any]) -> tuple[Any, Any]:
    return holder.get("pid"), holder.get("host")
