from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from ldm.training import watching
from ldm.training.stopping import PREEMPTED, Preempted
from ldm.training.watching import ranks_watched, watch_children, watch_parent


class Ended(BaseException):
    pass


@pytest.fixture(autouse=True)
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Short waits, and instead of the end of this process its exit code."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Ended

    for name, seconds in {"EVERY": 0.01, "GRACE": 0.05, "PATIENCE": 0.1}.items():
        monkeypatch.setattr(watching, name, seconds)
    monkeypatch.setattr(watching, "os", SimpleNamespace(**{**vars(os), "_exit": leave}))
    return codes


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    made = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield made
    for child in made:
        child.kill()
        child.wait()


def test_a_rank_that_is_killed_is_named_and_ends_the_job(children, ended, capsys) -> None:
    children[1].kill()
    with pytest.raises(Ended):
        watching._watch_children(children)
    assert ended == [1]
    assert children[0].wait(5) == -signal.SIGKILL
    assert f"rank 2 (process {children[1].pid}) died by signal 9" in capsys.readouterr().err


def test_ranks_that_leave_as_asked_are_left_alone(ended, capsys) -> None:
    leaving = [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) for code in (0, 0)]
    watching._watch_children(leaving)
    assert ended == [] and not capsys.readouterr().err
    leaving = [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({PREEMPTED})"])]
    with pytest.raises(Ended):  # only if the first process does not follow
        watching._watch_children(leaving)


def test_a_rank_notices_that_the_first_is_gone(ended, capsys) -> None:
    with pytest.raises(Ended):
        watch_parent(os.getppid() + 1, rank=3)
    assert ended == [1] and "rank 3 ends, too" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "killed"), [(ValueError(), True), (Preempted(), False)])
def test_others_do_not_wait_for_a_first_process_that_failed(children, error, killed) -> None:
    strategy = SimpleNamespace(launcher=SimpleNamespace(procs=children))
    trainer = SimpleNamespace(strategy=strategy, global_rank=0)
    with pytest.raises(type(error)), ranks_watched(trainer):  # type: ignore[arg-type]
        assert os.environ[watching.FIRST] == str(os.getpid())
        assert watching.subprocess_script._launch_process_observer is watch_children
        raise error
    assert watching.FIRST not in os.environ
    time.sleep(0.05)
    assert all((child.poll() is not None) == killed for child in children)
