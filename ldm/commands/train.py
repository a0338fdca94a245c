"""One training, from a checked config to a finished run folder: builds the parts and hands over to ``training.fit``."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ldm.commands.guide import check_training
from ldm.commands.needs import refuse_missing
from ldm.training.checkpoint import is_checkpoint, list_checkpoints, read_checkpoint
from ldm.training.devices import check_devices, choose_precision
from ldm.training.fit import fit
from ldm.training.initial import begin_with
from ldm.training.lock import locked
from ldm.training.logging import quiet_lightning
from ldm.training.ranks import check_launch, environment
from ldm.training.run import (
    RunFolder,
    choose_run_id,
    exported_run_id,
    is_main_process,
    is_requeued,
    start_run,
)


def train(config: DictConfig) -> float | None:
    """Train as the config says; returns the last ``val/loss``, which sweeps compare.

    Raises:
        FileExistsError: The run folder is used and ``resume`` is not given.
        MissingNeeds: Files of pretrained weights are not on this machine.
        ValueError, OSError: What the parts refuse, before the run folder is claimed.
    """
    where = config.resume
    if where is None and is_requeued():
        own = RunFolder(Path(config.paths.runs, config.name, choose_run_id(config.run_id)))
        where = own.path if own.config.is_file() else None
    resumed, checkpoint = (None, None) if where is None else to_go_on_from(Path(where))
    config.run_id = resumed.id if resumed else choose_run_id(config.run_id)
    quiet_lightning()
    sharded = "FullySharded" in str(OmegaConf.select(config, "trainer.strategy._target_"))
    num_nodes = config.trainer.get("num_nodes", 1)
    processes = check_devices(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=num_nodes,
        batch_size=config.data.batch_size,
        pieces=config.trainer.accumulate_grad_batches,
        sharded=sharded,
    )
    check_launch(processes=processes, num_nodes=num_nodes)
    refuse_missing(config)
    config.trainer.precision = choose_precision(
        config.trainer.precision,
        accelerator=config.trainer.accelerator,
        sharded=sharded,
        gather_bf16=bool(sharded and OmegaConf.select(config, "trainer.strategy.gather_bf16")),
    )  # into the run's own config: it goes on in the same precision, wherever
    with exported_run_id(config.run_id):
        torch.manual_seed(
            config.seed
        )  # the network's first weights; all else is addressed, see ldm/randomness.py
        path = resumed.path if resumed else Path(config.paths.runs, config.name, config.run_id)
        module, data = built(config.task), built(config.data)
        check_training(module, sharded=sharded)
        if (start := config.get("init_from")) and config.task.get("teacher"):
            raise ValueError(
                f"init_from={start} and task.teacher={config.task.teacher} both name weights to begin with: a training "
                f"begins with its teacher's, so leave init_from out"
            )
        if start and not resumed:  # a resumed run has weights of its own
            other_text = bool(config.get("init_other_text"))
            print(begin_with(module, start, runs=config.paths.runs, other_text=other_text))
        if hasattr(module, "prepare") and (told := module.prepare(anew=not resumed)):
            print(told)
        data.setup("fit")  # a wrong path shows now, not after the folder is claimed
        with locked(path) if is_main_process() else nullcontext():
            if checkpoint is not None:
                refuse_unfit(module, checkpoint)
            command = ["python", *sys.argv]
            folder = start_run(path, config=config, command=command, resume=resumed is not None)
            note_text_contract(folder, module)
            trainer = instantiate(
                config.trainer,
                callbacks=parts(config.callbacks),
                logger=parts(config.logger),
                **environment(),
            )
            return fit(
                trainer,
                module,
                data,
                folder,
                config=cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)),
                checkpoint=checkpoint,
            )


def to_go_on_from(where: Path) -> tuple[RunFolder, Path | None]:
    """A run and what to load of it: the checkpoint that was named, the folder of all, or None where there are none."""
    if is_checkpoint(where):
        return RunFolder(where.parent.parent), where
    run = RunFolder(where)
    return run, run.checkpoints if list_checkpoints(run.checkpoints) else None


def refuse_unfit(module: Any, checkpoint: Path) -> None:
    """Let the module say that a checkpoint is not its own, before the run folder is touched.

    Only names and shapes are looked at, so no hash is compared: that is done when the training begins. What cannot be
    read is left to that, too.

    Args:
        module: Just built.
        checkpoint: One, or the folder of all.

    Raises:
        ValueError: It is of another network, of other latents, or of another text encoder.
    """
    for path in [checkpoint] if is_checkpoint(checkpoint) else list_checkpoints(checkpoint):
        try:
            content = read_checkpoint(path, optimizer=False, verified=True, shares=True)
        except (ValueError, OSError, RuntimeError, KeyError, UnpicklingError):
            continue
        module.on_load_checkpoint(content)
        return


def note_text_contract(folder: RunFolder, module: Any) -> None:
    """``text_contract.json``: what captions became, for people to read; checkpoints hold it too."""
    if is_main_process() and (contract := getattr(module, "text_contract", None)):
        (folder.path / "text_contract.json").write_text(json.dumps(contract, indent=1) + "\n")


def built(config: DictConfig) -> Any:
    """The object of a group; what it is given are plain lists, dictionaries and objects."""
    return instantiate(config, _convert_="all")


def parts(config: DictConfig) -> list[Any]:
    """The objects of a group in their order; entries that are null are left out."""
    return [built(entry) for entry in config.values() if entry is not None]
