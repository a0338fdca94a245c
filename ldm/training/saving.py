"""When checkpoints are written, which are kept, and how a run is stopped without losing anything."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from ldm.training import stopping
from ldm.training.callbacks import EveryNumImages, crossed, untimed
from ldm.training.checkpoint import foreign_entries, list_checkpoints
from ldm.training.checkpoint_io import CheckpointFolders
from ldm.training.ema import put_back
from ldm.training.folders import folder_name, images_of, point, remove, whole_folders
from ldm.training.leaving import agreed, as_validation
from ldm.training.stopping import Interrupted, Stopped, Unsaved

log = logging.getLogger(__name__)

FAILURES = 3  # in a row, after which a training that cannot be saved is given up
PATIENCE = 30.0  # seconds for a checkpoint in the background to end when the training has failed


class Checkpoints(Checkpoint):
    """Write ``<run>/checkpoints/images_<count>``, with the links ``last`` and ``best``.

    Saved is at the border between two steps: all of the last one is over, its validation and its log included, and
    nothing of the next has begun. There, too, the processes agree whether one of them was asked to stop (see
    ``stopping.py``): all save together and leave with the same exit code. Lightning's ModelCheckpoint is not used
    because it counts optimizer steps; this counts pictures.

    A disk that is full or cannot be written does not stop the training at once: it goes on, tries again a tenth of
    ``every_num_images`` later, and after three failures in a row leaves with exit code 74.

    Written in the background, a checkpoint is a copy in the host's memory that the training goes on without; one is
    written at a time, and the last one of a training, or before it leaves, is waited for.

    Args:
        every_num_images: how often a checkpoint is written; always at the end of the training, too.
        keep_every_num_images: how often one of them is kept for good; null keeps none.
        keep_last: how many of the newest are kept, at least two: one of them is whole whatever happens to the other.
        monitor: the validation metric whose best value the checkpoint ``best`` has; null keeps none.
        mode: "min" or "max", which value of it is best.
        background: Write while the training goes on. Null does so where the weights are spread over processes (FSDP):
            each then needs host memory for its share.
    """

    def __init__(
        self,
        *,
        every_num_images: int,
        keep_every_num_images: int | None = None,
        keep_last: int = 2,
        monitor: str | None = "val/loss",
        mode: str = "min",
        background: bool | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"Checkpoints: mode={mode!r} is not known: say 'min' or 'max'")
        if every_num_images < 1 or (keep_every_num_images is not None and keep_every_num_images < 1):
            raise ValueError("Checkpoints: every_num_images and keep_every_num_images must be positive")
        if keep_last < 2:
            raise ValueError(
                f"Checkpoints: keep_last={keep_last} must be at least 2: the newest may be damaged"
            )
        self.every_num_images = every_num_images
        self.keep_every_num_images = keep_every_num_images
        self.keep_last = keep_last
        self.monitor = monitor
        self.mode = mode
        self.background = background
        self.best_value: float | None = None
        self.best_at: int | None = None  # images seen then
        self.kept: list[int] = []  # images seen in those kept for good
        self._seen = 0
        self._saved_at = -1  # images seen in the newest checkpoint
        self._begun_at: int | None = None  # images seen in the one that is being written
        self._at_border = True  # no gradients wait for more of their batch
        self._due = False
        self._validation_left = False  # in the middle, because somebody asked to leave
        self._retry_at: int | None = None
        self._failures = 0
        self._io: CheckpointFolders | None = None
        self._listens = False

    # ------------------------------------------------------------------------------------------ Lightning hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._io = CheckpointFolders(trainer.strategy, Path(trainer.default_root_dir))
        trainer.strategy.checkpoint_io = self._io
        # Lightning's own handlers talk to the other processes from within the signal, where some hang for ever.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._listens = not stopping.listening()  # train.py does so for its whole process
        stopping.listen()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._quiet()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = int(pl_module.images_seen)  # type: ignore[arg-type]
        if trainer.is_global_zero:
            self._tidy(_folder(trainer))
        if (_folder(trainer) / folder_name(self._seen)).is_dir():
            self._saved_at = self._seen
        stopping.listen_to_keys()
        if self._validation_left:
            self._validate_again(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._at_border:
            return
        assert self._io is not None
        code, writing = agreed(trainer, self._io.busy)
        if not writing:
            self._settle(trainer)
        if code:
            self._save(trainer, tries=FAILURES)
            raise stopping.leave(code)
        if self._due or (self._retry_at is not None and self._seen >= self._retry_at):
            self._save(trainer, tries=1, background=self._in_background)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._at_border = batch.completes_step  # accumulated gradients are in no checkpoint
        if not self._at_border:
            return
        before, self._seen = self._seen, int(pl_module.images_seen)  # type: ignore[arg-type]
        if self._seen <= before:
            raise RuntimeError(
                f"{type(pl_module).__name__}.images_seen stood still at {before}: count the batch in training_step; "
                "the module's own on_train_batch_end runs too late for what is counted here"
            )
        if self.keep_every_num_images is not None and crossed(before, self._seen, self.keep_every_num_images):
            self.kept.append(self._seen)
            self._due = True
        self._due = self._due or crossed(before, self._seen, self.every_num_images)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A validation may take longer than a queue waits: it is left, and made again when the training goes on."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if code := agreed(trainer)[0]:
            put_back(trainer)
            self._validation_left = self._due = True
            self._save(trainer, tries=FAILURES)
            raise stopping.leave(code)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_left = False
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(
                f"Checkpoints: the metric monitor={self.monitor} was not logged; there are: {known}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        if self._is_better(value):
            self.best_value, self.best_at, self._due = value, self._seen, True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, tries=FAILURES)
        left = [c for c in trainer.callbacks if isinstance(c, EveryNumImages) and c.is_left]  # type: ignore[attr-defined]
        if left and (code := agreed(trainer)[0]):
            raise stopping.leave(code)
        stopping.leave_keys_alone()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._quiet()
        if self._io is not None:
            with suppress(Exception):  # what is being written is worth having; the others may be gone
                self._io.wait(PATIENCE)
        if isinstance(exception, Stopped | KeyboardInterrupt):
            if trainer.is_global_zero and not isinstance(exception, Unsaved):
                print(self._farewell(Path(trainer.default_root_dir)), file=sys.stderr, flush=True)
        elif trainer.world_size > 1:
            who = f"rank {trainer.global_rank} ({socket.gethostname()}, process {os.getpid()})"
            what = (str(exception).strip().splitlines() or [""])[0]
            print(f"{who} failed: {type(exception).__name__}: {what}", file=sys.stderr, flush=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if foreign := list(foreign_entries(checkpoint)):
            raise TypeError(
                f"a checkpoint holds plain data only, so that it loads with weights_only=True, but {foreign[0]}"
            )
        at_batch_end(checkpoint, between=not self._validation_left)

    def state_dict(self) -> dict[str, Any]:
        kept = {"best_value": self.best_value, "best_at": self.best_at, "kept": self.kept}
        return {**kept, "validation_left": self._validation_left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value = state_dict["best_value"]
        self.best_at, self.kept = state_dict.get("best_at"), list(state_dict.get("kept", ()))
        self._validation_left = state_dict.get("validation_left", False)

    # --------------------------------------------------------------------------------------------------- internals

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best_value is None:
            return True
        return value < self.best_value if self.mode == "min" else value > self.best_value

    @property
    def _in_background(self) -> bool:
        assert self._io is not None
        return self._io.shared if self.background is None else self.background

    def _save(self, trainer: Trainer, *, tries: int, background: bool = False) -> None:
        """On all processes, since the state may be spread over them.

        Args:
            tries: How often, at most; of one in the background it shows later whether it was written.

        Raises:
            Unsaved: It has failed too often.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._settle(trainer)
        if self._saved_at == self._seen and not self._due:
            return
        assert self._io is not None
        self._io.background = background
        for attempt in range(tries):
            with untimed(trainer):
                if attempt:
                    time.sleep(1)
                self._due, self._retry_at, self._begun_at = False, None, self._seen
                trainer.save_checkpoint(_folder(trainer) / folder_name(self._seen), weights_only=False)
            if background or self._settle(trainer):
                return

    def _settle(self, trainer: Trainer) -> bool:
        """Wait for what was begun to be written, if anything was; whether it was.

        Raises:
            Unsaved: It has failed too often.
        """
        if self._begun_at is None:
            return True
        assert self._io is not None
        at, self._begun_at = self._begun_at, None
        with untimed(trainer):
            self._io.wait()
            problem = trainer.strategy.broadcast(None if self._io.failure is None else str(self._io.failure))
            if problem is not None:
                self._failed(trainer, problem, at)
                return False
            self._failures, self._saved_at = 0, at
            if trainer.is_global_zero:
                self._tidy(_folder(trainer))
            return True

    def _validate_again(self, trainer: Trainer) -> None:
        """The validation that was left, with what it says under the step that it belongs to."""
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        with as_validation(trainer):
            loop.run()
        self._validation_left, self._due = (
            False,
            True,
        )  # the checkpoint that says it is left shall not be the last

    def _failed(self, trainer: Trainer, problem: str, at: int) -> None:
        self._failures += 1
        self._retry_at = self._seen + max(1, self.every_num_images // 10)
        if trainer.is_global_zero:
            given_up = self._failures >= FAILURES
            then = "giving up" if given_up else "training goes on, and it is tried again"
            log.warning("checkpoint at %s images could not be written (%s); %s", f"{at:,}", problem, then)
        if self._failures >= FAILURES:
            raise Unsaved

    def _tidy(self, folder: Path) -> None:
        """Bring names and links in line with where the training stands; on the first process. No reason to stop it."""
        try:
            for left in [*folder.glob(".tmp-*"), *folder.glob(".old-*")]:
                remove(left)
            found = whole_folders(folder)
            for later in [path for path in found if (images_of(path) or 0) > self._seen]:
                aside = later.with_name(f"undone-{later.name}-{time.strftime('%Y%m%d-%H%M%S')}")
                os.rename(later, aside)
                log.warning("going on from before it: %s is set aside as %s", later.name, aside.name)
                found.remove(later)
            wanted = {"last": found[0].name if found else None}
            if self.best_at is not None:
                wanted["best"] = folder_name(self.best_at)
            for link, target in wanted.items():
                if target is not None and (folder / target).is_dir():
                    point(folder / link, target)
            spared = {folder_name(count) for count in [*self.kept, *filter(None, [self.best_at])]}
            for path in found[self.keep_last :]:
                if path.name not in spared:
                    remove(path)
        except OSError as error:
            log.warning("%s could not be put in order: %s", folder, error)

    def _quiet(self) -> None:
        stopping.leave_keys_alone()
        if self._listens:
            stopping.stop_listening()

    def _farewell(self, run: Path) -> str:
        if self._saved_at < 0 and not list_checkpoints(run / "checkpoints"):
            return f"\nStopped before the first checkpoint; nothing to continue in {run}"
        at = f" at {self._saved_at:,} images" if self._saved_at >= 0 else ""
        return f"\nStopped; checkpoint saved{at}. To continue:  python train.py resume={run}"


def at_batch_end(checkpoint: dict[str, Any], *, between: bool = True) -> None:
    """Let Lightning's counters say what they said at the end of the last step, in place.

    Between two steps they are in a state that Lightning takes up one step too far; this one it knows. Without a step
    there is nothing to take up.

    Args:
        between: It is between two steps; False is inside the validation after one, whose step is not counted yet.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop")
    if loops is None:
        return
    batches = loops["epoch_loop.batch_progress"]
    if batches["total"]["completed"] == 0:
        del checkpoint["loops"]
        return
    if batches["current"]["completed"] == 0:  # a new epoch, of data that have an end
        return
    for count in (batches["total"], batches["current"]):
        done = count["completed"]
        count |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= int(between)
    for count in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        count |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}


@contextmanager
def interruptible() -> Iterator[None]:
    """Around ``trainer.fit``: a Ctrl-C before the first step leaves with exit code 130 as well, not Lightning's 1."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise Interrupted from None
        raise


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"
