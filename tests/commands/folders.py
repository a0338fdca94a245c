"""Run folders with scores, written by hand: what ``ldm compare`` reads, without a training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ldm.evaluation.bootstrap import mean_interval
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.scores import PerSample, Score, write_score

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "seed": 0,
    "run_id": "a",
    "num_images": 1000,
    "paths": {"runs": "runs", "data": "data"},
    "network": {"_target_": "ldm.nn.dit.DiT", "depth": 2, "qk_norm": True},
    "task": {"network": "${network}", "seed": "${seed}"},
    "trainer": {"devices": 2, "num_nodes": 1},
    "callbacks": {"samples": {"prompts": ["a red circle", "two blue squares"], "seed": 0}},
}
PROTOCOL = Protocol(
    metric="pinned_loss",
    reference_hash="ab" * 32,
    num_images=40,
    weights="ema",
    precision="bf16",
    seeds=(0,),
    details={"levels": [-1, 1], "reached": [-1, 1]},
)
KEYS = tuple(f"00000/{i:09d}" for i in range(40))
PICTURES = np.random.default_rng(0).uniform(
    0.2, 1.0, size=(40, 2)
)  # what is hard about each, for every model


def write_run(
    runs: Path,
    run_id: str,
    *,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    effect: float | Sequence[float] = 0.0,
    noise: float = 0.005,
    protocol: Protocol = PROTOCOL,
    finished: bool = True,
) -> Path:
    """A finished run of recipe ``config`` whose pinned losses lie ``effect`` above those of others."""
    folder = runs / "tiny" / run_id
    (folder / "samples").mkdir(parents=True)
    values = {**CONFIG, "seed": seed, "run_id": run_id, **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "git.json").write_text(json.dumps({"commit": "0123456789abcdef"}))
    (folder / "versions.json").write_text(json.dumps({"gpus": [], "cpus": 2}))
    (folder / "metrics.csv").write_text(
        "step,train/images_seen,throughput/samples_per_second,throughput/peak_memory_gib,throughput/mfu\n"
        "10,500,90,1.5,0.2\n20,1000,100,2.5,0.3\n30,1000,110,2,0.4\n"
    )
    if finished:
        (folder / "finished.json").write_text(json.dumps({"images_seen": 1000}))
    Image.new("RGB", (32, 16), (200, 30 + 5 * seed, 30)).save(folder / "samples" / "000001000.png")
    generator = np.random.default_rng([seed, len(run_id), *run_id.encode()])
    losses = PICTURES + np.asarray(effect) + noise * generator.standard_normal(PICTURES.shape)
    add_score(folder, protocol, losses)
    return folder


def add_score(
    folder: Path,
    protocol: Protocol,
    losses: np.ndarray,
    *,
    images_seen: int = 1000,
    lower_is_better: bool = True,
) -> Score:
    """losses (N, K), K the levels of the protocol, or the two of the usual one, or 1."""
    levels = protocol.details.get("reached", [-1, 1])
    columns = tuple(f"{level:+d}" for level in levels) if losses.shape[1] == len(levels) else ("value",)
    one = mean_interval(losses.mean(axis=1), num_resamples=500)
    score = Score(
        protocol=protocol,
        value=one.value,
        low=one.low,
        high=one.high,
        interval="BCa",
        num=len(losses),
        lower_is_better=lower_is_better,
        run=f"tiny/{folder.name}",
        checkpoint=f"images_{images_seen:09d}",
        checkpoint_hash="00" * 32,
        images_seen=images_seen,
    )
    write_score(folder, score, per_sample=PerSample(KEYS[: len(losses)], losses, columns))
    return score
