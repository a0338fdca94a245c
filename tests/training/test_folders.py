"""A checkpoint folder is whole or is not there, whatever happens while it is written or afterwards."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.training import folders
from ldm.training.checkpoint import newest_checkpoint
from ldm.training.folders import (
    DamagedCheckpoint,
    folder_name,
    is_json,
    read_folder,
    verify,
    whole_folders,
    write_checkpoint,
)


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing is slow, and no test can cut the power."""
    monkeypatch.setattr(folders.os, "fsync", lambda handle: None)


ABOUT = {"images_seen": 8, "versions": {"ldm": "1"}}


def checkpoint(value: float) -> dict[str, Any]:
    """Tensors, plain values, and what JSON would change: a tuple, a number as key, infinity."""
    return {
        "state_dict": {"w": torch.full((3, 2), value)},
        "ema": {"network": {"w": torch.full((3, 2), value + 1)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0)}}, "betas": (0.9, 0.99)}],
        "lr_schedulers": [],
        "images_seen": 8,
        "callbacks": {"a": {"best": 0.1, "kept": [1, 2], "none": None}},
        "loops": {1: "one"},
        "largest": float("inf"),
    }


def assert_is(found: dict[str, Any], value: float) -> None:
    wanted = checkpoint(value)
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found["state_dict"], wanted["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(found["ema"], wanted["ema"], rtol=0, atol=0)
    for key in ("images_seen", "callbacks", "loops", "largest", "lr_schedulers"):
        assert found[key] == wanted[key]
    assert found["optimizer_states"][0]["betas"] == (0.9, 0.99)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    place = tmp_path / folder_name(8)
    write_checkpoint(checkpoint(1.0), place, about=ABOUT)
    assert_is(read_folder(place), 1.0)
    assert "optimizer_states" not in read_folder(place, optimizer=False)
    assert verify(place)["versions"] == {"ldm": "1"}
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    write_checkpoint(checkpoint(2.0), place, about=ABOUT)  # a second one of that name takes its place
    assert_is(read_folder(place), 2.0)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_json_holds_what_it_gives_back_unchanged() -> None:
    assert is_json({"a": [1, 2.5, None, True, "x", {"b": []}]})
    for value in ((1,), {1: 2}, float("nan"), torch.zeros(1), [b"x"], {"a": {"b": {3}}}):
        assert not is_json(value)


class Killed(BaseException):
    """Nothing after it runs, as after kill -9: no handler in the house catches it."""


def break_at(number: int, what: BaseException, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """From now on the call with this number among all that touch the disk raises ``what`` before it is made."""
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise what
            return function(*args, **kwargs)

        return call

    class File:
        def __init__(self, file: Any) -> None:
            self.file, self.flush, self.fileno = file, file.flush, file.fileno
            self.write = counted(file.write)

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
        file = real_open(path, *args, **kwargs)
        return File(file) if args == ("wb",) else file

    real_open = Path.open
    patch.setattr(folders.os, "rename", counted(os.rename))
    patch.setattr(folders.os, "fsync", counted(os.fsync))
    patch.setattr(folders.shutil, "rmtree", counted(shutil.rmtree))
    patch.setattr(Path, "open", counted(opened))
    patch.setattr(Path, "mkdir", counted(Path.mkdir))
    return lambda: calls


@pytest.mark.parametrize("replaced", [False, True])
def test_a_kill_at_any_point_of_a_save_loses_nothing(tmp_path: Path, replaced: bool) -> None:
    """Every call that touches the disk is once the last; with and without a folder that has the name already."""
    number = 0
    while True:
        number += 1
        place = tmp_path / str(number)
        place.mkdir()
        write_checkpoint(checkpoint(1.0), place / folder_name(8), about=ABOUT)
        write_checkpoint(checkpoint(2.0), place / folder_name(16), about=ABOUT)
        target = place / folder_name(16 if replaced else 24)
        with pytest.MonkeyPatch.context() as patch:
            calls = break_at(number, Killed(), patch)
            with suppress(Killed):
                write_checkpoint(checkpoint(3.0), target, about=ABOUT)
            if calls() < number:
                break
        for path in whole_folders(place):
            verify(path)
        newest = newest_checkpoint(place)
        assert newest is not None
        found = float(read_folder(newest)["state_dict"]["w"][0, 0])
        assert found in ((2.0, 3.0) if not replaced else (1.0, 2.0, 3.0))
        write_checkpoint(checkpoint(4.0), target, about=ABOUT)  # what was left behind is in nobody's way
        assert_is(read_folder(target), 4.0)
        assert not list(place.glob(".*"))
    assert number > 20, "the save was broken at fewer points than it has"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_leaves_nothing_cut_under_a_final_name(tmp_path: Path, code: int) -> None:
    write_checkpoint(checkpoint(1.0), tmp_path / folder_name(8), about=ABOUT)
    number = 0
    while True:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            calls = break_at(number, OSError(code, os.strerror(code)), patch)
            try:
                write_checkpoint(checkpoint(2.0), tmp_path / folder_name(16), about=ABOUT)
            except OSError as error:
                assert error.errno == code
            if calls() < number:
                break
        for path in whole_folders(tmp_path):
            verify(path)
        folders.remove(tmp_path / folder_name(16))


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    place, random_ = tmp_path / folder_name(8), random.Random(0)
    write_checkpoint(checkpoint(1.0), place, about=ABOUT)
    for path in sorted(place.iterdir()):
        good = path.read_bytes()
        every = path.name == folders.MANIFEST  # nothing but itself vouches for it: every byte
        for at in range(len(good)) if every else random_.sample(range(len(good)), min(40, len(good))):
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << random_.randrange(8))]) + good[at + 1 :])
            with pytest.raises(DamagedCheckpoint, match=path.name):
                verify(place)
        for kept in (0, 1, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:kept])
            with pytest.raises(DamagedCheckpoint, match=path.name):
                verify(place)
        path.unlink()
        with pytest.raises(DamagedCheckpoint, match=path.name):
            verify(place)
        path.write_bytes(good)
    verify(place)


def test_a_damaged_one_is_set_aside_and_the_next_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (8, 16, 24):
        write_checkpoint(checkpoint(count), tmp_path / folder_name(count), about=ABOUT)
    damaged = tmp_path / folder_name(24) / "weights.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert newest_checkpoint(tmp_path) == tmp_path / folder_name(16)
    assert (tmp_path / folder_name(24)).is_dir(), "a reader changes nothing"
    assert newest_checkpoint(tmp_path, set_aside=True) == tmp_path / folder_name(16)
    assert [path.name for path in whole_folders(tmp_path)] == [folder_name(16), folder_name(8)]
    assert "weights.pt is not" in caplog.text or "weights.pt has" in caplog.text
    assert "set aside" in caplog.text
    for count in (8, 16):
        (tmp_path / folder_name(count) / folders.STATE).unlink()
    for _ in range(2):  # also at a second look: a run must not begin anew because of the first
        with pytest.raises(DamagedCheckpoint, match=r"no checkpoint .* is whole"):
            newest_checkpoint(tmp_path, set_aside=True)


def test_another_format_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "FORMAT", 3)
    write_checkpoint(checkpoint(1.0), tmp_path / folder_name(8), about=ABOUT)
    assert json.loads((tmp_path / folder_name(8) / folders.MANIFEST).read_text())["format"] == 3
    monkeypatch.undo()
    with pytest.raises(DamagedCheckpoint, match="format 3"):
        verify(tmp_path / folder_name(8))
