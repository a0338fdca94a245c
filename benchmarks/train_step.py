"""Our networks against diffusers' classes: one training step, side by side.

    python benchmarks/train_step.py                                     every pair, float32 and bfloat16, on the CPU
    python benchmarks/train_step.py --pairs dit unet --precisions float32 --clock process --threads 1
    python benchmarks/train_step.py --device cuda --compile --size published

Both sides have the same configuration, the same weights and the same inputs; that their outputs agree is checked before
anything is timed. A step is forward pass, mean square, backward pass and fused AdamW. Steps of the two sides alternate,
and what counts is the median of the ratios of neighbours, so that a busy machine slows both. On a CPU that others use
too, ``--clock process --threads 1`` counts the time that this process was given, instead of the time that went by.

Shares are of the rate of a large matrix product of the same precision, measured in the same run: products of the linear
layers, convolutions and attention, each counted once. ``limit`` is the ratio that ours would have at a share of 100 %.
A CPU that has no bfloat16 arithmetic multiplies hundreds of times slower than in float32; that precision is left out
then, since nothing but the lack would be measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from pairs import PAIRS, Pair
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldm.interop.weights import to_ours
from ldm.nn.blocks import Execution
from ldm.training.flops import matmul_rate

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}  # autocast to
WARMUP = 2
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
Step = Callable[[], torch.Tensor]


def main() -> None:
    """Measure the pairs asked for, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--size", choices=["small", "published"], default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action="store_true", help="per-block for ours, the whole network for theirs"
    )
    parser.add_argument("--batch", type=int, help="instead of the pair's own")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of steps")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, help="on the CPU; all cores when left out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/train_step.json"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rates = {
        precision: matmul_rate(
            torch.device(options.device),
            dtype or torch.float32,
            size=2048 if options.device == "cpu" else None,
            clock=CLOCKS[options.clock],
        )
        for precision, dtype in PRECISIONS.items()
    }
    precisions = [name for name in options.precisions if rates[name] > 0.5 * rates["float32"]]
    print(
        f"{options.device}, {torch.get_num_threads()} threads, {options.clock} clock, torch {torch.__version__}, ",
        end="",
    )
    print(", ".join(f"{name} {rate / 1e9:,.1f} GFLOP/s" for name, rate in rates.items()))
    for name in set(options.precisions) - set(precisions):
        print(f"{name} is left out: this device has no arithmetic for it")
    print(
        f"{'network':10} {'precision':9} {'batch':>5} {'ours ms':>9} {'theirs ms':>9} {'ratio':>6} {'limit':>6} "
        f"{'shares':>14}"
    )
    rows = []
    for name in options.pairs:
        for precision in precisions:
            row = measure(PAIRS[name], precision, options)
            shares = [row["gflop"] * 1e12 / row[side] / rates[precision] for side in ("ours_ms", "theirs_ms")]
            row |= {"network": name, "share": shares[0], "their_share": shares[1], "limit": 1 / shares[1]}
            rows.append(row)
            print(
                f"{name:10} {precision:9} {row['batch']:5} {row['ours_ms']:9.1f} {row['theirs_ms']:9.1f} "
                f"{row['ratio']:6.2f} {row['limit']:6.2f} {shares[0]:7.0%}{shares[1]:7.0%}",
                flush=True,
            )
            report = {
                "device": device_name(options.device),
                "torch": torch.__version__,
                "clock": options.clock,
                "rates": rates,
                "rows": rows,
            }
            options.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(pair: Pair, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of both sides and the median of their ratios, theirs over ours: above 1 ours is faster."""
    size = getattr(pair, options.size)
    if options.batch:
        size = replace(size, batch=options.batch)
    torch.manual_seed(0)
    theirs = getattr(diffusers, pair.map.class_name)(**size.config).to(options.device).eval()
    for parameter in theirs.parameters():
        if parameter.ndim > 1:  # what starts at zero would hide what does not agree
            nn.init.normal_(parameter, std=0.02)
    pair.tie(theirs)
    ours = pair.map.build(dict(theirs.config)).to(options.device)
    ours.load_state_dict(to_ours(pair.map.rules(ours), theirs.state_dict(), ours))
    x, t, cond = pair.inputs(size, options.device)
    with torch.no_grad():
        answer, expected = ours(x, t, cond), pair.map.call(theirs, x, t, cond)
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-3 * float(expected.std()))
    theirs.train()
    # Written out as matrix products: the counter does not know the fused kernel of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ours(x, t, cond).square().mean().backward()
    call: Callable[[], torch.Tensor] = lambda: pair.map.call(theirs, x, t, cond)  # noqa: E731
    if options.compile:
        Execution(compile=True)(ours)
        theirs.compile()
    steps = (
        training_step(ours, lambda: ours(x, t, cond), precision, options.device),
        training_step(theirs, call, precision, options.device),
    )
    for step in steps * WARMUP:
        step()
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(options.repeats):
        for side in (0, 1) if i % 2 else (1, 0):
            times[side].append(seconds(steps[side], options))
    return {
        "precision": precision,
        "batch": len(x),
        "gflop": counter.get_total_flops() / 1e9,
        "ours_ms": 1e3 * statistics.median(times[0]),
        "theirs_ms": 1e3 * statistics.median(times[1]),
        "ratio": statistics.median(b / a for a, b in zip(*times, strict=True)),
    }


def training_step(network: nn.Module, call: Step, precision: str, device: str) -> Step:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with autocast(precision, device):
            output = call()
        loss = output.float().square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def seconds(step: Step, options: argparse.Namespace) -> float:
    clock = CLOCKS[options.clock]
    synchronize(options.device)
    start = clock()
    step()
    synchronize(options.device)
    return clock() - start


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
