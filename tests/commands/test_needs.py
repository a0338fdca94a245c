"""What a run needs, and how a person hears that it is not there."""

from __future__ import annotations

import pytest

from ldm.commands.errors import MISSING, reported
from ldm.needs import MissingNeeds, Need, package, refuse_unmet

WEIGHTS = Need(what="the weights w", found=None, looked_in=("/a", "/b"), bring="copy them to /a")


def test_every_need_that_is_not_met_gets_its_line_and_the_status_is_69(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left, reported():
        raise MissingNeeds([("text_encoder.weights", WEIGHTS), ("", WEIGHTS)])
    assert left.value.code == MISSING == 69
    line = "the weights w is missing (looked in /a, /b); copy them to /a"
    assert capsys.readouterr().err.splitlines() == [f"error: text_encoder.weights: {line}", f"error: {line}"]


def test_what_is_there_or_may_be_fetched_is_met() -> None:
    refuse_unmet([Need(what="x", found="/x"), Need(what="y", found=None, fetched=True)])
    with pytest.raises(MissingNeeds, match="the weights w is missing"):
        refuse_unmet([Need(what="x", found="/x"), WEIGHTS])


def test_packages() -> None:
    assert package("torch", extra="text").is_met
    need = package("no-such-package", extra="text")
    assert not need.is_met and "pip install 'ldm[text]'" in str(need)
