from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.training.averages import Average
from ldm.training.callbacks import StopAtImages, ValidateEvery
from ldm.training.checkpoint import read_checkpoint
from ldm.training.ema import EMA
from ldm.training.saving import Checkpoints
from tests.training.tiny import TinyModule, fit


def averages_by_hand(history: list[torch.Tensor], ema: EMA) -> torch.Tensor:
    """The recurrence of the docstring: the first average is the first weights, then decay_at(n)."""
    average = history[0].clone()
    for n, weights in enumerate(history[1:], start=1):
        decay = ema.decay_at(n)
        average = decay * average + (1 - decay) * weights
    return average


class History(StopAtImages):
    """Keeps the trained weights of every step."""

    def __init__(self, *, num_images: int) -> None:
        super().__init__(num_images=num_images)
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *rest):
        super().on_train_batch_end(trainer, pl_module, *rest)
        self.weights.append(pl_module.network[0].weight.detach().clone())


@pytest.mark.parametrize("warmup", [True, False])
def test_average_follows_the_recurrence(tmp_path: Path, warmup: bool) -> None:
    ema, history = EMA(decay=0.7, warmup=warmup), History(num_images=40)
    _, _module = fit(tmp_path, [ema, history, Checkpoints(every_num_images=40, monitor=None)])
    saved = read_checkpoint(tmp_path / "checkpoints/last")
    torch.testing.assert_close(saved["ema"]["network"]["0.weight"], averages_by_hand(history.weights, ema))
    torch.testing.assert_close(saved["state_dict"]["network.0.weight"], history.weights[-1], rtol=0, atol=0)
    assert ema.num_updates == 10


def test_validation_sees_the_average_and_training_gets_its_weights_back(tmp_path: Path) -> None:
    ema, history = EMA(decay=0.9), History(num_images=40)
    _, module = fit(tmp_path, [ema, history, ValidateEvery(num_images=20)])
    torch.testing.assert_close(module.weights_in_validation, averages_by_hand(history.weights, ema))
    torch.testing.assert_close(module.network[0].weight, history.weights[-1], rtol=0, atol=0)


def test_weights_in_is_reentrant_and_survives_errors(tmp_path: Path) -> None:
    ema, history = EMA(decay=0.9), History(num_images=12)
    _, module = fit(tmp_path, [ema, history])
    online = history.weights[-1]
    with pytest.raises(KeyError), ema.weights_in(module) as name:
        assert name == "EMA weights"
        averaged = module.network[0].weight.clone()
        with ema.weights_in(module) as inner:
            assert inner == "EMA weights"
            torch.testing.assert_close(module.network[0].weight, averaged, rtol=0, atol=0)
        raise KeyError
    assert not torch.equal(averaged, online)
    torch.testing.assert_close(module.network[0].weight, online, rtol=0, atol=0)


def test_accumulated_gradients_are_no_steps(tmp_path: Path) -> None:
    ema = EMA(decay=0.9)
    fit(tmp_path, [ema, StopAtImages(num_images=48)], accumulate_grad_batches=3)
    assert ema.num_updates == 4


def test_buffers_follow_and_frozen_parts_are_left_out(tmp_path: Path) -> None:
    ema = EMA(decay=0.9)
    _, module = fit(
        tmp_path, [ema, StopAtImages(num_images=12), Checkpoints(every_num_images=4, monitor=None)]
    )
    saved = read_checkpoint(tmp_path / "checkpoints/last")["ema"]
    assert saved.keys() == {"network"}
    torch.testing.assert_close(saved["network"]["1.running_mean"], module.network[1].running_mean)


def test_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="decay=1"):
        EMA(decay=1.0)


def test_warmup_rises_to_the_decay() -> None:
    ema = EMA(decay=0.99, warmup=True)
    decays = [ema.decay_at(n) for n in range(2000)]
    assert decays == sorted(decays) and decays[0] < 0.2 and decays[-1] == 0.99


def test_without_fit_there_is_nothing_to_swap() -> None:
    with EMA().weights_in(TinyModule()) as name:
        assert name == "online weights"


def test_names_are_the_plain_ones_when_the_network_is_wrapped() -> None:
    """As torch.compile wraps it from outside; blocks that are compiled in place keep their names anyway."""
    network = TinyModule().network
    average = Average({"network": torch.compile(network, backend="eager")})
    assert average.state()["network"].keys() == network.state_dict().keys()
    average.load({"network": {name: x + 1 for name, x in network.state_dict().items()}})
    torch.testing.assert_close(average.state()["network"]["0.weight"], network[0].weight + 1)


def test_weights_of_low_precision_are_averaged_in_float32() -> None:
    """In bfloat16 a step of 1e-4 of the way would round to nothing."""
    layer = torch.nn.Linear(2, 2, bias=False).bfloat16()
    average = Average({"layer": layer}, on_cpu=True)
    with torch.no_grad():
        layer.weight += 1
    before = average.values[0].clone()
    average.move(1e-4)
    assert average.values[0].dtype == torch.float32
    torch.testing.assert_close(average.values[0], before + 1e-4 * (layer.weight.float() - before))


def test_exchanging_twice_is_as_before_bit_for_bit() -> None:
    network = TinyModule().network
    average = Average({"network": network})
    with torch.no_grad():
        network[0].weight.mul_(1.1)
    online, averaged = network[0].weight.detach().clone(), average.values[0].clone()
    average.exchange()
    assert torch.equal(network[0].weight, averaged) and torch.equal(average.values[0], online)
    average.exchange()
    assert torch.equal(network[0].weight, online) and torch.equal(average.values[0], averaged)


def test_an_average_of_other_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="own config"):
        Average({"network": TinyModule().network}).load({"other": {}})
