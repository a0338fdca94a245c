"""Whole trainings of autoencoders with a discriminator: counters, restarts, bad steps, pieces, two processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing
from lightning.pytorch import Callback

from ldm.codecs.kl import KLCodec
from ldm.nn.bottlenecks import VQ
from ldm.training.accumulation import InPieces
from ldm.training.adversary import R1, FixedBalance, GradientBalance
from ldm.training.autoencoder_loss import CodebookLoss, KLDivergence, SquaredError
from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.bad_steps import BadSteps
from ldm.training.callbacks import ClipGradients, StopAtImages, Throughput
from ldm.training.checkpoint import load_weights, read_checkpoint
from ldm.training.decoder_of import DecoderOf
from ldm.training.disturbances import Equivariance
from ldm.training.ema import EMA
from ldm.training.features import AutoencoderFeatures
from ldm.training.latent_terms import FeatureAlignment
from ldm.training.logging import CSVLogger
from ldm.training.optim import AdamW
from ldm.training.perceptual_terms import FeatureDistance
from ldm.training.saving import Checkpoints
from ldm.training.stopping import Interrupted
from tests.processes import become, free_port
from tests.training.autoencoders import adversary, autoencoder, module
from tests.training.reliable import Shared
from tests.training.test_saving import InterruptAt, assert_same
from tests.training.tiny import BATCH, TinyData, batch_at, fit

KEPT = ("state_dict", "optimizer_states", "ema", "images_seen", "global_step")


def everything(**changes: Any) -> AutoencoderModule:
    """With a discriminator that begins after two steps, a codebook of running means, and a disturbance."""
    options = {
        "autoencoder": autoencoder(VQ(num_codes=6, decay=0.9)),
        "terms": {"squared_error": SquaredError(), "codebook": CodebookLoss()},
        "disturbances": {"equivariance": Equivariance(share=0.5, smallest=0.5)},
        "adversary": adversary(start_images=8, warmup_images=8),
    }
    return module(**{**options, **changes})


def callbacks(num_images: int, *more: Callback, every: int = 1000) -> list[Callback]:
    return [
        EMA(decay=0.9),
        StopAtImages(num_images=num_images),
        ClipGradients(max_norm=1.0),
        BadSteps(),
        *more,
        Checkpoints(every_num_images=every),
    ]


def last(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / "last")


class Watch(Callback):
    """The weights and the optimizer's state before each step, by the images seen."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        kept = {"weights": pl_module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
        copied = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, kept)
        self.states[pl_module.images_seen] = copied


def discriminators(state: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in state["weights"].items() if name.startswith("discriminator.")}


def test_pictures_are_counted_and_the_discriminator_waits_for_its_turn(tmp_path: Path) -> None:
    watch = Watch()
    logger = CSVLogger(folder=str(tmp_path))
    trainer, trained = fit(tmp_path, callbacks(24, watch), module=everything(), loggers=logger)
    assert trained.images_seen == 24 and trainer.global_step == 24 // BATCH, "not two for each batch"
    assert_same(discriminators(watch.states[0]), discriminators(watch.states[8]))
    assert watch.states[8]["optimizer"]["parts"][1]["state"] == {}, "its moments are not spoilt beforehand"
    before, after = discriminators(watch.states[8]), discriminators(watch.states[12])
    assert not torch.equal(before["discriminator.logits.weight"], after["discriminator.logits.weight"])
    written = (tmp_path / "metrics.csv").read_text().splitlines()
    for name in (
        "train/squared_error",
        "train/codebook",
        "train/adversarial_strength",
        "train/discriminator",
        "train/grad_norm_autoencoder",
        "train/grad_norm_discriminator",
    ):
        assert name in written[0].split(","), name


def test_a_restart_changes_no_bit(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, callbacks(32), module=everything())
    with pytest.raises(Interrupted):
        fit(parts, callbacks(32, InterruptAt(16)), module=everything())
    fit(parts, callbacks(32), module=everything(), resume=parts / "checkpoints" / "last")
    for key in KEPT:
        assert_same(last(whole)[key], last(parts)[key], key)
    assert len(last(whole)["optimizer_states"][0]["parts"]) == 2
    assert set(last(whole)["ema"]) == {"autoencoder", "discriminator"}


class Spoil(Callback):
    """One batch's picture is not a number."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.images_seen == 12:
            batch.images[0, 0, 0, 0] = math.nan


def test_a_bad_step_moves_neither_network_nor_the_codebook(tmp_path: Path) -> None:
    watch, bad = Watch(), BadSteps()
    steps = [EMA(decay=0.9), StopAtImages(num_images=24), ClipGradients(max_norm=1.0), bad, Spoil(), watch]
    fit(tmp_path, steps, module=everything())
    assert bad.count == 1
    assert_same(watch.states[12], watch.states[16])
    names = ("discriminator.logits.weight", "autoencoder.bottleneck.quantizer.codebook")
    for name in names:
        assert not torch.equal(watch.states[16]["weights"][name], watch.states[20]["weights"][name])


def test_each_network_is_clipped_by_its_own_norm(tmp_path: Path) -> None:
    """A discriminator's steep loss must not make the autoencoder's step small."""

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            parts = pl_module.parts()
            self.found = {
                name: torch.nn.utils.get_total_norm([x.grad for x in part.parameters() if x.grad is not None])
                for name, part in parts.items()
            }

    norms = Norms()
    steps = [StopAtImages(num_images=4), ClipGradients(max_norm=1e-3), norms]
    fit(tmp_path, steps, module=module(adversary=adversary()))
    for norm in norms.found.values():
        assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_operations_of_both_networks_are_counted(tmp_path: Path) -> None:
    """In the first step, through the gradients that are taken inside it, of the penalty too."""

    def counted(name: str, **changes: Any) -> float:
        speed = Throughput(window=2)
        fit(tmp_path / name, [StopAtImages(num_images=8), speed], module=module(**changes))
        assert speed.flops is not None
        return speed.flops

    judge = adversary(penalty=R1(gamma=1.0))
    assert counted("with", adversary=judge) > 1.2 * counted("without") > 0


# --- the same step, in pieces and on two processes ----------------------------------------------------------------


def comparable(balance: Any) -> AutoencoderModule:
    """Adam's eps is large where a gradient is nothing but rounding."""
    return everything(
        adversary=adversary(balance=balance, start_images=8, optimizer=AdamW(lr=1e-3, beta1=0.5, eps=1e-3)),
        optimizer=AdamW(lr=2e-3, eps=1e-3),
    )


def trained_weights(folder: Path, **options: Any) -> dict[str, Any]:
    _, trained = fit(folder, callbacks(24), **options)
    return trained.state_dict()


def test_a_step_in_pieces_is_the_step_in_one(tmp_path: Path) -> None:
    one = trained_weights(tmp_path / "one", module=comparable(FixedBalance()))
    data = InPieces(TinyData(), num=2)
    two = trained_weights(
        tmp_path / "two", module=comparable(FixedBalance()), data=data, accumulate_grad_batches=2
    )
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def process(rank: int, port: int, folder: str) -> None:
    """One of two, as torchrun would start it."""
    become(rank, world_size=2, port=port)
    torch.set_num_threads(1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=callbacks(24),
        logger=False,
        default_root_dir=folder,
        max_epochs=-1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.fit(comparable(GradientBalance()), datamodule=Shared(0))


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Discriminator, balance by gradient norms and codebook included, from before the discriminator begins."""
    fit(tmp_path / "one", callbacks(24), module=comparable(GradientBalance()))
    torch.multiprocessing.spawn(process, (free_port(), str(tmp_path / "two")), nprocs=2)
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert two["images_seen"] == one["images_seen"] == 24
    for key in ("state_dict", "ema"):
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)


# --- what training leaves behind ----------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """An autoencoder's file."""
    path = tmp_path / "finished.safetensors"
    module(autoencoder=autoencoder(seed=5)).export(path, [batch_at(0, 8)])
    return path


def test_a_new_decoder_keeps_the_latents_and_their_name(finished: Path, tmp_path: Path) -> None:
    first = KLCodec(path=str(finished))
    fresh = module(adversary=adversary(), decoder_of=DecoderOf(path=str(finished)))
    fit(tmp_path, callbacks(16), module=fresh)
    path = tmp_path / "second.safetensors"
    fresh.export(path, [])
    second = KLCodec(path=str(path))
    images = batch_at(100).images
    assert images is not None
    assert torch.equal(second.moments(images), first.moments(images))
    noise = torch.randn(4, 2, 4, 4)
    moments = first.moments(images)
    assert torch.equal(second.latents(moments, noise=noise), first.latents(moments, noise=noise))
    assert not torch.equal(second.decode(moments[:, :2]), first.decode(moments[:, :2]))
    assert second.content_hash == first.content_hash, "denoisers and caches go on with it"
    assert second.decoder_hash != first.decoder_hash and first.decoder_hash == first.content_hash
    # A decoder of that decoder still has the first one's latents.
    third = module(decoder_of=DecoderOf(path=str(path)))
    assert third.kept_contract is not None and third.kept_contract.origin == first.content_hash
    with pytest.raises(ValueError, match=r"decoder_of.path=.*give network= as it was trained with"):
        module(autoencoder=autoencoder(channels=3), decoder_of=DecoderOf(path=str(finished)))


def test_frozen_networks_stay_out_of_checkpoints_and_trained_terms_in_them(
    finished: Path, tmp_path: Path
) -> None:
    def made() -> AutoencoderModule:
        torch.manual_seed(3)
        features = AutoencoderFeatures(path=str(finished))
        terms = {
            "squared_error": SquaredError(),
            "kl": KLDivergence(weight=1e-3),
            "features": FeatureDistance(features=features),
            "alignment": FeatureAlignment(features=features, latent_channels=2, weight=0.5),
        }
        return module(terms=terms)

    one = made()
    before = one.parts()["alignment"].weight.clone()
    fit(tmp_path, callbacks(8), module=one)
    assert not torch.equal(one.parts()["alignment"].weight, before), "the projection is trained"
    saved = last(tmp_path)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"autoencoder", "term_modules"}
    assert [n for n in saved["state_dict"] if "term" in n] == ["term_modules.alignment.projection.weight"]
    again = made()
    assert load_weights(again, saved, weights="online") == "online"
    assert_same(dict(again.state_dict()), dict(one.state_dict()))
    _, resumed = fit(tmp_path, callbacks(16), module=made(), resume=tmp_path / "checkpoints" / "last")
    assert resumed.images_seen == 16
