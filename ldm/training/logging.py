"""Where metrics go: always metrics.csv in the run folder, and Weights & Biases if wanted.

Both take what ``self.log`` in a module or callback collects. Pictures go to loggers that have ``log_image``.
"""

from __future__ import annotations

import csv
import io
import logging
import netrc
import os
import time
import warnings
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from ldm.training.secrecy import hide_secrets

log = logging.getLogger(__name__)

IMAGES_SEEN = "train/images_seen"


FLUSHED_EVERY = 0.5  # seconds: what W&B has not written yet is lost when its helper process is killed
RECENT = 20.0  # seconds that rows are remembered, to be told once more


class MetricsFile:
    """A CSV file with one row per step that survives crashes, restarts and columns that come later.

    Rows are appended; values that come later for the step of the last row are merged into it. A restart continues the
    file and drops the rows beyond the step it takes up again, which will be made anew. Only a new column has the file
    rewritten. Empty cells: not logged at that step.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.columns = ["step"]
        self._file: BinaryIO | None = None
        self._row: dict[str, str] = {}
        self._row_starts = 0  # where in the file the last row begins, in bytes

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add ``values`` to the row of ``step``."""
        if self._file is None:
            rows = self._read()
            self.columns = list(rows[0]) if rows else ["step"]
            self._rewrite([row for row in rows if int(row["step"]) <= step])
        if fresh := [name for name in values if name not in self.columns]:
            self.columns += fresh
            self._rewrite(self._read())
        assert self._file is not None
        if self._row.get("step") != str(step):
            self._row = {"step": str(step)}
            self._row_starts = self._file.seek(0, os.SEEK_END)
        self._row |= {name: _cell(value) for name, value in values.items()}
        self._file.seek(self._row_starts)
        self._file.write(self._lines([self._row]))
        self._file.truncate()
        self._file.flush()

    def close(self) -> None:
        """Also after a failure: what Python still holds of a line then is lost, and read as cut off."""
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                file.close()

    def _read(self) -> list[dict[str, str]]:
        """The rows of the file; one that a crash cut off is left out."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file, restval="cut off"))
        return [row for row in rows if "cut off" not in row.values() and row["step"].isdecimal()]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self._lines([dict(zip(self.columns, self.columns, strict=True)), *rows[:-1]])
        hidden = self.path.with_name(f".{self.path.name}")
        hidden.write_bytes(before + self._lines(rows[-1:]))
        os.replace(hidden, self.path)
        self._file = self.path.open("r+b")
        self._row = dict(rows[-1]) if rows else {}
        self._row_starts = len(before)

    def _lines(self, rows: list[dict[str, str]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def _cell(value: float) -> str:
    """Whole numbers in full, others to float32's precision."""
    value = float(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.7g}"


class CSVLogger(Logger):
    """metrics.csv in the run folder. Lightning's own begins the file anew when a run is resumed.

    Args:
        folder: the run folder.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__()
        self.file = MetricsFile(Path(folder) / "metrics.csv")
        self._waiting: list[tuple[int, dict[str, float]]] = []  # what a full disk has not taken yet

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Data is endless to Lightning, so that its epoch says nothing.
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if values:
            self._waiting.append((step or 0, values))
        try:
            while self._waiting:
                self.file.write(*self._waiting[0])
                self._waiting.pop(0)
        except OSError as error:  # a full disk: no reason to stop, and no number may be lost
            self.file.close()
            if len(self._waiting) == 1:
                log.warning("%s cannot be written (%s); numbers wait until it can", self.file.path, error)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder has config.yaml."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.file.close()


class WandbLogger(Logger):
    """Weights & Biases, which may never ask a question and never stop a run.

    Without a key, or where the server cannot be reached, the run is written to <run>/wandb and can be sent later, see
    ``ldm sync``. W&B's helper process dies of a SIGTERM that a queue sends to all processes of a job: it is started
    again and told the last rows once more. Whatever else goes wrong is warned of once, then training goes on without.
    ``train/images_seen`` is the x axis of all metrics, so that runs of different batch sizes are compared over what
    they have learned from. Lightning's own logger does not catch a server's failures. What to click: docs/wandb.md.

    Args:
        folder: the run folder.
        project: W&B project.
        run_id: the run's id, so that a resumed run continues its page; unique within the project.
        name: what the page is called.
        entity: user or team; null is the key's own.
        group: runs shown together.
        tags: to filter runs by.
        job_type: such as "train".
        notes: free text.
        offline: true writes to the folder only; null does so where no key is found.
        init_timeout: seconds to wait for the server at the start before going on offline.
        finish_timeout: seconds to wait for uploads at the end.
    """

    def __init__(
        self,
        *,
        folder: str,
        project: str,
        run_id: str,
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str | None = None,
        notes: str | None = None,
        offline: bool | None = None,
        init_timeout: float = 30.0,
        finish_timeout: float = 60.0,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.page = {
            "project": project,
            "id": run_id,
            "name": name,
            "entity": entity,
            "group": group,
            "tags": list(tags),
            "job_type": job_type,
            "notes": notes,
        }
        self.offline = offline
        self.init_timeout = init_timeout
        self.finish_timeout = finish_timeout
        self._run: Any = None
        self._gave_up = False
        self._config: Callable[[Any], None] | None = None
        self._recent: deque[tuple[float, Callable[[Any], None]]] = deque()  # rows and when they were sent

    @property
    def name(self) -> str | None:
        return self.page["project"]  # type: ignore[return-value]

    @property
    def version(self) -> str | None:
        return self.page["id"]  # type: ignore[return-value]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self._try_row(lambda run: run.log(values | _step(step)))

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Pictures (PIL or paths), the signature of Lightning's own W&B logger."""

        def send(run: Any) -> None:
            import wandb

            run.log({key: [wandb.Image(image) for image in images]} | _step(step))

        self._try_row(send)

    @rank_zero_only
    def log_table(
        self, key: str, rows: Sequence[Mapping[str, Any]], *, images_seen: int, step: int | None
    ) -> None:
        """Rows of equal keys, pictures (PIL) among their values, as a W&B Table."""

        def send(run: Any) -> None:
            import wandb

            columns: list[str | int] = list(rows[0])
            cells = [[wandb.Image(x) if hasattr(x, "convert") else x for x in row.values()] for row in rows]
            run.log({key: wandb.Table(columns=columns, data=cells), IMAGES_SEEN: images_seen} | _step(step))

        self._try_row(send)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        values: Any = vars(params) if isinstance(params, Namespace) else params
        if OmegaConf.is_config(values):
            values = OmegaConf.to_container(values, resolve=True)
        shown = hide_secrets(values)
        self._config = lambda run: run.config.update(shown, allow_val_change=True)
        self._try(self._config)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._try(lambda run: run.finish(exit_code=0 if status == "success" else 1))
            self._run = None

    # --------------------------------------------------------------------------------------------------- internals

    def _try_row(self, send: Callable[[Any], None]) -> None:
        self._try(send)
        now = time.monotonic()
        self._recent.append((now, send))
        while self._recent and self._recent[0][0] < now - RECENT:
            self._recent.popleft()

    def _try(self, send: Callable[[Any], None]) -> None:
        if self._gave_up:
            return
        try:
            if self._run is None:
                self._run = self._start()
            try:
                send(self._run)
            except ConnectionError as error:
                log.warning("W&B's helper process is gone (%s): it is started again", _first_line(error))
                self._begin_again()
                send(self._run)
        except Exception as error:
            self._gave_up = True
            log.warning(
                "W&B failed and is left out from here on (metrics.csv goes on): %s", _first_line(error)
            )

    def _begin_again(self) -> None:
        """What the helper had not yet written is told once more; ``ldm sync`` knows what is there twice."""
        import wandb

        with suppress(Exception):  # it says goodbye to the one that is gone
            wandb.teardown()
        self._run = self._start()
        for once_more in [*filter(None, [self._config]), *(send for _, send in self._recent)]:
            once_more(self._run)

    def _start(self) -> Any:
        offline = not has_wandb_key() if self.offline is None else self.offline
        if not offline and not has_wandb_key():
            log.warning(
                "W&B: offline=false, but there is no key (WANDB_API_KEY or `wandb login`): going on offline"
            )
            offline = True
        if not offline:
            try:
                return self._init("online")
            except Exception as error:
                log.warning("W&B: the server cannot be used (%s): going on offline", _first_line(error))
                import wandb

                wandb.teardown()  # its helper process would still hold the failed run's id
        return self._init("offline")

    def _init(self, mode: str) -> Any:
        import wandb

        settings = wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            login_timeout=5,
            console="off",  # the terminal stays the progress bar's
            silent=True,
        )
        if hasattr(settings, "x_transaction_log_flush_interval"):  # of recent versions, which wait 15 s
            settings.x_transaction_log_flush_interval = FLUSHED_EVERY
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        run = wandb.init(dir=self.folder, mode=mode, resume="allow", settings=settings, **self.page)  # type: ignore[arg-type]
        define_axes(run)
        return run


def define_axes(run: Any) -> None:
    """All metrics of a W&B run over images seen; rows that do not tell them take those of the row before."""
    run.define_metric(IMAGES_SEEN)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric=IMAGES_SEEN, step_sync=True)


def has_wandb_key() -> bool:
    """Whether W&B could log in without asking, told without importing it."""
    if os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    for file in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def quiet_lightning() -> None:
    """Keep Lightning from filling the terminal with what says nothing about this run."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*dataloader is not resumable.*",  # ours is: it starts at the image counter
        r".*module\(s\) in eval mode at the start of training.*",  # frozen parts
        r".*log_every_n_steps.*",
        r".*`srun` command is available.*",  # one machine's training beside SLURM is meant
        r".*overridden `transfer_batch_to_device`.*",  # a Batch moves itself
        r".*LeafSpec.*is deprecated.*",  # Lightning's use of torch, not ours
    ):
        warnings.filterwarnings("ignore", message=message)


def _step(step: int | None) -> dict[str, int]:
    return {} if step is None else {"trainer/global_step": step}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
