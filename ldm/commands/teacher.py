"""``task.teacher=<run>``: a training that learns from a run takes its parts over from that run's config.

Network, codec, text encoder and diffusion must be the teacher's; data and what is done to captions are the teacher's
unless others are chosen. Single values can still be given, on the command line, in the experiment or in the task's own
file: ``network.guidance=2``, ``data.batch_size=32``, ``codec.path=...``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from ldm.commands.compose import Composed, Keys
from ldm.commands.messages import ConfigError, nearest
from ldm.commands.provenance import Source

OWN_PARTS = ("network", "codec", "text_encoder", "diffusion")
DATA = ("data", "buckets", "caption_recipe")
SMALL = "debug/"  # files that make a network small: a teacher's is as large as it is
CONFIG = "config.yaml"


def take_over(composed: Composed) -> None:
    """Put the teacher's parts into a composed training's config, if it names a teacher.

    Raises:
        ConfigError: There is no such run, or it is none of a denoiser, or another part than the teacher's is chosen.
    """
    config = composed.config
    if OmegaConf.is_missing(config.task, "teacher"):  # before its parts are missed
        raise ConfigError("task.teacher has no value yet; give task.teacher=<a run of task=diffusion>")
    where = OmegaConf.select(config, "task.teacher", throw_on_missing=False)
    if where is None:
        return
    folder = find_teacher(str(where), runs=str(config.paths.runs))
    theirs = OmegaConf.load(folder / CONFIG)
    assert isinstance(theirs, DictConfig)
    if "diffusion" not in theirs.task:
        raise ConfigError(f"task.teacher={where} is no denoiser: name a run of task=diffusion")
    for group in OWN_PARTS:
        if group in composed.chosen:
            raise ConfigError(
                f"{group}={composed.chosen[group]} cannot be joined with task.teacher={where}: the {group} is the "
                f"teacher's; single values can change"
            )
    with open_dict(config):
        for group in (*OWN_PARTS, *DATA):
            if theirs.get(group) is not None and group not in composed.chosen:
                config[group] = _with_own_values(theirs, group, composed)
        prompts = OmegaConf.select(theirs, "callbacks.samples.prompts")
        if prompts is not None and OmegaConf.is_missing(config.callbacks.get("samples") or {}, "prompts"):
            config.callbacks.samples.prompts = prompts
        from_task = composed.place(("task", "sample_posterior")).startswith("configs/task/")
        if from_task and "sample_posterior" in theirs.task:
            config.task.sample_posterior = theirs.task.sample_posterior
        if not _is_checkpoint(Path(str(where))):  # "last" may be another run tomorrow
            config.task.teacher = _shown(folder)


def find_teacher(where: str, *, runs: str) -> Path:
    """The folder of a run, by its path, ``<name>/<run id>``, ``<name>``, or the path of one of its checkpoints."""
    for path in (Path(where), Path(where, "last"), Path(runs, where), Path(runs, where, "last")):
        if (path / CONFIG).is_file():
            return path.resolve()
    if (of_checkpoint := Path(where).resolve().parent.parent / CONFIG).is_file():
        return of_checkpoint.parent
    known = sorted({file.parent.parent.name for file in Path(runs).glob("*/*/" + CONFIG)})
    hint = nearest(where, known) if known else f"'{runs}' holds no runs"
    raise ConfigError(f"task.teacher: there is no run '{where}'; {hint}")


def _with_own_values(theirs: DictConfig, group: str, composed: Composed) -> DictConfig:
    """The teacher's part, with the values that files of the whole config and the command line give for it."""
    part: Any = OmegaConf.create({group: theirs[group]})
    for source in composed.sources:
        if _speaks_of_all(source):
            values = OmegaConf.load(source.path)
            if isinstance(values, DictConfig) and values.get(group) is not None:
                part = OmegaConf.merge(part, {group: values[group]})
    for keys in _given(composed, group):
        value = OmegaConf.select(composed.config, ".".join(map(str, keys)))
        OmegaConf.update(part, ".".join(map(str, keys)), value, merge=False, force_add=True)
    return part[group]


def _speaks_of_all(source: Source) -> bool:
    """Whether a file gives values at the top level, beside the list of defaults itself."""
    relative = source.path.relative_to(source.folder).as_posix()
    small = relative.startswith(SMALL) and relative.count("/") > 1
    return source.package == "" and "/" in relative and not small


def _given(composed: Composed, group: str) -> Sequence[Keys]:
    """The keys on the command line that lie within a part; also of parts chosen within it."""
    within = [tuple(name.split("/")) for name in composed.chosen if name.startswith(f"{group}/")]
    return [keys for keys in (*within, *composed.given) if len(keys) > 1 and keys[0] == group]


def _is_checkpoint(path: Path) -> bool:
    return not (path / CONFIG).is_file() and (path.resolve().parent.parent / CONFIG).is_file()


def _shown(folder: Path) -> str:
    """A path from the working directory where it lies in there, else in full."""
    here = Path.cwd().resolve()
    return os.path.relpath(folder, here) if folder.is_relative_to(here) else str(folder)
