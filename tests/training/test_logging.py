from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from ldm.evaluation.protocol import Protocol
from ldm.evaluation.scores import Score
from ldm.training.logging import CSVLogger, MetricsFile, WandbLogger, has_wandb_key
from ldm.training.wandb_scores import log_scores


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def test_one_row_a_step_and_columns_may_come_later(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "run" / "metrics.csv")
    file.write(0, {"a": 1.0})
    file.write(1, {"a": 0.5})
    file.write(1, {"b": 3.25})
    file.write(1, {"a": 0.25})
    file.write(2, {"b": float("nan")})
    assert rows(file.path) == [
        {"step": "0", "a": "1"},
        {"step": "1", "a": "0.25", "b": "3.25"},
        {"step": "2", "b": "nan"},
    ]


def test_a_shorter_merge_leaves_no_rest(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.write(0, {"a": 0.123456789})
    file.write(0, {"a": 1})
    assert file.path.read_text() == "step,a\n0,1\n"


def test_a_restart_goes_on_and_drops_what_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in range(6):
        first.write(step, {"loss": step, "old": 1})
    with path.open("a") as file:
        file.write("6,0.3")  # killed in the middle of a row
    second = MetricsFile(path)
    second.write(4, {"loss": 40, "new": 2})
    second.write(5, {"loss": 50})
    assert [row["step"] for row in rows(path)] == ["0", "1", "2", "3", "4", "5"]
    assert rows(path)[4] == {"step": "4", "loss": "40", "old": "1", "new": "2"}
    assert rows(path)[5] == {"step": "5", "loss": "50"}


def test_writing_does_not_slow_down_with_the_file(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    metrics = {f"m{i}": 0.1 * i for i in range(10)}

    def seconds(start: int) -> float:
        began = time.perf_counter()
        for step in range(start, start + 500):
            file.write(step, metrics)
        return time.perf_counter() - began

    early = seconds(0)
    for step in range(500, 10_000):
        file.write(step, metrics)
    assert seconds(10_000) < 5 * early + 0.1


def test_counts_keep_their_digits(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.write(0, {"n": 123_456_789.0, "x": 1.23456789})
    assert rows(file.path) == [{"step": "0", "n": "123456789", "x": "1.234568"}]


def test_csv_logger_drops_the_epoch(tmp_path: Path) -> None:
    logger = CSVLogger(folder=str(tmp_path))
    logger.log_metrics({"epoch": 0}, step=3)
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"epoch": 0, "train/loss": 0.5}, step=3)
    logger.finalize("success")
    assert rows(tmp_path / "metrics.csv") == [{"step": "3", "train/loss": "0.5"}]


# ------------------------------------------------------------------------------------------------------- W&B


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_key_is_found_without_asking(no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_wandb_key()
    (no_account / "netrc").write_text("machine elsewhere.example login user password x\n")
    assert not has_wandb_key()
    (no_account / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not has_wandb_key()


@pytest.mark.parametrize("offline", [None, False])
def test_without_a_key_the_run_is_written_to_its_folder(no_account: Path, offline: bool | None) -> None:
    logger = WandbLogger(
        folder=str(no_account / "run"), project="ldm", run_id="abc", tags=["t"], group="g", offline=offline
    )
    logger.log_hyperparams(OmegaConf.create({"seed": 1, "twice": "${seed}", "tags": ["a"]}))
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=0)
    logger.log_image(key="samples/grid", images=[Image.new("RGB", (8, 8))], step=0)
    assert logger._run.config.as_dict() == {"seed": 1, "twice": 1, "tags": ["a"]}
    assert logger._run.settings.mode == "offline" and logger._run.group == "g"
    logger.finalize("success")
    assert not logger._gave_up
    files = [path.name for path in (no_account / "run" / "wandb").rglob("*.wandb")]
    assert files == ["run-abc.wandb"]


def test_a_server_that_is_away_does_not_stop_or_hold_up_a_run(
    no_account: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # so that the address is read again
    began = time.monotonic()
    logger = WandbLogger(folder=str(no_account), project="p", run_id="x", init_timeout=2, finish_timeout=2)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finalize("success")
    wandb.teardown()
    assert "going on offline" in caplog.text and not logger._gave_up
    assert list((no_account / "wandb").rglob("*.wandb"))
    assert time.monotonic() - began < 40


def test_what_fails_inside_is_told_once_and_left_out(
    no_account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = WandbLogger(folder="/dev/null/impossible", project="p", run_id="x")
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    logger.finalize("success")
    assert len([record for record in caplog.records if "left out from here on" in record.message]) == 1


class Page:
    """What would be a W&B run: notes what it is told."""

    def __init__(self) -> None:
        self.axes: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        self.config = self

    def define_metric(self, name: str, **told: Any) -> None:
        self.axes[name] = told

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)

    def update(self, values: dict[str, Any], **told: Any) -> None:
        self.settings |= values

    def finish(self, **told: Any) -> None:
        pass


@pytest.fixture
def page(no_account: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    import wandb

    page = Page()
    monkeypatch.setattr(wandb, "init", lambda **given: page.settings.update(given) or page)
    return page


def test_everything_stands_over_images_seen_and_samples_come_as_a_table(no_account: Path, page: Page) -> None:
    logger = WandbLogger(folder=str(no_account), project="p", run_id="x", group="ablation")
    picture = Image.new("RGB", (8, 8))
    rows = [{"prompt": "a ring", "picture": picture, "seed": 3, "guidance": "2.0", "images_seen": 640}] * 2
    logger.log_table("samples/table", rows, images_seen=640, step=10)
    assert page.axes["*"]["step_metric"] == "train/images_seen" and page.settings["group"] == "ablation"
    [sent] = page.rows
    assert (sent["train/images_seen"], sent["trainer/global_step"]) == (640, 10)
    table = sent["samples/table"]
    assert table.columns == ["prompt", "picture", "seed", "guidance", "images_seen"] and len(table.data) == 2
    assert table.data[0][0] == "a ring" and type(table.data[0][1]).__name__ == "Image"


def test_scores_land_on_the_page_of_their_run_under_stable_names(no_account: Path, page: Page) -> None:
    run = no_account / "runs" / "tiny" / "one"
    run.mkdir(parents=True)
    score = Score(
        protocol=Protocol(metric="pinned_loss", weights="ema"),
        value=0.5,
        low=0.4,
        high=0.6,
        num=9,
        run="tiny/one",
        checkpoint="images_000000640",
        images_seen=640,
    )
    online = replace(
        score, protocol=replace(score.protocol, weights="online"), images_seen=320, low=None, high=None
    )
    (run / "config.yaml").write_text("logger: {csv: {_target_: ldm.training.logging.CSVLogger, folder: x}}\n")
    assert not log_scores(run, [score]) and not page.rows
    (run / "config.yaml").write_text(
        "run_id: one\nlogger: {wandb: {_target_: ldm.training.logging.WandbLogger, folder: x, project: p, "
        "run_id: '${run_id}'}}\n"
    )
    assert log_scores(run, [score, online])
    assert page.settings["id"] == "one" and page.settings["resume"] == "allow"
    assert page.rows == [
        {"eval/pinned_loss/online": 0.5, "train/images_seen": 320.0},
        {
            "eval/pinned_loss": 0.5,
            "eval/pinned_loss/low": 0.4,
            "eval/pinned_loss/high": 0.6,
            "train/images_seen": 640.0,
        },
    ]
    assert page.settings["protocols"]["eval/pinned_loss"]["protocol_hash"] == score.protocol.hash
