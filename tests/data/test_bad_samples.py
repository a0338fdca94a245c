"""Bad samples are counted and written down once each; a few cost a line, many the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from ldm.data.bad_samples import BadSamples, Ledger, TooManyBadSamples, skipped_file
from ldm.data.index import Skipped


def bad(number: int) -> Skipped:
    return Skipped("a.tar", f"s{number}", "damaged")


def test_each_bad_sample_is_noted_once_also_over_a_restart(tmp_path: Path) -> None:
    file = skipped_file(tmp_path / "run")
    for _ in range(2):
        ledger = Ledger(file=file)
        ledger.note([bad(0)])
        ledger.add(10_000, [bad(1), bad(1)])
        ledger.add(10_000, [bad(1), bad(2)])
        assert (ledger.taken, ledger.bad) == (20_000, 4)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"shard": "a.tar", "key": f"s{i}", "reason": "damaged"} for i in range(3)]
    assert skipped_file(tmp_path, rank=3).name == "skipped.rank3.jsonl"


def test_more_than_a_thousandth_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    with caplog.at_level(logging.WARNING):
        ledger.add(1_000, [bad(0)])
        assert "warn_above" not in caplog.text  # one of a thousand may be chance
        for i in range(30):
            ledger.add(1_000, [bad(i)] * 3)
    assert caplog.text.count("bad_samples.warn_above=0.001") == 1
    assert caplog.text.count("another stands for a bad sample") == 5  # the first of them, each once


def test_more_than_a_hundredth_ends_the_run_with_status_65() -> None:
    ledger = Ledger()
    for i in range(100):
        ledger.add(1_000, [bad(i)] * 9)
    with pytest.raises(
        TooManyBadSamples, match=r"of 1\d\d,000 samples are bad, more than bad_samples.stop_above"
    ) as error:
        for i in range(100):
            ledger.add(1_000, [bad(i)] * 15)
    assert error.value.exit_status == 65


def test_one_of_a_few_is_no_reason_to_stop_but_half_of_them_is() -> None:
    ledger = Ledger()
    ledger.add(8, [bad(0), bad(1)])
    with pytest.raises(TooManyBadSamples):
        for _ in range(3):
            ledger.add(8, [bad(i) for i in range(4)])


def test_the_first_hundred_all_bad_end_the_run_whatever_the_limits() -> None:
    ledger = Ledger(BadSamples(stop_above=1.0))
    for i in range(9):
        ledger.add(10, [bad(i)] * 10)
    with pytest.raises(
        TooManyBadSamples, match=r"the first 100 samples are all bad; the last is a\.tar, s9: damaged"
    ):
        ledger.add(10, [bad(9)] * 10)
    ledger = Ledger(BadSamples(stop_above=1.0))
    ledger.add(10, [bad(0)] * 9)
    for i in range(50):
        ledger.add(10, [bad(i)] * 10)  # not the first ones, and the limit is off


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        BadSamples(warn_above=0.5, stop_above=0.1)
    with pytest.raises(ValueError, match="first=0"):
        BadSamples(first=0)
