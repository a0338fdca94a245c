"""Counted operations against the arithmetic of known layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.interfaces import Conditioning
from ldm.nn.blocks import Execution
from ldm.nn.dit import DiT
from ldm.training.callbacks import StopAtImages, Throughput
from ldm.training.flops import StepCounter, matmul_rate, peak_memory, peak_rate
from ldm.training.logging import CSVLogger
from ldm.training.plots import read_curves
from tests.training.tiny import BATCH, SIDE, fit

CPU = torch.device("cpu")


def counted(model: nn.Module, inputs: tuple, *, checkpointed: bool = False) -> float:
    counter = StepCounter()
    counter.begin()
    loss = model(*inputs).square().mean()
    counter.forward_is_done({"network": model}, checkpointed=checkpointed)
    loss.backward()
    return counter.end()


def test_a_linear_layer_costs_two_products_more_backward_than_forward() -> None:
    layers = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    products = [2 * 5 * 8 * 16, 2 * 5 * 16 * 4]
    # Forward, gradient of the weight, gradient of the input; the first layer's input needs none.
    assert counted(layers, (torch.randn(5, 8),)) == 2 * products[0] + 3 * products[1]


def test_what_checkpointing_computes_again_and_compiling_hides_is_the_same_work() -> None:
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([0.2, 0.7])
    cond = Conditioning(
        tokens=torch.zeros(2, 1, 1), mask=torch.ones(2, 1, dtype=torch.bool), pooled=torch.zeros(2, 1)
    )
    counts = []
    for execution in (Execution(), Execution(checkpoint_blocks=True), Execution(compile=True)):
        torch.manual_seed(0)
        network = DiT(in_channels=3, patch_size=2, width=16, depth=2, num_heads=2)
        execution(network)
        counts.append(counted(network, (x, t, cond), checkpointed=execution.checkpoint_blocks))
    assert counts[0] == counts[1] == counts[2] > 0


def test_mfu_and_memory_are_logged(tmp_path: Path) -> None:
    throughput = Throughput(window=5)
    fit(tmp_path, [throughput, StopAtImages(num_images=60)], loggers=CSVLogger(folder=str(tmp_path)))
    # A 1x1 convolution of 3 channels to 3: forward and the weight's gradient.
    assert throughput.flops == 2 * 2 * BATCH * SIDE**2 * 3 * 3
    curves = {curve.name: curve.y for curve in read_curves(tmp_path / "metrics.csv")[0]}
    assert all(0 < share < 1 for share in curves["throughput/mfu"])
    assert curves["throughput/peak_memory_gib"][-1] == pytest.approx(peak_memory(CPU), rel=0.2)


def test_the_peak_is_the_makers_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, peak in {
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA L40": 181e12,
        "NVIDIA L4": 121e12,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_rate(torch.device("cuda"), "bf16-mixed") == peak
    assert peak_rate(CPU, "32-true") == pytest.approx(matmul_rate(CPU, torch.float32), rel=0.9)


def test_a_step_that_is_counted_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 8), nn.GELU(), nn.LayerNorm(8))
    x = torch.randn(32, 8)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x).square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, counter = gradients(), StepCounter()
    counter.begin()
    counted = gradients()
    assert counter.end() > 0
    torch.testing.assert_close(counted, plain, rtol=0, atol=0)
