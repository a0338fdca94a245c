import copy

import pytest
import torch
from torch import nn

from ldm.training import muon
from ldm.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 12, 20), (3, 20, 12), (2, 16, 16)])
@pytest.mark.parametrize("units", [False, True])
def test_orthogonalise_keeps_singular_vectors_and_levels_singular_values(monkeypatch, shape, units):
    monkeypatch.setattr(muon, "has_bfloat16_units", lambda device: units)
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalise(matrices, 8).float()
    assert torch.linalg.svdvals(result).min() > 0.5 and torch.linalg.svdvals(result).max() < 1.4
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    overlap = (result * (u @ vt)).sum((1, 2)) / min(shape[1:])
    assert overlap.min() > 0.8


def test_equals_torch_muon(monkeypatch):
    monkeypatch.setattr(muon, "has_bfloat16_units", lambda device: True)  # torch's is in bfloat16 everywhere
    torch.manual_seed(0)
    ours = nn.ModuleList(
        [nn.Linear(24, 16, bias=False), nn.Linear(24, 16, bias=False), nn.Linear(16, 40, bias=False)]
    )
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    a = Muon(ours.parameters(), **options)
    b = torch.optim.Muon(theirs.parameters(), adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(4):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-4)  # both orthogonalise in bfloat16


def test_only_matrices():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
