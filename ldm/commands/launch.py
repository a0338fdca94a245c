"""``python train.py``: a checked config for ``ldm.commands.train``, alone or in a sweep.

A single training is composed here and not by ``hydra.main``: processes that Lightning starts for DDP then repeat the
same command line, and Hydra writes nothing into the working directory. Sweeps and Hydra's own options (``--cfg``,
``--info``, ``--help``) go to ``hydra.main``.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ldm.commands import compose
from ldm.commands.errors import reported
from ldm.commands.messages import ConfigError, nearest
from ldm.commands.teacher import take_over
from ldm.training.stopping import Stopped, leave_together

TRAINING: dict[str, Any] = {
    "record": "ldm.commands.settings.TrainConfig",
    "later": {"run_id": "made when the training starts"},
}


def launch(arguments: Sequence[str]) -> float | None:
    """Train as a command line says.

    Returns:
        What ``ldm.commands.train.train`` returns for a single training; None for anything else.
    """
    with reported():
        options = _options(arguments)
        given = list(options.overrides)
        if not _beyond_checking(options):
            freed, jobs = compose.expand(given)
            if options.cfg:  # shown first, so that what is wrong with it can be seen
                compose.compose("train", given)
            elif options.multirun:
                if "hydra/launcher=slurm" in given and shutil.which("sbatch") is None:
                    raise ConfigError(
                        "hydra/launcher=slurm: there is no sbatch here; start it where jobs are submitted"
                    )
                for job in jobs:
                    checked(job)
            else:
                return _train(checked(given))
            # Options first: Hydra cannot read ``x=1 -m y=2``.
            sys.argv[1:] = [*(item for item in arguments if item not in given), *freed]
        hydra.main(version_base="1.3", config_path=str(compose.CONFIGS), config_name="train")(_job)()
        if options.cfg:
            sys.stdout.flush()
            checked(given)
    return None


def checked(overrides: Sequence[str]) -> DictConfig:
    """The config of one training; that of the run itself when it is to be resumed."""
    given = dict(item.partition("=")[::2] for item in overrides)
    where = given.get("resume", "null")
    if where in ("null", "", "None"):
        return compose.load("train", overrides, amend=take_over, **TRAINING)
    groups = {path.name for path in compose.CONFIGS.iterdir() if path.is_dir()}
    for key, value in given.items():
        if key.lstrip("+~").split("/")[0] in groups:
            raise ConfigError(
                f"{key}={value} cannot be joined with resume=: the run keeps its own parts; single values can change"
            )
    run = find_run(where, runs=given.get("paths.runs", "runs"))
    rest = [item for item in overrides if not item.startswith("resume=")]
    # config.yaml has its references, so one changed value reaches all that refer to it
    config = compose.load("config", rest, folder=run, **TRAINING)
    path = Path(where)
    if path.absolute().parent == (run / "checkpoints").absolute():  # named, so no other may be taken
        if not path.exists():
            raise ConfigError(f"resume: there is no checkpoint {where}; resume={run} takes the newest")
        config.resume = str(path.resolve())
    else:
        config.resume = str(run)
    return config


def find_run(where: str, *, runs: str) -> Path:
    """The folder of a run to go on with: by its path, a checkpoint's path, or ``<name>/<run id>``."""
    for path in (Path(where), Path(runs, where), Path(where).parent.parent):
        if (path / "config.yaml").is_file():
            return path.resolve()
    known = [str(file.parent) for file in Path(runs).glob("*/*/config.yaml") if file.parent.name != "last"]
    hint = nearest(where, known) if known else f"'{runs}' holds no runs"
    raise ConfigError(f"resume: '{where}' is no run folder (it would hold config.yaml); {hint}")


def _train(config: DictConfig) -> float | None:
    from ldm.commands.train import train  # and with it torch

    logging.basicConfig(format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    try:
        return train(config)
    except Stopped as leaving:
        leave_together(leaving)


def _job(config: DictConfig) -> float | None:
    """One job of a sweep."""
    # What Lightning repeats when it starts further processes: this job, not the whole sweep.
    sys.argv[1:] = list(HydraConfig.get().overrides.task)
    return train_one(config)


def train_one(config: DictConfig) -> float | None:
    """Check a config that Hydra composed, and train."""
    with reported():
        if OmegaConf.select(config, "task.teacher", throw_on_missing=False) is None:
            compose.examine(config, **TRAINING)
        else:  # whose parts are put in before it is checked
            config = checked(list(HydraConfig.get().overrides.task))
        return _train(config)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's command-line options, an unknown one being a ConfigError."""
    parser = get_args_parser()
    known = [
        option for action in parser._actions for option in action.option_strings if option.startswith("--")
    ]

    def refuse(message: str) -> NoReturn:
        unknown = next((item for item in arguments if item.startswith("--") and item not in known), None)
        raise ConfigError(
            f"there is no option '{unknown}'; {nearest(unknown, known)}" if unknown else message
        )

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(arguments))


def _beyond_checking(options: argparse.Namespace) -> bool:
    """Hydra only shows something, or takes the config from elsewhere; it is then checked when the job starts."""
    shows = options.help or options.hydra_help or options.info or options.shell_completion
    return bool(shows or options.config_path or options.config_name or options.config_dir)
