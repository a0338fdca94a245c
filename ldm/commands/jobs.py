"""Trainings of any command lines through a Hydra launcher: one after another here, or as jobs of a queue.

``python train.py -m`` makes jobs of all combinations of choices; an ablation changes one thing at a time, so it makes
its own list and hands that to the launcher.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from ldm.commands import compose, launch
from ldm.training.stopping import Stopped

TRAIN = compose.CONFIGS.parent / "train.py"


def launch_jobs(jobs: Sequence[Sequence[str]], *, launcher: str | None = None) -> list[str]:
    """Train each of ``jobs``, overrides of ``train.py`` that were checked before.

    Args:
        jobs: For each its command line.
        launcher: A choice of hydra/launcher; None trains one after another in this process.

    Returns:
        For each why it failed, "" where it did not. One that fails does not keep the others from being trained.
    """
    if not jobs:
        return []
    hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(compose.CONFIGS)))
    arguments = list(sys.argv)
    try:
        chosen = [f"hydra/launcher={launcher}"] if launcher else []
        config = hydra.compose_config("train", chosen, RunMode.MULTIRUN, with_log_configuration=True)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        runner = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=_job, config=config
        )
        returned = runner.launch([_freed(hydra, job) for job in jobs], initial_job_idx=0)
    finally:
        GlobalHydra.instance().clear()
        sys.argv[:] = arguments
    return ["" if one.status == JobStatus.COMPLETED else _why(one) for one in returned]


def _freed(hydra: Hydra, job: Sequence[str]) -> list[str]:
    groups = list(compose.groups_of(hydra.config_loader))
    return [compose.free(override, groups) for override in compose.parse(job)]


def _job(config: DictConfig) -> float | None:
    """One training; what it says on leaving is kept for the report, but for a wish to stop altogether."""
    overrides = list(HydraConfig.get().overrides.task)
    sys.argv[:] = [str(TRAIN), *overrides]  # what further processes of this training are started with
    try:
        return launch.train_one(config)
    except Stopped:
        raise
    except SystemExit as leaving:
        if leaving.code in (0, None):
            return None
        raise RuntimeError(f"it left with exit status {leaving.code}, see above") from None


def _why(returned: Any) -> str:
    try:
        error = returned.return_value
    except Exception as raised:  # a failed job raises its error when asked for its value
        error = raised
    logging.getLogger(__name__).debug("job failed", exc_info=error if isinstance(error, Exception) else None)
    return " ".join(str(error).split()) or type(error).__name__
