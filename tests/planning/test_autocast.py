"""Precisions on the meta device against torch's own autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.planning.autocast import PRECISIONS, AsOn
from tests.planning.networks import NETWORKS, inputs


def precisions(network: nn.Module, device: str) -> list[tuple[str, torch.dtype]]:
    """What every layer of a network gives."""
    found: list[tuple[str, torch.dtype]] = []

    def note(name: str) -> object:
        def hook(_: nn.Module, __: object, out: object) -> None:
            if isinstance(out, Tensor):
                found.append((name, out.dtype))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in network.named_modules() if name]
    network(*inputs(2, device))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_each_layer_is_in_the_precision_that_autocast_has_on_a_cpu(name: str) -> None:
    network = NETWORKS[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        real = precisions(network, "cpu")
    with AsOn(gpu=False, precision=PRECISIONS["bf16-mixed"]):
        assert precisions(network.to("meta"), "meta") == real


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch was built without CUDA's autocast")
@pytest.mark.parametrize("name", NETWORKS)
def test_each_layer_is_in_the_precision_that_autocast_has_on_a_gpu(name: str) -> None:
    """CUDA's rules act on fake tensors too, without a GPU."""
    with torch.device("meta"):
        ours = NETWORKS[name]()
    with FakeTensorMode(), torch.device("cuda"):
        theirs = NETWORKS[name]()
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            with torch.no_grad():
                real = precisions(theirs, "cuda")
        finally:
            torch.set_autocast_enabled("cuda", False)
    with AsOn(gpu=True, precision=PRECISIONS["bf16-mixed"]), torch.no_grad():
        assert precisions(ours, "meta") == real
