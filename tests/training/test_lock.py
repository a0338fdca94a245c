from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.training import lock
from ldm.training.lock import NAME, FolderInUse, locked


def leave_lock(folder: Path, **changes: object) -> Path:
    path = folder / NAME
    path.write_text(json.dumps({**lock._own(), **changes}))
    return path


def test_a_second_job_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on .*run_id"), locked(tmp_path):
            raise AssertionError("two jobs in one folder")
        assert (tmp_path / NAME).exists()
    assert not list(tmp_path.iterdir()), "the lock is let go, and nothing else is left"
    with locked(tmp_path):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave_lock(tmp_path, pid=gone.pid)
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert f"process {gone.pid}" in caplog.text
    leave_lock(tmp_path, began="1")  # the number is in use again, by another process: this one
    with locked(tmp_path):
        pass
    (tmp_path / NAME).write_text('{"host"')  # cut off
    with locked(tmp_path):
        pass


def test_another_host_is_believed_alive_as_long_as_it_gives_signs(tmp_path: Path) -> None:
    path = leave_lock(tmp_path, host="elsewhere")
    with pytest.raises(FolderInUse, match=r"elsewhere.*sign of life"), locked(tmp_path):
        pass
    os.utime(path, (path.stat().st_mtime - lock.STALE - 1,) * 2)
    with locked(tmp_path):
        pass


def test_a_requeued_job_takes_its_own_lock_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    leave_lock(tmp_path, host="elsewhere")
    with locked(tmp_path):
        pass
    leave_lock(tmp_path, host="elsewhere", job="78")
    with pytest.raises(FolderInUse), locked(tmp_path):
        pass


def test_who_holds_it_gives_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCHED_EVERY", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / NAME, (1, 1))
        for _ in range(500):
            if (tmp_path / NAME).stat().st_mtime > 1:
                break
            lock.time.sleep(0.01)
        assert (tmp_path / NAME).stat().st_mtime > 1


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    """Threads in place of processes: each tries once to take over a lock whose owner is dead."""
    from concurrent.futures import ThreadPoolExecutor

    leave_lock(tmp_path, host="elsewhere")
    os.utime(tmp_path / NAME, (1, 1))

    def attempt(_: int) -> bool:
        try:
            lock._take(tmp_path / NAME, lock._own())
            return True
        except FolderInUse:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
