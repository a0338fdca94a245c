"""One module trains every kind of autoencoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.codecs.kl import KLCodec
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.autoencoder_dc import AutoencoderDC
from ldm.training.autoencoder_loss import KLDivergence, SquaredError
from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.optim import AdamW, ConstantRate
from tests.training.tiny import batch_at

NETWORKS = {
    "kl": lambda: AutoencoderKL(latent_channels=2, channels=(8, 8), blocks_per_level=1, num_groups=4),
    "dc": lambda: AutoencoderDC(
        latent_channels=2,
        channels=(8, 8),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
        attention_levels=1,
        head_width=4,
    ),
}


@pytest.fixture(params=NETWORKS)
def module(request: pytest.FixtureRequest) -> AutoencoderModule:
    torch.manual_seed(0)
    autoencoder: Autoencoder = NETWORKS[request.param]()
    return AutoencoderModule(
        autoencoder=autoencoder,
        terms={"squared_error": SquaredError(), "kl": KLDivergence(weight=1e-4)},
        optimizer=AdamW(lr=2e-3),
        lr_schedule=ConstantRate(),
        num_images=100,
    )


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_training_lowers_the_error_and_leaves_a_codec(module: AutoencoderModule, tmp_path: Path) -> None:
    batch, optimizer = batch_at(0), module.configure_optimizers()
    losses = []
    for _ in range(12):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]

    path = tmp_path / "autoencoder.safetensors"
    contract = module.export(path, [batch])
    codec = KLCodec(path=str(path))
    assert codec.contract == contract and type(codec.autoencoder) is type(module.autoencoder)
    latents = codec.latents(codec.moments(batch.images), noise=None)
    reconstructions = codec.decode(latents).clamp(-1, 1)
    torch.testing.assert_close(reconstructions, module.reconstruct(batch.images), rtol=1e-4, atol=1e-4)
