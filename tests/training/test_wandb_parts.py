"""Files of W&B that were written offline, against wandb itself: read, written again, joined."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.commands.sync import sync
from ldm.training.logging import WandbLogger
from ldm.training.wandb_files import read_log, read_records, write_log
from ldm.training.wandb_parts import STEP, join, offline_parts, row_of


def write_part(run: Path, steps: range, *, validate: int | None = None) -> None:
    """What one start of a training logs; as large as the real ones, whose config alone needs several blocks."""
    logger = WandbLogger(folder=str(run), project="ldm", run_id=run.name, tags=["t"], offline=True)
    logger.log_hyperparams({"seed": 1, "long": "x" * 70_000})
    if validate is not None:  # the validation that the former start had to leave
        logger.log_metrics({"val/loss": 10.0 + validate}, step=validate)
    for step in steps:
        logger.log_metrics({"train/loss": float(step)}, step=step)
        if step % 4 == 3:
            logger.log_metrics({"val/loss": 10.0 + step}, step=step)
    logger.log_image(key="samples/grid", images=[Image.new("RGB", (8, 8))], step=steps[-1])
    logger.finalize("success")
    assert not logger._gave_up


def kinds(records: Any) -> list[str]:
    return [record.WhichOneof("record_type") for record in records]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after step 5, again after 7 before its validation, which the third start makes."""
    folder = tmp_path_factory.mktemp("runs") / "parts" / "abc"
    write_part(folder, range(0, 6))
    time.sleep(1.1)  # parts are named by the second
    write_part(folder, range(5, 7))
    time.sleep(1.1)
    write_part(folder, range(7, 10), validate=6)
    (folder / "config.yaml").write_text("name: parts\n")
    return folder


def test_wandbs_own_files_are_written_again_bit_for_bit(run: Path, tmp_path: Path) -> None:
    files = offline_parts(run / "wandb")
    assert len(files) == 3
    for file in files:
        write_log(tmp_path / "again", read_log(file))
        assert (tmp_path / "again").read_bytes() == file.read_bytes()
        records = list(read_records(file))
        assert [record.num for record in records] == list(range(1, len(records) + 1))


def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(run: Path, tmp_path: Path) -> None:
    file = offline_parts(run / "wandb")[0]
    whole = list(read_log(file))
    cut = tmp_path / "cut"
    for size in (7, 8, 1000, 40_000, file.stat().st_size - 1):
        cut.write_bytes(file.read_bytes()[:size])
        some = list(read_log(cut))
        assert some == whole[: len(some)] and len(some) < len(whole)
    cut.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a file that wandb wrote"):
        list(read_log(cut))


def test_records_of_every_size_fit_into_blocks(tmp_path: Path) -> None:
    block = 32 * 1024
    sizes = [0, 1, block - 15, block - 14, block - 13, block, 3 * block, 5, block - 40, 7, 0]
    records = [bytes([i]) * size for i, size in enumerate(sizes)]
    write_log(tmp_path / "log", records)
    assert list(read_log(tmp_path / "log")) == records


def test_parts_become_the_run_that_was_never_interrupted(run: Path, tmp_path: Path) -> None:
    made = join(run / "wandb", "abc")
    (file,) = made.folder.glob("*.wandb")
    assert file.name == "run-abc.wandb" and made.parts == 3
    records = list(read_records(file))
    assert [record.num for record in records] == list(range(1, len(records) + 1))
    for kind in ("header", "run", "exit"):
        assert kinds(records).count(kind) == 1, kind
    rows = [row_of(record) for record in records if record.WhichOneof("record_type") == "history"]
    assert [row["_step"] for row in rows] == list(range(len(rows))) and made.rows == len(rows)
    assert [row[STEP] for row in rows if "train/loss" in row] == list(range(10))
    assert [(row[STEP], row["val/loss"]) for row in rows if "val/loss" in row] == [
        (3, 13.0),
        (6, 16.0),
        (7, 17.0),
    ]
    runtimes = [row["_runtime"] for row in rows]
    assert runtimes == sorted(runtimes) and runtimes[0] == 0
    pictures = [row for row in rows if "samples/grid.filenames" in row]
    assert [row[STEP] for row in pictures] == [5, 6, 9], "the second part made none at step 5"
    named = {file.path for record in records for file in record.files.files}
    for row in pictures:
        for name in row["samples/grid.filenames"]:
            assert (made.folder / "files" / name).is_file() and name in named
    assert made.made_anew == 1  # the loss of step 5


def test_the_command_joins_as_often_as_it_is_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sync(run=str(run))
    content = (first / "run-abc.wandb").read_bytes()
    assert sync(run=str(run)) == first and (first / "run-abc.wandb").read_bytes() == content
    told = capsys.readouterr().out
    assert "from 3 parts, without 1" in told and f"wandb sync {first}" in told
    assert len(offline_parts(run / "wandb")) == 3, "the parts stay"


def test_a_run_without_parts_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(FileNotFoundError, match="no offline parts"):
        sync(run=str(tmp_path))


def test_a_helper_process_that_is_gone_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a queue that sends SIGTERM to all processes of a job: no row is lost, and none is there twice."""
    run = tmp_path / "abc"
    logger = WandbLogger(folder=str(run), project="ldm", run_id="abc", offline=True)
    logger.log_hyperparams({"seed": 1})
    for step in range(5):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    helpers = [
        int(child) for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    ]
    helpers = [pid for pid in helpers if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert helpers
    for pid in helpers:
        os.kill(pid, signal.SIGTERM)
    time.sleep(1.5)
    for step in range(5, 8):
        logger.log_metrics({"train/loss": float(step)}, step=step)
        time.sleep(0.1)
    logger.finalize("success")
    assert "started again" in caplog.text and not logger._gave_up
    parts = offline_parts(run / "wandb")
    assert len(parts) == 2
    until = time.monotonic() + 20  # the new helper writes its last rows when it is told to end
    while "exit" not in kinds(read_records(parts[-1])) and time.monotonic() < until:
        time.sleep(0.1)
    (file,) = join(run / "wandb", "abc").folder.glob("*.wandb")
    records = list(read_records(file))
    rows = [row_of(record) for record in records if record.WhichOneof("record_type") == "history"]
    assert [(row[STEP], row["train/loss"]) for row in rows] == [(step, float(step)) for step in range(8)]
    assert "seed" in {item.key for record in records for item in record.config.update}
