from __future__ import annotations

import time
from pathlib import Path

import pytest

from ldm.training.run import start_run
from ldm.training.secrecy import HIDDEN, hide_secrets, without_secrets

SECRET = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("MY_TOKEN", "short")


def test_secrets_are_hidden_and_nothing_else() -> None:
    assert without_secrets(f"logger.key={SECRET} x") == f"logger.key={HIDDEN} x"
    assert without_secrets("password: hunter2\nlr: 1") == f"password: {HIDDEN}\nlr: 1"
    assert without_secrets('api_key="abc" b') == f"api_key={HIDDEN} b"
    assert without_secrets("https://me:pw@host/x") == f"https://{HIDDEN}@host/x"
    for harmless in (
        "num_tokens: 77",
        "key: red circle",
        "api_key: null",
        "api_key: ${oc.env:WANDB_API_KEY}",
        "a short word",
        "at 12:30 me@host",
        "https://host:80/x",
    ):
        assert without_secrets(harmless) == harmless
    given = {"a": {"password": "x", "depth": 3}, "b": [SECRET, None], "tokens": 5}
    assert hide_secrets(given) == {"a": {"password": HIDDEN, "depth": 3}, "b": [HIDDEN, None], "tokens": 5}


def test_long_words_take_no_time() -> None:
    """As pictures in a notebook's differences are: half a second would be a thousand times too long for it."""
    began = time.perf_counter()
    for word in ("x" * 300_000, "a_" * 150_000, "https://" + "x" * 300_000):
        assert without_secrets(word) == word
    assert time.perf_counter() - began < 5


def test_they_never_enter_a_run_folder(tmp_path: Path) -> None:
    config = {"name": "x", "login": "${oc.env:WANDB_API_KEY}", "direct": SECRET, "api_key": "hunter2"}
    folder = start_run(tmp_path / "x" / "a", config=config, command=["train.py", f"direct={SECRET}"])
    for path in folder.path.iterdir():
        assert SECRET not in path.read_text() and "hunter2" not in path.read_text(), path.name
    assert folder.read_config().login == SECRET, "a reference still leads there"
