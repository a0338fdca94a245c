from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldm.diffusion.parameterizations import Epsilon, V
from ldm.diffusion.schedules import Cosine
from ldm.diffusion.tabulated import ScaledLinear
from ldm.diffusion.weightings import MinSNR
from ldm.interfaces import Batch, Conditioning
from ldm.training.pinned_loss import LEVELS, PinnedLosses, fingerprint, pinned_losses, reached_levels
from tests.training.test_diffusion_module import module
from tests.training.tiny import batch_at

CPU = torch.device("cpu")


class Nothing(nn.Module):
    """Says with the parameterization Flow that there is nothing in the picture: x_t - t * out = 0."""

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return x / t.reshape(-1, 1, 1, 1)


class LinearFlow(nn.Module):
    """The guess x0 = 0.3 x_t / |(alpha, sigma)|, as Flow says it."""

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        t = t.reshape(-1, 1, 1, 1)
        return (x - 0.3 * x / torch.hypot(1 - t, t)) / t


class LinearV(nn.Module):
    """The same as V says it, under the cosine schedule."""

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        t = t.reshape(-1, 1, 1, 1)
        alpha, sigma = Cosine().alpha(t), Cosine().sigma(t)
        return (alpha * x - 0.3 * x) / sigma


def measured(it, batches: list[Batch] | None = None, **given) -> PinnedLosses:
    return pinned_losses(
        it.eval(), [batch_at(0), batch_at(4, 3)] if batches is None else batches, device=CPU, **given
    )


def with_network(network: nn.Module, **parts):
    it = module(**parts)
    it.network = network
    return it


def test_saying_nothing_costs_the_picture_itself_times_1_plus_snr():
    found = measured(with_network(Nothing()))
    assert found.losses.keys == tuple(map(str, range(7)))
    assert found.losses.columns == ("-9", "-7", "-5", "-3", "-1", "+1", "+3", "+5", "+7", "+9")
    power = batch_at(0, 7).images.square().flatten(1).mean(1).numpy()  # (7,)
    snr = found.losses.values / power[:, None] - 1
    for k, level in enumerate(LEVELS):
        low, high = 0.98 * np.exp(level - 1) - 1e-3, 1.02 * np.exp(level + 1) + 1e-3
        assert (snr[:, k] >= low).all() and (snr[:, k] <= high).all()
    assert len(set(np.log(snr[:, -1]).round(3))) == 7, "each picture has its own place in the bin"


def test_it_does_not_depend_on_how_a_schedule_scales_or_what_the_network_outputs():
    flow = measured(with_network(LinearFlow()))
    cosine = measured(with_network(LinearV(), schedule=Cosine(), parameterization=V()))
    np.testing.assert_allclose(flow.losses.values, cosine.losses.values, rtol=2e-3)
    assert flow.reference_hash == cosine.reference_hash


def test_nor_on_the_runs_seed_weighting_batches_or_number_of_processes():
    it = module()
    whole = measured(it)
    other = module(weighting=MinSNR(gamma=5.0))
    other.seed, other.sample_posterior = 7, False
    np.testing.assert_array_equal(measured(other).losses.values, whole.losses.values)
    singly = measured(it, [batch_at(i, 1) for i in range(7)])
    np.testing.assert_allclose(singly.losses.values, whole.losses.values, rtol=1e-5)
    assert singly.reference_hash == whole.reference_hash
    assert fingerprint([batch_at(i, 1) for i in range(7)]) == (whole.reference_hash, 7)
    shares = [measured(it, rank=rank, num_ranks=2).losses for rank in range(2)]
    assert shares[0].keys == shares[1].keys == whole.losses.keys
    np.testing.assert_array_equal(shares[0].values + shares[1].values, whole.losses.values)


def test_levels_left_out_change_nothing_for_the_others_and_another_seed_does():
    whole = measured(module()).losses.values
    np.testing.assert_array_equal(measured(module(), levels=(3, 5)).losses.values, whole[:, [6, 7]])
    assert not np.isclose(measured(module(), seed=1).losses.values, whole).any()


def test_levels_that_a_schedule_does_not_reach_are_not_measured():
    found = measured(module(schedule=ScaledLinear(), parameterization=Epsilon()))
    assert np.isnan(found.losses.values[:, :3]).all()
    assert found.reached == [-3, -1, 1, 3, 5, 7, 9], "log-SNR begins at -5.4"
    assert measured(module()).reached == list(LEVELS)
    assert (
        reached_levels(module(schedule=ScaledLinear(), parameterization=Epsilon()), LEVELS) == found.reached
    )


def test_the_reference_is_what_is_in_it():
    it, batch = module(), batch_at(0)
    known = measured(it, [batch]).reference_hash
    assert measured(module(weighting=MinSNR(gamma=1.0)), [batch]).reference_hash == known
    for other in (
        replace(batch, images=batch.images.flip(0)),
        replace(batch, captions=["another", *batch.captions[1:]]),
        replace(batch, keys=["another", *batch.keys[1:]]),
    ):
        assert measured(it, [other]).reference_hash != known


def test_keys_that_occur_twice_are_told_apart_and_latents_or_nothing_are_refused():
    it, batch = module(), batch_at(0, 2)
    assert measured(it, [batch, batch]).losses.keys == ("0", "1", "0#2", "1#2")
    with pytest.raises(ValueError, match="carries latents"):
        measured(it, [replace(batch, images=None, moments=torch.zeros(2, 6, 8, 8))])
    with pytest.raises(ValueError, match="there are none"):
        measured(it, [])
