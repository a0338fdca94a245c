"""Our samplers beside the schedulers of diffusers, in one run: the time of a step that is not the network.

    python benchmarks/sampling.py                              a table
    python benchmarks/sampling.py --out times.json --check     and a file of the numbers; fails where ours is slower
    python benchmarks/sampling.py --device cuda --graph        ours as one CUDA graph, too

Both walk with the same network, once with one that does nothing, which leaves the time in question, and once with a
tiny one. What is timed is what one batch of pictures costs, over the number of network calls. Ours: the grid, the
walk's coefficients, the network's answer turned into x0 and eps by ``Diffusion``, the sampler's own kernels, and noise
drawn in each step. Theirs, as in their pipelines: ``set_timesteps``, ``scale_model_input``, the time repeated for the
batch, and ``step``, which draws its noise. Their time without ``set_timesteps`` is in the file, too.

A graph (``--graph``) takes what Python costs out of a walk. It is captured with the noise drawn beforehand.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import Epsilon, Flow
from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.tabulated import ScaledLinear
from ldm.diffusion.time_samplers import Uniform as UniformTimes
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Conditioning, Denoiser, Sampler
from ldm.sampling.ancestral import EulerAncestral
from ldm.sampling.consistency import LCM
from ldm.sampling.dpm_solver import DPMpp2M, DPMpp2MSDE, DPMpp2S, DPMpp3M
from ldm.sampling.grids import Uniform
from ldm.sampling.samplers import DDIM, DDPM, Euler, Heun
from ldm.sampling.unipc import UniPC

Walk = Callable[[], Tensor]
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TRAILING = TABLE | {"timestep_spacing": "trailing"}
UNCLIPPED = TRAILING | {"clip_sample": False}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@dataclass(frozen=True)
class Pair:
    """A sampler of ours and the scheduler of diffusers that does the same."""

    name: str
    ours: Sampler
    theirs: str
    settings: dict[str, Any]
    flow: bool = False  # along the rectified flow; otherwise Stable Diffusion's table and noise prediction
    calls: int = 1  # network calls of one of our steps
    arguments: dict[str, Any] = field(default_factory=dict)  # for each of their steps
    draws: bool = False  # their ``step`` takes a generator


PAIRS = [
    Pair("ddpm", DDPM(), "DDPMScheduler", UNCLIPPED, draws=True),
    Pair("ddim", DDIM(), "DDIMScheduler", UNCLIPPED),
    Pair("ddim, eta 1", DDIM(eta=1.0), "DDIMScheduler", UNCLIPPED, arguments={"eta": 1.0}, draws=True),
    Pair("euler", Euler(), "EulerDiscreteScheduler", TRAILING),
    Pair("euler, flow", Euler(), "FlowMatchEulerDiscreteScheduler", {}, flow=True),
    Pair("euler_ancestral", EulerAncestral(), "EulerAncestralDiscreteScheduler", TRAILING, draws=True),
    Pair("heun", Heun(), "HeunDiscreteScheduler", TRAILING, calls=2),
    Pair("dpmpp_2s", DPMpp2S(), "DPMSolverSinglestepScheduler", TABLE, calls=2),
    Pair("dpmpp_2m", DPMpp2M(), "DPMSolverMultistepScheduler", TRAILING),
    Pair("dpmpp_2m, flow", DPMpp2M(), "DPMSolverMultistepScheduler", FLOW, flow=True),
    Pair(
        "dpmpp_2m_sde",
        DPMpp2MSDE(),
        "DPMSolverMultistepScheduler",
        TRAILING | {"algorithm_type": "sde-dpmsolver++"},
        draws=True,
    ),
    Pair("dpmpp_3m", DPMpp3M(), "DPMSolverMultistepScheduler", TRAILING | {"solver_order": 3}),
    Pair("unipc", UniPC(), "UniPCMultistepScheduler", TRAILING),
    Pair("unipc, flow", UniPC(), "UniPCMultistepScheduler", FLOW, flow=True),
    Pair("unipc_3", UniPC(order=3), "UniPCMultistepScheduler", TRAILING | {"solver_order": 3}),
    Pair("lcm", LCM(), "LCMScheduler", TABLE, draws=True),
]


class Nothing(nn.Module):
    """Answers with the same tensor at once."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("answer", torch.randn(shape))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.answer


class Tiny(nn.Module):
    """Two convolutions, and the time added between them."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.into = nn.Conv2d(channels, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.out(torch.nn.functional.silu(self.into(x) + t.float()[:, None, None, None]))


def our_walk(pair: Pair, network: nn.Module, start: Tensor, num_calls: int, predrawn: bool = False) -> Walk:
    """As ``sample.py`` does it, once the grid is laid."""
    diffusion = Diffusion(
        schedule=RectifiedFlow() if pair.flow else ScaledLinear(),
        parameterization=Flow() if pair.flow else Epsilon(),
        time_sampler=UniformTimes(),
        weighting=Unweighted(),
        t_range=(0.0, 1.0) if pair.flow else (0.001, 1.0),
    )
    batch = len(start)
    cond = Conditioning(
        tokens=start.new_zeros(batch, 1, 1),
        mask=torch.ones(batch, 1, dtype=torch.bool, device=start.device),
        pooled=start.new_zeros(batch, 1),
    )
    num_steps, schedule, t_range = num_calls // pair.calls, diffusion.schedule, diffusion.t_range
    if predrawn:
        noise: Callable[[int], Tensor] = torch.randn(num_steps, *start.shape, device=start.device).__getitem__
    else:
        generator = torch.Generator(start.device).manual_seed(0)

        def noise(step: int) -> Tensor:
            return torch.randn(start.shape, generator=generator, device=start.device)

    def walk() -> Tensor:
        denoise: Denoiser = diffusion.denoiser(network, cond)
        times = Uniform()(schedule, num_steps, t_range=t_range)
        return pair.ours(denoise, schedule, start, times, noise=noise)

    return walk


def their_walk(pair: Pair, network: nn.Module, start: Tensor, num_calls: int) -> tuple[Walk, Walk]:
    """(what sets the scheduler up for a walk, the loop of a pipeline)."""
    scheduler = getattr(diffusers, pair.theirs)(**pair.settings)
    num_steps = num_calls // 2 if pair.theirs.startswith("Heun") else num_calls
    generator = torch.Generator(start.device).manual_seed(0)
    arguments = pair.arguments | ({"generator": generator} if pair.draws else {})

    def set_up() -> Tensor:
        scheduler.set_timesteps(num_steps, device=start.device)
        return scheduler.timesteps

    def walk() -> Tensor:
        x = start
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        for t in scheduler.timesteps:
            answer = network(scale(x, t), t.expand(len(x)))
            x = scheduler.step(answer, t, x, return_dict=False, **arguments)[0]
        return x

    return set_up, walk


def seconds(walk: Walk, device: torch.device) -> float:
    """What a walk takes; on the CPU as the time of one core, which other processes disturb the least."""
    if device.type != "cuda":
        begin = time.process_time()
        walk()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    walk()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def captured(walk: Walk) -> Walk:
    """The walk as one CUDA graph; each replay overwrites what the last one returned."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        walk()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        end = walk()

    def replay() -> Tensor:
        graph.replay()
        return end

    return replay


def measure(pair: Pair, network: nn.Module, start: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the repeats, in which the two take turns; microseconds per network call."""
    ours = our_walk(pair, network, start, options.calls)
    set_up, loop = their_walk(pair, network, start, options.calls)
    num_ours, num_theirs = options.calls // pair.calls * pair.calls, len(set_up())
    found: list[tuple[float, float, float]] = []  # ours, theirs, theirs without their set-up
    for repeat in range(-options.warm_up, options.repeats):
        first = seconds(ours, start.device) if repeat % 2 else 0.0
        setting_up, looping = seconds(set_up, start.device), seconds(loop, start.device)
        mine = (first or seconds(ours, start.device)) / num_ours
        if repeat >= 0:
            found.append((mine * 1e6, (setting_up + looping) / num_theirs * 1e6, looping / num_theirs * 1e6))
    ratios = sorted(mine / theirs for mine, theirs, _ in found)
    row: dict[str, Any] = {
        "sampler": pair.name,
        "diffusers": pair.theirs,
        "ours_us": statistics.median(mine for mine, _, _ in found),
        "theirs_us": statistics.median(theirs for _, theirs, _ in found),
        "theirs_without_set_up_us": statistics.median(looping for _, _, looping in found),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
    }
    if options.graph:
        graph = captured(our_walk(pair, network, start, options.calls, predrawn=True))
        took_graph = [seconds(graph, start.device) for _ in range(options.repeats)]
        row["graph_us"] = statistics.median(took_graph) / num_ours * 1e6
    return row


def show(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("sampler", "scheduler of diffusers"):
        table.add_column(column)
    for column in ("ours, µs", "theirs, µs", "ratio", "quartiles"):
        table.add_column(column, justify="right")
    has_graph = any("graph_us" in row for row in rows)
    if has_graph:
        table.add_column("graph, µs", justify="right")
    for row in rows:
        low, high = row["ratio_quartiles"]
        cells = [row["sampler"], row["diffusers"], f"{row['ours_us']:.1f}", f"{row['theirs_us']:.1f}"]
        cells += [f"{row['ratio']:.2f}", f"{low:.2f} {high:.2f}"]
        table.add_row(*cells, *([f"{row['graph_us']:.1f}"] if has_graph else []))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", type=int, nargs=4, default=[1, 4, 16, 16], metavar=("B", "C", "H", "W"))
    parser.add_argument("--calls", type=int, default=20, help="network calls of a walk")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--warm-up", type=int, default=3, help="walks before the first that counts")
    parser.add_argument("--only", nargs="*", help="names of samplers")
    parser.add_argument("--graph", action="store_true", help="also as a CUDA graph")
    parser.add_argument("--check", action="store_true", help="fail where ours is not faster")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    if options.graph and torch.device(options.device).type != "cuda":
        parser.error("--graph needs --device cuda")
    torch.manual_seed(0)
    torch.set_num_threads(
        1
    )  # kernels this small are not worth a second one, and a core's time is what is measured
    start = torch.randn(options.shape, device=options.device)
    networks = {"nothing": Nothing(tuple(options.shape)), "tiny": Tiny(options.shape[1])}
    chosen = [pair for pair in PAIRS if not options.only or pair.name in options.only]
    console, results = Console(), {}
    with torch.inference_mode():
        for name, network in networks.items():
            network = network.to(options.device).eval()
            results[name] = [measure(pair, network, start, options) for pair in chosen]
            show(f"network: {name}; microseconds per network call", results[name], console)
    report = {
        "device": torch.cuda.get_device_name()
        if start.is_cuda
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "shape": options.shape,
        "calls": options.calls,
        "repeats": options.repeats,
        "networks": results,
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    slower = [row["sampler"] for row in results["nothing"] if row["ratio"] >= 1]
    if options.check and slower:
        sys.exit(f"slower than diffusers: {', '.join(slower)}")


if __name__ == "__main__":
    main()
