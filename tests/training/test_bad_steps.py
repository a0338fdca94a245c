"""A step that is not finite is as if it had not been made, and can be made again from its capsule."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from ldm.commands.replay import largest, make, worst_first
from ldm.interfaces import Batch, Conditioning
from ldm.training.bad_steps import BadSteps, TooManyBadSteps
from ldm.training.callbacks import ClipGradients, StopAtImages
from ldm.training.capsule import plain, read_capsule, restored
from ldm.training.checkpoint import newest_checkpoint, read_checkpoint
from ldm.training.ema import EMA
from ldm.training.outcome import Step
from ldm.training.saving import Checkpoints
from ldm.training.spikes import FEWEST, LastLosses
from tests.training.reliable import Remembering, finish, start
from tests.training.test_saving import assert_same
from tests.training.tiny import BATCH, TinyModule, batch_at, fit


class Spoilt(TinyModule):
    """Some steps go wrong: ``nan`` through a picture, ``inf`` in the loss alone, with a finite gradient."""

    def __init__(self, *, nan: tuple[int, ...] = (), inf: tuple[int, ...] = (), large: tuple[int, ...] = ()):
        super().__init__()
        self.nan, self.inf, self.large = nan, inf, large

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        if self.images_seen in self.nan:
            assert batch.images is not None
            batch.images[0, 0, 0, 0] = math.nan
        factor = 1e4 if self.images_seen in self.large else 1.0
        plus = math.inf if self.images_seen in self.inf else 0.0
        return factor * super().training_step(batch, batch_index) + plus


class Watch(Callback):
    """What a checkpoint would hold before each step, by the images seen."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}

    def on_train_batch_start(self, trainer, pl_module, *_):
        kept = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        names = ("state_dict", "optimizer_states", "ema")
        copy = {name: torch.utils._pytree.tree_map(_copied, kept[name]) for name in names}
        self.states[pl_module.images_seen] = copy


def _copied(x: Any) -> Any:
    return x.clone() if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("clip", [True, False])
def test_a_bad_step_changes_nothing_that_is_kept(tmp_path: Path, clip: bool, caplog) -> None:
    watch, bad, average = Watch(), BadSteps(), EMA(decay=0.9)
    steps = [average, *([ClipGradients(max_norm=1.0)] if clip else []), bad, watch]
    end = [StopAtImages(num_images=32), Checkpoints(every_num_images=8)]
    _, module = fit(tmp_path, [*steps, *end], module=Spoilt(nan=(8,), inf=(16, 20)))
    for before, after, same in (
        (8, 12, True),
        (12, 16, False),
        (16, 20, True),
        (20, 24, True),
        (24, 28, False),
    ):
        if same:
            assert_same(watch.states[before], watch.states[after])
        else:
            assert not torch.equal(
                watch.states[before]["state_dict"]["network.0.weight"],
                watch.states[after]["state_dict"]["network.0.weight"],
            )
    assert bad.count == 3 and bad.in_row == 0 and average.num_updates == 8 - 3
    assert len(module.seen_keys) == 32, "its pictures count as seen"
    assert caplog.text.count("left out") == 3
    assert [path.name for path in (tmp_path / "capsules").iterdir()] == [
        "images_000000012"
    ]  # the first alone


def test_several_in_a_row_end_the_training_with_good_weights(tmp_path: Path) -> None:
    steps = [EMA(decay=0.9), BadSteps(stop_after=3), Checkpoints(every_num_images=4)]
    with pytest.raises(TooManyBadSteps, match=r"3 steps in a row.*ldm replay capsule=.*images_000000012"):
        fit(tmp_path, steps, module=Spoilt(nan=(8, 16, 20, 24)))
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    saved = read_checkpoint(newest)
    assert saved["images_seen"] == 24 and saved["callbacks"]["BadSteps"]["in_row"] == 2
    assert all(bool(torch.isfinite(x).all()) for x in saved["state_dict"].values())

    again = BadSteps(stop_after=3)  # counts go on where they stood
    with pytest.raises(TooManyBadSteps):
        steps = [EMA(decay=0.9), again, Checkpoints(every_num_images=1000)]
        fit(tmp_path, steps, module=Spoilt(nan=(24,)), resume=newest)
    assert again.count == 4


def test_a_capsule_makes_the_very_step_again(tmp_path: Path) -> None:
    bad = BadSteps()
    fit(tmp_path, [EMA(decay=0.9), bad, StopAtImages(num_images=16)], module=Spoilt(nan=(8,)))
    capsule = read_capsule(tmp_path / str(bad.capsule))
    assert [key for batch in capsule.batches for key in batch.keys] == ["8", "9", "10", "11"]
    assert capsule.step["losses"] == ["nan"] and capsule.step["images_seen"] == 12
    assert capsule.step["layers"]["network.0.weight"]["gradient"]["not_finite"] > 0
    assert capsule.step["layers"]["network.0.weight"]["weight"]["not_finite"] == 0

    def module() -> TinyModule:
        made = TinyModule()
        made.network.load_state_dict(capsule.weights["network"])
        return made

    made = make(module(), capsule, dtype=None, device=torch.device("cpu"))
    assert math.isnan(made.losses[0]) and made.first is None, "the input itself was not finite"
    # With the picture mended it is the step that was meant, whatever pieces it comes in.
    good = replace(capsule, batches=[batch_at(8)])
    halves = replace(capsule, batches=batch_at(8).pieces(2))
    whole = make(module(), good, dtype=None, device=torch.device("cpu"))
    plain_loss = module().training_step(batch_at(8), 0)
    assert whole.losses[0] == float(plain_loss.detach())
    assert len(make(module(), halves, dtype=torch.bfloat16, device=torch.device("cpu")).losses) == 2
    assert worst_first(capsule.step["layers"], {"float32": whole})[0] == "network.0.weight"


@pytest.mark.slow
def test_spread_over_processes_all_leave_the_step_out_and_one_can_make_it_again(tmp_path: Path) -> None:
    """One process's picture is not a number: no share of any weight moves, and the capsule is of the whole."""
    trial = {"num_images": 24, "world_size": 2, "sharded": True, "every": 4}
    assert finish(start(tmp_path / "bad", **trial, spoilt=(1, 8), keep=True)) == [0, 0]
    saved = {
        seen: read_checkpoint(tmp_path / f"bad/checkpoints/images_{seen:09d}") for seen in (8, 12, 16, 24)
    }
    for key in ("state_dict", "ema", "optimizer_states"):
        assert_same(saved[8][key], saved[12][key], key)
    assert not torch.equal(
        saved[12]["state_dict"]["network.0.weight"], saved[16]["state_dict"]["network.0.weight"]
    )
    assert saved[24]["callbacks"]["BadSteps"] | {"losses": []} == {
        "count": 1, "in_row": 0, "capsule": "capsules/images_000000012", "losses": [],
    }  # fmt: skip
    assert saved[24]["callbacks"]["EMA"]["num_updates"] == 5
    assert all(bool(torch.isfinite(x).all()) for x in saved[24]["state_dict"].values())

    capsule = read_capsule(tmp_path / "bad/capsules/images_000000012")
    assert [key for batch in capsule.batches for key in batch.keys] == ["8", "9", "10", "11"]
    weights = {f"network.{name}": x for name, x in capsule.weights["network"].items()}
    assert_same(
        weights, {name: x for name, x in saved[8]["state_dict"].items() if name.startswith("network")}
    )
    layer = capsule.step["layers"]["network.0.weight"]
    assert layer["gradient"]["not_finite"] == weights["network.0.weight"].numel(), "of all shares"
    assert layer["weight"]["largest"] == pytest.approx(float(weights["network.0.weight"].abs().max()))

    def module() -> Remembering:
        made = Remembering()
        made.network.load_state_dict(capsule.weights["network"])
        return made

    made = make(module(), capsule, dtype=None, device=torch.device("cpu"))
    assert [math.isfinite(loss) for loss in made.losses] == [True, False], "it was the second process's"
    # With the picture mended its gradient is the one that both would have had between them.
    good = replace(capsule, batches=batch_at(8).pieces(2))
    halves = make(module(), good, dtype=None, device=torch.device("cpu"))
    whole = make(module(), replace(capsule, batches=[batch_at(8)]), dtype=None, device=torch.device("cpu"))
    for name, norm in whole.gradients.items():
        assert halves.gradients[name] == pytest.approx(norm, rel=1e-5)


@pytest.mark.slow
def test_spread_over_processes_several_bad_steps_end_the_job(tmp_path: Path) -> None:
    codes = finish(start(tmp_path, num_images=400, world_size=2, sharded=True, spoilt=(0, -8)))
    assert codes == [1, 1]
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    saved = read_checkpoint(newest)
    assert saved["callbacks"]["BadSteps"]["in_row"] == saved["callbacks"]["BadSteps"]["count"] > 0
    assert all(bool(torch.isfinite(x).all()) for x in saved["state_dict"].values())


def test_the_first_module_that_overflows_is_named() -> None:
    class Deep(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Sequential(
                torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)
            )
            self.network[1].weight.data.fill_(math.inf)

    capsule = type("Read", (), {"batches": [batch_at(0)], "step": {"images_seen": BATCH}})()
    made = make(Deep(), capsule, dtype=None, device=torch.device("cpu"))
    assert made.first == "network.1" and math.isfinite(made.outputs["network.0"])
    assert math.isnan(largest({"a": [torch.tensor([1.0, math.nan])]}))


def test_a_batch_survives_as_plain_data(tmp_path: Path) -> None:
    batch = batch_at(4)
    torch.save(plain(batch), tmp_path / "x.pt")
    back = restored(torch.load(tmp_path / "x.pt", weights_only=True))
    assert isinstance(back, Batch) and back.slots == batch.slots and back.keys == batch.keys
    assert back.images is not None and batch.images is not None and torch.equal(back.images, batch.images)
    cond = Conditioning(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 4))
    assert isinstance(restored(plain(cond)), Conditioning), "also data within data"
    with pytest.raises(ValueError, match="Popen"):
        restored({"is": "Popen", "with": {}})


def test_losses_that_stand_out_are_noted_with_their_keys(tmp_path: Path) -> None:
    at = BATCH * (FEWEST + 4)
    fit(
        tmp_path,
        [BadSteps(spike=20.0), StopAtImages(num_images=at + 8)],
        module=Spoilt(large=(at,)),
        limit_val_batches=0,
    )
    notes = [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()]
    assert [note["images_seen"] for note in notes] == [at + BATCH]
    assert (
        notes[0]["keys"] == [str(at + i) for i in range(BATCH)] and notes[0]["loss"] > notes[0]["threshold"]
    )


def test_the_threshold_is_not_moved_by_what_it_looks_for() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(256, generator=generator).double() * 0.1 + 1.0
    calm = LastLosses(256, losses.tolist()).threshold(6.0)
    assert calm == pytest.approx(1.0 + 6 * 0.1, abs=0.1)  # a normal law's median and standard deviation
    losses[:20] = 1e6
    assert LastLosses(256, losses.tolist()).threshold(6.0) == pytest.approx(calm, abs=0.15)
    assert LastLosses(256, [1.0] * (FEWEST - 1)).threshold(6.0) == math.inf


@pytest.mark.parametrize("size", [FEWEST, FEWEST + 1, 50, 51])
def test_the_threshold_is_that_of_the_last_losses_and_its_short_cut_never_wrong(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    kept, every = LastLosses(size), []
    for step in range(4 * size):
        # heavy tails on one side, then many equal ones
        loss = round(float(torch.randn((), generator=generator).exp()), 2 if step < 2 * size else 0)
        last = sorted(every[-size:])
        if len(last) >= FEWEST:
            middle = statistics.median(last)
            threshold = middle + 2.0 * 1.4826 * statistics.median(abs(x - middle) for x in last)
            assert kept.threshold(2.0) == pytest.approx(threshold, rel=1e-12)
            assert kept.is_spike(loss, 2.0) == (loss > threshold)
        kept.add(loss)
        every.append(loss)
    assert list(kept.in_order) == every[-size:]


class Fused(Spoilt):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=0.05, weight_decay=0.1, fused=True)


def test_what_is_known_one_step_later_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the optimizer leaves the step out by itself, everything else waits until somebody may ask."""
    runs = {}
    parts = ("state_dict", "optimizer_states", "ema", "callbacks", "images_seen")
    for name in ("at once", "later"):
        if name == "later":
            monkeypatch.setattr(Step, "is_known", property(lambda self: False))
        bad, average = BadSteps(spike=4.0), EMA(decay=0.9)
        end = [StopAtImages(num_images=160), Checkpoints(every_num_images=8)]
        folder = tmp_path / name
        module = Fused(nan=(8, 32, 156), inf=(16, 20), large=(148,))
        fit(
            folder,
            [average, ClipGradients(max_norm=1.0), bad, *end],
            module=module,
            val_check_interval=2,
            check_val_every_n_epoch=None,
        )
        final = read_checkpoint(newest_checkpoint(folder / "checkpoints"))
        capsule = read_capsule(folder / str(bad.capsule))
        runs[name] = [final[part] for part in parts], capsule.step, capsule.weights
        notes = (folder / "spikes.jsonl").read_text()
        assert bad.count == 5 and average.num_updates == 40 - 5 and "152" in notes
    assert_same(runs["later"], runs["at once"])


def test_a_training_that_cannot_go_on_ends_also_when_it_is_known_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Step, "is_known", property(lambda self: False))
    steps = [EMA(decay=0.9), BadSteps(stop_after=3), Checkpoints(every_num_images=4)]
    with pytest.raises(TooManyBadSteps, match=r"3 steps in a row"):
        fit(tmp_path, steps, module=Fused(nan=(16, 20, 24)))
    saved = read_checkpoint(newest_checkpoint(tmp_path / "checkpoints"))
    assert all(bool(torch.isfinite(x).all()) for x in saved["state_dict"].values())


def test_an_optimizer_that_cannot_leave_a_step_out_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Step, "is_known", property(lambda self: False))
    bad = BadSteps()
    _, module = fit(tmp_path, [EMA(decay=0.9), bad, StopAtImages(num_images=24)], module=Spoilt(nan=(8,)))
    assert bad.count == 1 and all(bool(torch.isfinite(x).all()) for x in module.state_dict().values())
