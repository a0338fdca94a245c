"""Runs as they lie on disk, for ``ldm compare``: config, scores, speed and pictures. Nothing is loaded or measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from ldm.evaluation.protocol import canonical
from ldm.evaluation.scores import Score, read_scores
from ldm.training.run import RunFolder, find_run

# What tells runs apart but not what they learn: names, places, what is drawn and written down, and how often.
IDENTITY = (
    *("name", "run_id", "resume", "tags", "notes", "group", "job_type", "paths", "logger", "allow_download"),
    *("callbacks.samples", "callbacks.plots", "callbacks.progress", "callbacks.throughput", "callbacks.data"),
    *("callbacks.checkpoints", "callbacks.reconstructions", "callbacks.validate", "callbacks.evaluate"),
    *("data.num_workers", "trainer.log_every_n_steps", "trainer.default_root_dir", "trainer.profiler"),
    *("trainer.limit_val_batches", "trainer.enable_progress_bar", "trainer.accelerator", "trainer.devices"),
    *("trainer.num_nodes", "trainer.strategy"),
)


@dataclass(frozen=True)
class Speed:
    """What a training took, from metrics.csv."""

    images_per_second: float  # over all devices, the median of its windows; validation and pictures left out
    devices: int
    peak_memory_gib: float | None
    mfu: float | None

    def device_hours(self, images: int) -> float:
        return images / self.images_per_second * self.devices / 3600


@dataclass(frozen=True)
class Record:
    """One run folder, read."""

    folder: RunFolder
    config: Mapping[str, Any]  # dotted key -> value, references as they were written
    seed: int
    images_seen: int  # when it finished, or at its last logged step
    finished: bool
    scores: tuple[Score, ...]
    speed: Speed | None
    device: str
    commit: str

    @property
    def label(self) -> str:
        return f"{self.folder.name}/{self.folder.id}"

    @property
    def recipe(self) -> str:
        """The same for runs that differ by seed and by what does not matter only."""
        return canonical(
            {
                key: _plain(value)
                for key, value in self.config.items()
                if key != "seed" and not is_identity(key)
            }
        )

    @property
    def prompts(self) -> tuple[Any, Any]:
        """What its sample grids were asked for: they stand side by side only where these are the same."""
        asked = {
            key: value for key, value in self.config.items() if key.startswith("callbacks.samples.prompts")
        }
        return canonical(_plain(asked)), self.config.get("callbacks.samples.seed")


def read_record(run: str | Path, *, runs: str | Path = "runs") -> Record:
    """
    Raises:
        FileNotFoundError: There is no such run.
        ValueError: A score of it cannot be read.
    """
    folder = find_run(run, runs=runs)
    folder = RunFolder(folder.path.resolve())  # "last" under its own name
    config = flat(OmegaConf.to_container(folder.read_config(), resolve=False))
    metrics = pd.read_csv(folder.metrics) if folder.metrics.is_file() else pd.DataFrame()
    finished = _json(folder.finished)
    return Record(
        folder=folder,
        config=config,
        seed=int(config.get("seed", 0)),
        images_seen=int(finished.get("images_seen") or _last(metrics, "train/images_seen") or 0),
        finished=bool(finished),
        scores=tuple(read_scores(folder.path)),
        speed=_speed(metrics, config, folder),
        device=_device(folder),
        commit=str(_json(folder.path / "git.json").get("commit") or "")[:12],
    )


def changes(reference: Record, other: Record) -> Iterator[tuple[str, Any, Any]]:
    """What another run was told otherwise: (key, there, here); "nothing" where a run was not told."""
    for key in dict.fromkeys([*reference.config, *other.config]):
        before, now = (record.config.get(key, "nothing") for record in (reference, other))
        if before != now and not is_identity(key):
            yield key, before, now


def is_identity(key: str) -> bool:
    """Whether a key tells runs apart but not what they learn."""
    return any(key == name or key.startswith(f"{name}.") for name in IDENTITY)


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay whole."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {
        name: x
        for own, inner in value.items()
        for name, x in flat(inner, f"{key}.{own}" if key else str(own)).items()
    }


def pictures(records: Sequence[Record]) -> dict[str, Path]:
    """Label -> sample grid: of the same number of images seen where all have one, else each one's newest."""
    grids = {}
    for record in records:
        files = (record.folder.path / "samples").glob("*.png")
        grids[record.label] = {int(path.stem): path for path in files if path.stem.isdecimal()}
    shared = set.intersection(*(set(found) for found in grids.values())) if grids else set()
    return {label: found[max(shared) if shared else max(found)] for label, found in grids.items() if found}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _speed(metrics: pd.DataFrame, config: Mapping[str, Any], folder: RunFolder) -> Speed | None:
    rate = _median(metrics, "throughput/samples_per_second")
    if not rate:
        return None
    return Speed(
        images_per_second=rate,
        devices=_devices(config, folder),
        peak_memory_gib=_largest(metrics, "throughput/peak_memory_gib"),
        mfu=_median(metrics, "throughput/mfu"),
    )


def _devices(config: Mapping[str, Any], folder: RunFolder) -> int:
    asked, nodes = config.get("trainer.devices", 1), config.get("trainer.num_nodes", 1)
    here = len(asked) if isinstance(asked, list) else asked
    if not isinstance(here, int) or here < 1:  # "auto", or -1 for all
        here = max(1, len(_json(folder.path / "versions.json").get("gpus") or []))
    return here * (nodes if isinstance(nodes, int) else 1)


def _device(folder: RunFolder) -> str:
    versions = _json(folder.path / "versions.json")
    gpus = versions.get("gpus") or []
    return str(gpus[0]) if gpus else f"CPU, {versions.get('cpus', '?')} cores"


def _median(metrics: pd.DataFrame, name: str) -> float | None:
    return float(metrics[name].median()) if name in metrics and metrics[name].notna().any() else None


def _largest(metrics: pd.DataFrame, name: str) -> float | None:
    return float(metrics[name].max()) if name in metrics and metrics[name].notna().any() else None


def _last(metrics: pd.DataFrame, name: str) -> float | None:
    found = metrics[name].dropna() if name in metrics else pd.Series(dtype=float)
    return float(found.iloc[-1]) if len(found) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
