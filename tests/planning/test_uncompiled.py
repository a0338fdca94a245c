"""Planning imports neither torch's compiler nor any other package that it does not need: that is most of its time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.commands.compose import CONFIGS

# Each takes from half a second to several.
HEAVY = (
    "diffusers",
    "lightning",
    "matplotlib",
    "open_clip",
    "pandas",
    "pyarrow",
    "scipy",
    "skimage",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torchvision",
    "transformers",
    "wandb",
)
PROBE = """
import contextlib, io, sys
from ldm.commands.main import main

verb, heavy, *names = sys.argv[1:]
for name in names:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):  # the weights are not here, or it does not fit
            main([verb, f"experiment={name}"])
    print(name, *[module for module in heavy.split(",") if module in sys.modules])
"""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["plan", "doctor"])
def test_nothing_heavy_is_imported_for_any_experiment(verb: str, tmp_path: Path) -> None:
    names = [path.stem for path in sorted((CONFIGS / "experiment").glob("*.yaml"))]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, verb, ",".join(HEAVY), *names],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent), "HF_HOME": str(tmp_path)},
    )
    assert done.stdout.splitlines() == names, done.stdout + done.stderr


def test_functions_are_as_before_afterwards() -> None:
    paths = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    done = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stderr


AFTERWARDS = """
import sys, torch
from torch import nn
from ldm.planning.uncompiled import COMPILER, MARK, without_compiler

layer = nn.Linear(2, 2)
with without_compiler():
    inside = torch.optim.AdamW(layer.parameters())
    layer.weight.grad = torch.ones_like(layer.weight)
    inside.step()
    assert torch._dynamo.__spec__ is None  # the stand-in
assert COMPILER not in sys.modules
assert not hasattr(torch.optim.Optimizer.add_param_group.__wrapped__, MARK)
with without_compiler():
    from torch._dynamo import config  # what a stand-in has not: the real one comes
    assert config.recompile_limit
    assert sys.modules[COMPILER].__spec__ is not None
assert COMPILER in sys.modules
torch.optim.AdamW(layer.parameters())
"""
