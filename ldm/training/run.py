"""The run folder: everything that one training produced, in one place, with what is needed to make it again.

::

    runs/<name>/<run id>/
        config.yaml     as composed; resolved.yaml, the same without references
        command.txt     one line per start; git.json, git.diff, versions.json
        metrics.csv     one row per logged step
        checkpoints/  samples/  reconstructions/  plots/  wandb/
        finished.json   only when the training reached its end
    runs/<name>/last    link to the newest run that finished

A run keeps its id over restarts. What a restart changes (another commit, another override) is written anew and the
former file kept under a number, so the folder tells the whole story.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ldm.interop.native import FILE as WEIGHTS
from ldm.training.lock import NAME as LOCK
from ldm.training.secrecy import without_secrets

RUN_ID_VARIABLE = "LDM_RUN_ID"
PACKAGES = (
    "ldm",
    "torch",
    "torchvision",
    "lightning",
    "numpy",
    "hydra-core",
    "webdataset",
    "wandb",
    "pillow",
)


@dataclass(frozen=True)
class RunFolder:
    """The names inside a run folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def finished(self) -> Path:
        return self.path / "finished.json"

    def read_config(self) -> DictConfig:
        """The config the run was last started with."""
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} is not a run folder: it has no {self.config.name}")
        config = OmegaConf.load(self.config)
        assert isinstance(config, DictConfig)
        return config


# ---------------------------------------------------------------------------------------------------- identity


def is_main_process() -> bool:
    """Whether this process writes: rank 0, as far as the environment tells before training has begun."""
    return getattr(rank_zero_only, "rank", 0) == 0


def choose_run_id(given: str | None = None) -> str:
    """The run's id: as given, or from LDM_RUN_ID or the Slurm job, or made here.

    The same on all processes of a job and after a restart of the same job.

    Raises:
        ValueError: on a process other than the first that has no way to learn the id.
    """
    if given:
        return str(given)
    if known := os.environ.get(RUN_ID_VARIABLE):
        return known
    if array_job := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array_job}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job := os.environ.get("SLURM_JOB_ID"):
        return job
    if not is_main_process():
        raise ValueError(
            f"this process cannot know the run id the first process made: start all of them with run_id=<id> "
            f"or with the environment variable {RUN_ID_VARIABLE} set"
        )
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def is_requeued() -> bool:
    """Whether the queue has started this job before: the same command then goes on with its own run."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


@contextmanager
def exported_run_id(run_id: str) -> Iterator[None]:
    """Tell the id to processes started from this one (DDP), but not to the next job of a sweep."""
    before = os.environ.get(RUN_ID_VARIABLE)
    os.environ[RUN_ID_VARIABLE] = run_id
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(RUN_ID_VARIABLE, None)
        else:
            os.environ[RUN_ID_VARIABLE] = before


# ----------------------------------------------------------------------------------------------- begin and end


def start_run(path: str | Path, *, config: Any, command: Sequence[str], resume: bool = False) -> RunFolder:
    """Claim a fresh run folder, or enter an old one again, and note what is started from what.

    Args:
        config: the composed config.
        command: the command line, program first.
        resume: the folder is there already and shall be continued.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is False.
        FileNotFoundError: there is nothing to resume.
    """
    folder = RunFolder(Path(path))
    if not is_main_process():
        return folder
    if resume and not folder.config.is_file():
        raise FileNotFoundError(f"nothing to resume: {folder.path} is not a run folder (no config.yaml)")
    if not resume and folder.path.exists() and any(path.name != LOCK for path in folder.path.iterdir()):
        raise FileExistsError(
            f"the run folder {folder.path} is used already: continue it with resume={folder.path}, "
            f"or choose another run_id"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.finished.unlink(missing_ok=True)
    if resume:
        for line in differences(folder.path / "resolved.yaml", config):
            print(f"resumed with another {line}")
    # With its references, so that resume=... num_images=... changes all that depends on the number; and spelt out.
    _write(folder.config, without_secrets(OmegaConf.to_yaml(OmegaConf.create(config), resolve=False)))
    _write(
        folder.path / "resolved.yaml",
        without_secrets(OmegaConf.to_yaml(OmegaConf.create(config), resolve=True)),
    )
    with (folder.path / "command.txt").open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {without_secrets(shlex.join(command))}\n")
    state, diff = _git()
    _write(folder.path / "git.json", json.dumps(state, indent=1) + "\n")
    _write(folder.path / "git.diff", without_secrets(diff))
    _write(folder.path / "versions.json", json.dumps(_versions(), indent=1) + "\n")
    return folder


def finish_run(folder: RunFolder, *, images_seen: int) -> None:
    """Mark the run as finished and point ``runs/<name>/last`` at it."""
    if not is_main_process():
        return
    note = {"images_seen": images_seen, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    folder.finished.write_text(json.dumps(note) + "\n")
    link = folder.path.parent / "last"
    fresh = link.with_name(f".last-{folder.id}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.id, target_is_directory=True)
    os.replace(fresh, link)  # in one go: a reader finds the old link or the new one, never none


def find_run(where: str | Path, *, runs: str | Path = "runs") -> RunFolder:
    """A run folder from its path, from ``<name>/<run id>``, or from ``<name>`` alone.

    A name alone means its newest finished run, and where none has finished the newest started.

    Raises:
        FileNotFoundError: naming the runs that come nearest, or saying what the folder is that was named.
    """
    for path in (Path(where), Path(runs) / where):
        if RunFolder(path).config.is_file():
            return RunFolder(path.resolve() if path.name == "last" else path)
        if RunFolder(path / "last").config.is_file():
            return RunFolder((path / "last").resolve())
        started = sorted(path.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
        if started:
            return RunFolder(started[-1].parent)
    if Path(where).exists():
        raise FileNotFoundError(f"{str(where)!r} is no run: {_instead(Path(where))}")
    known = [str(file.parent.relative_to(runs)) for file in Path(runs).glob("*/*/config.yaml")]
    names = sorted({Path(run).parts[0] for run in known})
    near = difflib.get_close_matches(str(where), [*known, *names], n=3, cutoff=0.4) or names[:5]
    hint = f"; did you mean {', '.join(near)}?" if near else f"; {runs} holds no runs"
    raise FileNotFoundError(f"no run {str(where)!r}, neither as a path nor in {runs}{hint}")


def _instead(path: Path) -> str:
    """What stands where a run was looked for, and what to do with it."""
    if path.suffix == ".safetensors" or (path / WEIGHTS).is_file():
        return (
            f"it holds weights alone; train on with init_from={path}, or make a run of published weights by ldm import "
            f"with network=..., text_encoder=... and diffusion=..."
        )
    if (path / "model_index.json").is_file():
        return f"it is a pipeline of diffusers; ldm import from={path} reads it"
    return "it has no config.yaml; give the folder that holds one"


def differences(resolved: Path, config: Any) -> Iterator[str]:
    """Each value that is not what the run was last started with, as "key: before -> now"."""
    if not resolved.is_file():
        return
    now = OmegaConf.create(without_secrets(OmegaConf.to_yaml(OmegaConf.create(config), resolve=True)))
    before, after = (_flat(OmegaConf.to_container(x)) for x in (OmegaConf.load(resolved), now))
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key) and key != "resume":
            yield f"{key}: {before.get(key, 'nothing')} -> {after.get(key, 'nothing')}"


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {
        name: x
        for own, inner in value.items()
        for name, x in _flat(inner, f"{key}.{own}" if key else str(own)).items()
    }


# -------------------------------------------------------------------------------------------------- provenance


def _write(path: Path, text: str) -> None:
    """Write ``text``; a former file that said something else is kept as <stem>.1<suffix>, .2, ..."""
    if path.exists() and path.read_text() != text:
        number = 1
        while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        path.rename(kept)
    path.write_text(text)


def _git() -> tuple[dict[str, Any], str]:
    """Commit and uncommitted changes of the code that runs; empty where it is not under git."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        result = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
        return result.stdout

    try:
        diff = git("diff", "HEAD")
        state = {
            "commit": git("rev-parse", "HEAD").strip(),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD").strip(),
            "changed": bool(diff.strip()),
            "untracked": git("ls-files", "--others", "--exclude-standard", "--full-name").splitlines()[:100],
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": None}, ""
    return state, diff


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["cuda"] = torch.version.cuda
    found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["cpus"] = os.cpu_count()
    return found
