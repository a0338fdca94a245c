from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ldm.training import stopping

ROOT = Path(__file__).resolve().parents[2]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_listens_without_torch_and_remembers() -> None:
    done = run("""
        import os, signal, sys
        from ldm.training import stopping
        assert not {"torch", "lightning"} & set(sys.modules)
        stopping.listen()
        for number in stopping.SIGNALS:
            os.kill(os.getpid(), number)
        assert stopping.asked() == 75
        stopping.listen_to_keys()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked() == 130
        os.kill(os.getpid(), signal.SIGINT)
    """)
    assert done.returncode == 130 and "once more" in done.stderr, done.stderr


def test_workers_outlive_a_signal_to_all_processes_and_end_with_the_job() -> None:
    """As a queue or a terminal sends it. A worker that ignores SIGTERM would let the exit hang."""
    done = run("""
        import multiprocessing, os, signal, time
        from ldm.training import stopping
        os.setpgrp()
        stopping.listen()
        stopping.listen_to_keys()
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,), daemon=True)
        worker.start()
        time.sleep(0.3)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            os.killpg(0, number)
        worker.join(0.3)
        assert worker.is_alive()
        raise stopping.leave(stopping.PREEMPTED)
    """)
    assert done.returncode == 75, done.stderr


def test_without_train_py_the_handlers_are_given_back() -> None:
    import signal

    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.listen()
    stopping.listen()
    stopping.stop_listening()
    assert {number: signal.getsignal(number) for number in stopping.SIGNALS} == before
    with pytest.raises(SystemExit) as leaving:
        raise stopping.Unsaved
    assert leaving.value.code == 74
