"""A run whose weights are always the same, for the tests of sample.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ldm.commands import again as again_command
from ldm.commands import guide as guide_command
from ldm.commands import sample as sample_command
from ldm.commands.load import LoadedRun
from ldm.sampling.from_run import FromRun, GuidanceFromRun
from ldm.sampling.generate import Generation
from ldm.sampling.modes import Text
from ldm.training.checkpoint import file_hash
from ldm.training.run import RunFolder
from tests.sampling.tiny import generation


class Module(nn.Module):
    """What a diffusion run's module offers to sampling."""

    latent_size = (4, 6)
    caption_dropout = 0.1

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.own = generation(seed=seed)
        self.network, self.codec = self.own.network, self.own.codec

    def generation(self) -> Generation:
        return self.own


def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose loading is cut short; a checkpoint called "weak.ckpt" has other weights."""
    folder = tmp_path / "runs" / "tiny" / "one"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    (folder / "checkpoints" / "weak.ckpt").write_bytes(b"weaker weights")

    def load_run(run: str | Path, *, weights: str = "ema", runs: str | Path = "runs") -> LoadedRun:
        checkpoint = Path(run) if Path(run).suffix == ".ckpt" else folder / "checkpoints" / "last.ckpt"
        return LoadedRun(
            folder=RunFolder(folder),
            config={},  # type: ignore[arg-type]
            module=Module(seed=int(checkpoint.read_bytes() == b"weaker weights")),
            checkpoint_path=checkpoint,
            checkpoint_hash=file_hash(checkpoint),
            weights=weights,
            images_seen=64,
        )

    for command in (sample_command, again_command, guide_command):
        monkeypatch.setattr(command, "load_run", load_run)
    return folder


def sample(run: Path | str | None, **given: Any) -> None:
    """The command with the defaults of its config."""
    defaults: dict[str, Any] = {
        "mode": Text(),
        "prompts": None,
        "prompts_file": None,
        "negative": None,
        "seeds": None,
        "num_images": None,
        "num_steps": None,
        "image_size": None,
        "original_size": None,
        "crop": [0, 0],
        "batch_size": 4,
        "sampler": FromRun(),
        "grid": FromRun(),
        "guidance": GuidanceFromRun(),
        "weights": "ema",
        "device": "cpu",
        "out": None,
        "trace": False,
        "from_image": None,
    }
    sample_command.sample(run=None if run is None else str(run), **{**defaults, **given})


def pictures(folder: Path) -> list[Path]:
    """Without sheets and films."""
    files = sorted(folder.glob("*.png"))
    return [file for file in files if not file.name.startswith("grid-") and "-film" not in file.name]


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no network may run."""

    def ran(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a network ran")

    for kind in ("pictures", "_batch"):
        monkeypatch.setattr(Generation, kind, ran)
    for name in ("Network", "Codec", "TextEncoder"):
        monkeypatch.setattr(f"tests.sampling.tiny.{name}.forward", ran)
    monkeypatch.setattr("tests.sampling.tiny.Codec.moments", ran)


Sample = Callable[..., None]
