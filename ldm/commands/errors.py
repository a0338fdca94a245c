"""How errors reach a person: one line that says what to do, not a page of stack frames."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra.errors import InstantiationException

from ldm.commands.messages import ConfigError
from ldm.needs import MissingNeeds

MISSING = 69  # sysexits.h calls it EX_UNAVAILABLE: files or packages that the run needs are not here
USAGE = 2  # exit status for what was asked wrongly, as argparse and shells use it
FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT
FULL = "LDM_FULL_ERROR"
HOUSE = Path(__file__).resolve().parents[1]


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors that a person can mend into one line on stderr and an exit status.

    ConfigError exits with 2. A ValueError or OSError that this project's own code raises has its remedy in the message
    and exits with 1, or with its own ``exit_status`` (65: the data are bad). Everything else, and with
    LDM_FULL_ERROR=1 these too, keeps its stack trace.
    """
    try:
        yield
    except ConfigError as error:
        fail(error.message, USAGE)
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None or not mendable(cause):
            raise
        if isinstance(cause, MissingNeeds):
            fail_missing(cause)
        key = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
        fail(f"{key}: {cause}" if key else str(cause), _status(cause), hint=True)
    except BrokenPipeError:  # whoever read our output has gone, as in ``--help | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except MissingNeeds as error:
        fail_missing(error)
    except (ValueError, OSError) as error:
        if not mendable(error):
            raise
        fail(str(error), _status(error), hint=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _status(error: BaseException) -> int:
    return getattr(error, "exit_status", FAILED)


def mendable(error: BaseException) -> bool:
    """Whether the message alone is enough: the house raised it, on purpose."""
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = bool(frames) and Path(frames[-1][0].f_code.co_filename).is_relative_to(HOUSE)
    return ours and isinstance(error, ValueError | OSError) and not os.environ.get(FULL)


def fail(message: str, status: int, *, hint: bool = False) -> NoReturn:
    """One line on stderr, then the exit status."""
    line = " ".join(message.split())
    print(f"error: {line}" + (f" [{FULL}=1 shows where]" if hint else ""), file=sys.stderr)
    sys.exit(status)


def fail_missing(error: MissingNeeds) -> NoReturn:
    """A line on stderr for each thing that is not here, then exit status 69."""
    for line in error.lines:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(MISSING)
