"""The denoising of one picture, to look at: a film strip and an animated picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.interfaces import LatentCodec, NoiseSchedule, Prediction
from ldm.sampling.generate import to_uint8
from ldm.training.grids import labelled_grid

MAX_COLUMNS = 10  # of a film strip
FRAME_MS, LAST_FRAME_MS = 160, 1600
GAP = 2  # white pixels between the two pictures of a frame, before they are enlarged


@dataclass
class Film:
    """A ``StepCallback`` that keeps what a sampler sees of the first picture of a batch."""

    steps: list[int] = field(default_factory=list)
    noisy: list[Tensor] = field(default_factory=list)  # x_t, (C, H, W) each
    guesses: list[Tensor] = field(default_factory=list)  # x0, (C, H, W) each

    def __call__(self, step: int, x_t: Tensor, prediction: Prediction) -> None:
        self.steps.append(step)
        self.noisy.append(x_t[0].clone())
        self.guesses.append(prediction.x0[0].clone())


def write_film(
    film: Film,
    picture: Tensor,
    *,
    codec: LatentCodec,
    schedule: NoiseSchedule,
    times: Tensor,
    title: str,
    stem: Path,
) -> tuple[Path, Path]:
    """Write <stem>-film.png, steps side by side, and <stem>-film-animated.png, an animated PNG.

    Both show the network's guess of the picture (x0) beside what it was made from (x_t). x_t is scaled to the spread of
    a picture, or a schedule whose noise grows without bound would show nothing but black and white.

    Args:
        film: Of the picture's denoising, at least one step.
        picture: The result, (3, fH, fW) uint8.
        codec: Latents -> pictures.
        schedule: The schedule that was walked along.
        times: Of the whole grid, (num_steps + 1,).
        title: Above the strip.
        stem: The files' common beginning.
    """
    t = times.double()[film.steps]  # (N,)
    spread = torch.hypot(schedule.alpha(t), schedule.sigma(t)).float()
    noisy = torch.stack(film.noisy)
    noisy = noisy / spread.to(noisy.device)[:, None, None, None]
    guesses, noisy = (_decoded(codec, latents) for latents in (torch.stack(film.guesses), noisy))
    labels = [f"t = {time:.2f}" for time in t.tolist()] + ["t = 0"]
    guesses, noisy = (torch.cat([x, picture[None]]) for x in (guesses, noisy))  # (N + 1, 3, fH, fW)

    num = len(labels)
    shown = sorted({round(i) for i in torch.linspace(0, num - 1, min(num, MAX_COLUMNS)).tolist()})
    strip = labelled_grid(
        _joined(guesses, noisy, dim=2)[shown],
        [labels[i] for i in shown],
        columns=len(shown),
        title=f"{title}: the guess of the picture above, what it was made from below",
    )
    strip_file, animated_file = (
        stem.with_name(f"{stem.name}-{end}.png") for end in ("film", "film-animated")
    )
    strip.save(strip_file)
    width = noisy.shape[3]
    pairs = _joined(guesses, noisy, dim=3)
    enlarged = math.ceil(192 / width) * pairs.shape[3]
    frames = [
        labelled_grid(
            pair[None], [f"guess of the picture | what it was made from, {label}"], columns=1, cell=enlarged
        )
        for pair, label in zip(pairs, labels, strict=True)
    ]
    write_animation(frames, animated_file)
    return strip_file, animated_file


def write_animation(frames: list[Image.Image], path: Path) -> None:
    """Frames of one size -> an animated PNG that begins anew for ever and rests on its last frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _decoded(codec: LatentCodec, latents: Tensor, batch_size: int = 16) -> Tensor:
    """(N, C, H, W) -> (N, 3, fH, fW) uint8."""
    with torch.no_grad():
        return torch.cat([to_uint8(codec.decode(part)) for part in latents.split(batch_size)])


def _joined(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    """Pictures (N, 3, H, W) uint8 one after the other along ``dim``, with a white line between."""
    shape = list(a.shape)
    shape[dim] = GAP
    return torch.cat([a, torch.full(shape, 255, dtype=torch.uint8), b], dim=dim)
