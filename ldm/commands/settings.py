"""The top level of a training's config: what ``configs/train.yaml`` holds, with its types.

Like every constructor this is read as a schema, so an experiment file cannot add a key here that nothing would read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Part(Protocol):
    """Anything built from a mapping with ``_target_``."""


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """An empty group: the choice ``none`` of a part that a task does without."""


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where things stand, relative to the working directory."""

    data: str
    runs: str


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What ``python train.py`` can be given.

    Args:
        name: Name of the run; its folder is ``<paths.runs>/<name>/<run_id>``.
        seed: What all randomness is derived from.
        num_images: Images to train on, over all processes; drives everything.
        run_id: Name of the run's folder; made once when null.
        resume: A run to go on with: its folder, ``<name>/<run_id>``, or one of its checkpoints.
        init_from: Weights to begin with: a run, one of its checkpoints, or what ``ldm import`` wrote.
        init_other_text: They may have been trained with another text encoder.
        allow_download: Pretrained weights that are not on this machine may be downloaded.
        tags, notes, group, job_type: For finding the run again.
    """

    name: str
    seed: int
    num_images: int
    run_id: str | None = None
    resume: str | None = None
    init_from: str | None = None
    init_other_text: bool = False
    allow_download: bool = False
    tags: list[str]
    notes: str | None = None
    group: str | None = None
    job_type: str | None = None

    paths: Paths
    task: Part
    diffusion: Part | Nothing
    network: Part
    bottleneck: Part | None = None  # of an autoencoder; null for its network's own
    codec: Part | Nothing
    text_encoder: Part | Nothing
    data: Part
    buckets: Part | None = None  # for data; runs of older versions have none
    caption_recipe: Part | None = None
    sampler: Part | Nothing
    grid: Part | Nothing
    guidance: Part | Nothing
    optimizer: Part
    lr_schedule: Part
    trainer: Part
    callbacks: dict[str, Part | None]
    logger: dict[str, Part | None]
