import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn

from ldm.nn.dit import DiT
from ldm.training.optim import (
    AdamW,
    ConstantRate,
    CosineRate,
    InverseSquareRootRate,
    MuonAdamW,
    WarmupStableDecay,
    has_fused,
    set_learning_rate,
    split_parameters,
)
from ldm.training.packaged import Packaged


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 8), nn.Conv2d(3, 4, 3)
        self.norm, self.table = nn.LayerNorm(8), nn.Embedding(5, 4)


def decayed_by(optimizer):
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("recipe", [AdamW(lr=1e-3, weight_decay=0.1), MuonAdamW(lr=1e-3, weight_decay=0.1)])
def test_only_matrices_and_kernels_decay_and_nothing_is_left_out(recipe):
    parts = Parts()
    decay = decayed_by(recipe({"parts": parts}))
    assert set(decay) == {id(p) for p in parts.parameters()}
    kept = {id(parts.linear.weight), id(parts.conv.weight)}
    assert {key for key, value in decay.items() if value > 0} == kept


def test_frozen_and_shared_parameters():
    parts = Parts()
    parts.norm.requires_grad_(False)
    matrices, others = split_parameters({"a": parts, "again": parts})
    assert [p is parts.linear.weight for p in matrices] == [True]
    assert len(others) == len(list(parts.parameters())) - 1 - 2


def test_muon_moves_a_matrix_along_its_orthogonal_factor():
    """The first step of Muon goes along -U V^T of the gradient, up to Newton-Schulz's tolerance on the spectrum."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 8, bias=False)
    before, gradient = layer.weight.detach().clone(), torch.randn(8, 16)
    layer.weight.grad = gradient.clone()
    MuonAdamW(lr=1.0, weight_decay=0.0)({"layer": layer}).step()
    update = before - layer.weight.detach()
    left, singular, right = torch.linalg.svd(update / (0.2 * 16**0.5), full_matrices=False)
    assert singular.min() > 0.5 and singular.max() < 1.5
    u, _, vt = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.trace((left @ right).T @ (u @ vt)) / 8 > 0.98


@pytest.mark.parametrize("recipe", [AdamW(lr=0.05), MuonAdamW(lr=0.05)])
def test_state_round_trip_continues_identically(recipe):
    def train(parts, optimizer, steps):
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            parts.linear(torch.randn(6, 4, generator=generator)).square().sum().backward()
            set_learning_rate([optimizer], 1.0 / (step + 1))
            optimizer.step()

    torch.manual_seed(0)
    parts = Parts()
    optimizer = recipe({"parts": parts})
    train(parts, optimizer, 3)
    twin = Parts()
    twin.load_state_dict(parts.state_dict())
    twin_optimizer = recipe({"parts": twin})
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the tensors
    train(parts, optimizer, 3)
    train(twin, twin_optimizer, 3)
    assert all(torch.equal(p, q) for p, q in zip(parts.parameters(), twin.parameters(), strict=True))


def test_learning_rate_reaches_every_part():
    optimizer = MuonAdamW(lr=0.1, adamw_lr=0.01)({"parts": Parts()})
    set_learning_rate([optimizer], 0.5)
    set_learning_rate([optimizer], 0.5)  # relative to the base rate, not to the last one
    assert {group["lr"] for group in optimizer.param_groups} == {0.05, 0.005}
    assert {g["lr"] for part in optimizer.optimizers for g in part.param_groups} == {0.05, 0.005}


@pytest.mark.parametrize(
    "schedule, at_middle, at_end",
    [
        (ConstantRate(warmup_images=100), 1.0, 1.0),
        (CosineRate(warmup_images=100, final=0.1), 0.55, 0.1),
        (WarmupStableDecay(warmup_images=100, decay=0.25), 1.0, 0.0),
        (InverseSquareRootRate(warmup_images=100, reference_images=5_000), 1.0, 0.5**0.5),
    ],
)
def test_schedules_warm_up_then_follow_their_shape(schedule, at_middle, at_end):
    values = [schedule(images, 10_000) for images in range(0, 10_001, 50)]
    assert values[0] <= 0.02 and schedule(49, 10_000) == pytest.approx(0.5, abs=0.01)
    assert schedule(5_000, 10_000) == pytest.approx(at_middle)
    assert schedule(10_000, 10_000) == pytest.approx(at_end)
    after_warmup = values[2:]
    assert all(a >= b for a, b in itertools.pairwise(after_warmup))


def test_what_has_an_end_stays_there_and_what_has_none_goes_on():
    for schedule in (ConstantRate(), CosineRate(final=0.1), WarmupStableDecay()):
        assert schedule(10_000, 10_000) == pytest.approx(schedule(20_000, 10_000))
    endless = InverseSquareRootRate(reference_images=100)
    assert endless(40_000, 1) == pytest.approx(endless(10_000, 10**9) / 2)
    with pytest.raises(ValueError, match="reference_images=0"):
        InverseSquareRootRate(reference_images=0)


def test_a_decay_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"decay=0\.0 must lie in"):
        WarmupStableDecay(decay=0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": 1.0, "weight_decay": -0.1},
        {"lr": 1.0, "beta1": 1.0},
        {"lr": 1.0, "beta2": 1.5},
    ],
)
@pytest.mark.parametrize("recipe", [AdamW, MuonAdamW])
def test_rates_that_cannot_be_are_refused(recipe, wrong):
    with pytest.raises(ValueError, match="an optimizer"):
        recipe(**wrong)


def test_a_package_optimizer_gets_the_same_groups():
    parts = Parts()
    packaged = Packaged(optimizer=partial(torch.optim.NAdam, lr=1e-3), weight_decay=0.1)({"parts": parts})
    ours = AdamW(lr=1e-3, weight_decay=0.1)({"parts": parts})
    assert decayed_by(packaged) == decayed_by(ours)


def test_torchs_muon_takes_matrices_and_nothing_else():
    recipe = Packaged(optimizer=partial(torch.optim.Muon, lr=1e-3), matrices_only=True)
    assert isinstance(recipe({"layer": nn.Linear(3, 2, bias=False)}), torch.optim.Muon)
    with pytest.raises(ValueError, match="matrices_only=true, but 6 of"):
        recipe({"parts": Parts()})


def test_eight_bit_adamw_follows_adamw():
    """Moments in 8 bits move a large matrix nearly as float32 moments do."""
    optim = pytest.importorskip("bitsandbytes.optim")
    torch.manual_seed(0)
    layers = [nn.Linear(128, 64, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    first = layers[0].weight.detach().clone()
    recipes = [Packaged(optimizer=partial(optim.AdamW8bit, lr=1e-2)), AdamW(lr=1e-2)]
    optimizers = [recipe({"layer": layer}) for recipe, layer in zip(recipes, layers, strict=True)]
    for _ in range(5):
        gradient = torch.randn(64, 128)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            layer.weight.grad = gradient.clone()
            optimizer.step()
    moved = [(layer.weight - first).detach() for layer in layers]
    assert (moved[0] - moved[1]).norm() < 0.05 * moved[1].norm()


def test_one_kernel_for_the_step_where_the_device_has_it():
    assert has_fused([nn.Parameter(torch.zeros(2))])
    assert not has_fused([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, device="meta"))])


def test_of_real_networks_only_matrices_and_kernels_decay():
    """By name: a norm, a bias, an embedding or a learned token that decayed would be pulled to zero."""
    options = {"num_classes": 3, "context_width": 8, "pooled_width": 8}
    dit = DiT(in_channels=4, patch_size=2, width=16, depth=1, num_heads=2, **options)
    names = {id(p): (name, p) for name, p in dit.named_parameters()}
    for key, decay in decayed_by(AdamW(lr=1e-3, weight_decay=0.1)({"network": dit})).items():
        name, p = names[key]
        assert (decay > 0) == (name.endswith("weight") and p.ndim == 2 and "label_embedding" not in name), (
            name
        )
