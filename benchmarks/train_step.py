"""Our networks against diffusers' classes: one training step, side by side.

    python benchmarks/train_step.py                                     every pair, float32 and bfloat16, on the CPU
    python benchmarks/train_step.py --pairs dit unet --precisions float32
    python benchmarks/train_step.py --device cuda --compile --size published

Both sides have the same configuration, the same weights and the same inputs; that their outputs agree is checked before
anything is timed. A step is forward pass, mean square, backward pass and fused AdamW. Steps of the two sides alternate,
and what counts is the median of the ratios of neighbours, so that a busy machine slows both. Shares are of the rate of
a large matrix product of the same precision, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
from pairs import PAIRS, Pair
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.interop.weights import to_ours
from ldm.nn.blocks import Execution

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}  # autocast to
WARMUP = 2
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
    parser.add_argument("--repeats", type=int, default=9, help="pairs of steps")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/train_step.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    rates = {precision: matmul_rate(precision, options.device) for precision in options.precisions}
    print(f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items()))
    print(
        f"{'network':10} {'precision':9} {'batch':>5} {'ours ms':>9} {'theirs ms':>9} {'ratio':>6} {'share':>14}"
    )
    rows = []
    for name in options.pairs:
        for precision in options.precisions:
            row = measure(PAIRS[name], precision, options)
            shares = [row["gflop"] * 1e12 / row[side] / rates[precision] for side in ("ours_ms", "theirs_ms")]
            row |= {"network": name, "share": shares[0], "their_share": shares[1]}
            rows.append(row)
            print(
                f"{name:10} {precision:9} {row['batch']:5} {row['ours_ms']:9.1f} {row['theirs_ms']:9.1f} "
                f"{row['ratio']:6.2f} {shares[0]:6.0%} {shares[1]:6.0%}"
            )
            report = {
                "device": device_name(options.device),
                "torch": torch.__version__,
                "rates": rates,
                "rows": rows,
            }
            options.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(pair: Pair, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of both sides and the median of their ratios, theirs over ours: above 1 ours is faster."""
    size = getattr(pair, options.size)
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
    with FlopCounterMode(display=False) as counter:
        ours(x, t, cond).square().mean().backward()
    call: Callable[[], torch.Tensor] = lambda: pair.map.call(theirs, x, t, cond)  # noqa: E731
    if options.compile:
        Execution(compile=True)(ours)
        theirs.compile()
    steps = (
        training_step(ours, lambda: ours(x, t, cond), precision, options.device),
        training_step(theirs, call, precision, options.device),
    )
    for step in steps:
        for _ in range(WARMUP):
            step()
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(options.repeats):
        for side in (0, 1) if i % 2 else (1, 0):
            times[side].append(seconds(steps[side], options.device))
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


def seconds(step: Step, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def matmul_rate(precision: str, device: str) -> float:
    """FLOP/s of a large square matrix product, the best of five."""
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=PRECISIONS[precision]) for _ in range(2))

    def product() -> torch.Tensor:
        return a @ b

    product()
    return 2 * n**3 / min(seconds(product, device) for _ in range(5))


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
