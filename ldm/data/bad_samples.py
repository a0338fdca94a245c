"""What becomes of samples that cannot be used: each is replaced, counted and written down; too many end the run.

A few bad pictures are a fact of life, and nobody wants to lose a night for one. Many are a mistake (a wrong path, a
download that went wrong), and nobody wants to train on what is left.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ldm.data.index import Skipped

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"  # in the run folder: a line per bad sample
_SHOWN = 5  # bad samples that are shown as they come
DATA_ERROR = 65  # EX_DATAERR of sysexits.h


class TooManyBadSamples(ValueError):
    """More samples cannot be used than the policy bears."""

    exit_status = DATA_ERROR


@dataclass(frozen=True, kw_only=True)
class BadSamples:
    """How many samples may be bad.

    Shares are of the samples that this process has taken. A limit counts as passed when chance alone hardly explains
    it: when the bad samples less two standard deviations (their number's square root) are above it.

    Args:
        warn_above: share at which a warning says so, once.
        stop_above: share at which the run ends with exit status 65; 1 never ends it.
        first: the run ends, too, when the first so many samples are all bad.
    """

    warn_above: float = 0.001
    stop_above: float = 0.01
    first: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.warn_above <= self.stop_above <= 1:
            raise ValueError(
                f"bad_samples: warn_above={self.warn_above} and stop_above={self.stop_above} are shares from 0 to 1, "
                f"the first not above the second"
            )
        if self.first < 1:
            raise ValueError(f"bad_samples: first={self.first} is a number of samples, 1 or more")

    def passed(self, limit: float, *, bad: int, taken: int) -> bool:
        """Whether ``bad`` of ``taken`` samples are surely more than the limit's share."""
        return bad - 2 * bad**0.5 > limit * taken


class Ledger:
    """Counts what one process takes and what of it was bad, under a policy.

    Args:
        policy: how many may be bad.
        file: where each bad sample is noted once, with its shard, key and reason; None keeps no list.
    """

    def __init__(self, policy: BadSamples | None = None, *, file: Path | None = None) -> None:
        self.policy = policy or BadSamples()
        self.taken = 0
        self.bad = 0
        self._file = file
        self._known: set[tuple[str, str]] = set()
        self._warned = False
        if file is not None and file.exists():  # a run that goes on
            for line in file.read_text(encoding="utf-8").splitlines():
                said = json.loads(line)
                self._known.add((said["shard"], said["key"]))

    def note(self, skipped: Iterable[Skipped]) -> None:
        """Write down what is not known yet, without counting it."""
        named = {(one.shard, one.key): one for one in skipped}
        fresh = [one for name, one in named.items() if name not in self._known]
        for one in fresh[: max(0, _SHOWN - len(self._known))]:
            log.warning("another stands for a bad sample: %s", one)
        self._known.update(named)
        if self._file is not None and fresh:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"shard": one.shard, "key": one.key, "reason": one.reason}, ensure_ascii=False)
                + "\n"
                for one in fresh
            ]
            with self._file.open("a", encoding="utf-8", errors="backslashreplace") as out:
                out.write("".join(lines))

    def add(self, taken: int, replaced: list[Skipped]) -> None:
        """Count a batch.

        Args:
            taken: samples in it.
            replaced: the bad ones that others stand for, each with the reason.

        Raises:
            TooManyBadSamples: now there are too many.
        """
        before, self.taken, self.bad = self.taken, self.taken + taken, self.bad + len(replaced)
        if not replaced:
            return
        self.note(replaced)
        policy, listed = self.policy, f"the last is {replaced[-1]}"
        where = f"; all of them: {self._file}" if self._file is not None else ""
        count = f"{self.bad:,} of {self.taken:,} samples are bad"
        if self.bad >= self.taken >= policy.first > before:
            raise TooManyBadSamples(f"the first {self.taken:,} samples are all bad; {listed}{where}")
        if policy.passed(policy.stop_above, bad=self.bad, taken=self.taken):
            raise TooManyBadSamples(
                f"{count}, more than bad_samples.stop_above={policy.stop_above:g}; {listed}{where}"
            )
        if not self._warned and policy.passed(policy.warn_above, bad=self.bad, taken=self.taken):
            self._warned = True
            log.warning(
                "%s, more than bad_samples.warn_above=%g; %s%s", count, policy.warn_above, listed, where
            )


def skipped_file(folder: Path, rank: int = 0) -> Path:
    """Where a process notes its bad samples: each in a file of its own, for they may be on different machines."""
    return folder / (SKIPPED if rank == 0 else f"skipped.rank{rank}.jsonl")
