"""Draws how a sampler's error falls with the number of network calls: docs/pictures/samplers.png.

    python benchmarks/convergence.py --out docs/pictures/samplers.png

The denoiser is exact, of a mixture of two normal distributions, and so is the path it is compared with, so all that is
seen is the sampler's own error. It says nothing of a network's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.tabulated import ScaledLinear
from ldm.interfaces import NoiseSchedule, Sampler
from ldm.sampling.dpm_solver import DPMpp2M, DPMpp2S, DPMpp3M
from ldm.sampling.grids import Beta, Grid, LogSNR, Quadratic, Uniform
from ldm.sampling.noise_grids import Karras
from ldm.sampling.samplers import Euler, Heun
from ldm.sampling.unipc import UniPC
from tests.sampling.oracles import Mixture, no_noise

IN_TABLE = (0.001, 1.0)  # where a network of 1000 steps was trained
CALLS = [4, 6, 8, 10, 14, 20, 28, 40, 56, 80, 112, 160]
SAMPLERS: dict[str, tuple[Sampler, int]] = {
    "euler": (Euler(), 1),
    "heun": (Heun(), 2),
    "dpmpp_2s": (DPMpp2S(), 2),
    "dpmpp_2m": (DPMpp2M(), 1),
    "dpmpp_3m": (DPMpp3M(), 1),
    "unipc": (UniPC(), 1),
    "unipc_3": (UniPC(order=3), 1),
}
GRIDS: dict[str, Grid] = {
    "uniform": Uniform(),
    "quadratic": Quadratic(),
    "beta": Beta(),
    "karras": Karras(),
    "log_snr": LogSNR(),
}


def error(sampler: Sampler, grid: Grid, schedule: NoiseSchedule, num_steps: int) -> float:
    """The mean distance to the exact end of the path, over starts drawn evenly from the noise."""
    denoise = Mixture(schedule)
    quantiles = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    sigma = float(schedule.sigma(torch.tensor(1.0)))
    x = sigma * torch.special.ndtri(quantiles).reshape(-1, 1, 1, 1)
    times = grid(schedule, num_steps, t_range=IN_TABLE if isinstance(schedule, ScaledLinear) else (0.0, 1.0))
    end = sampler(denoise, schedule, x, times, noise=no_noise)
    return float((end - denoise.path(x, 1.0, 0.0)).abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/samplers.png"))
    out = parser.parse_args().out
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.6), sharex=True, sharey=True)
    for color, (name, (sampler, calls)) in enumerate(SAMPLERS.items()):
        numbers = [number for number in CALLS if number % calls == 0]
        errors = [error(sampler, Uniform(), RectifiedFlow(), number // calls) for number in numbers]
        left.plot(numbers, errors, "o-", ms=3.5, lw=1.4, color=f"C{color}", label=name)
    left.set_title("samplers, rectified_flow, grid=uniform")
    left.set_ylabel("mean error of x at t = 0")
    for axis, schedule, title in (
        (middle, RectifiedFlow(), "grids, rectified_flow, sampler=dpmpp_2m"),
        (right, ScaledLinear(), "grids, scaled_linear, sampler=dpmpp_2m"),
    ):
        for color, (name, grid) in enumerate(GRIDS.items()):
            errors = [error(DPMpp2M(), grid, schedule, number) for number in CALLS]
            axis.plot(CALLS, errors, "o-", ms=3.5, lw=1.4, color=f"C{color}", label=name)
        axis.set_title(title)
    for axis in (left, middle, right):
        axis.set(xscale="log", yscale="log", xlabel="network calls")
        axis.set_xticks([5, 10, 20, 50, 100], labels=["5", "10", "20", "50", "100"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
        axis.title.set_fontsize(10)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main()
