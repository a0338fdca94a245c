"""Bottlenecks: what latents there can be, in both kinds of autoencoders, and that a file brings them back."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.codecs.contract import LatentContract
from ldm.codecs.kl import KLCodec, write_autoencoder
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.autoencoder_dc import AutoencoderDC
from ldm.nn.bottlenecks import (
    FSQ,
    VQ,
    Bottleneck,
    Deterministic,
    FixedNoise,
    FSQLayer,
    Gaussian,
    VQLayer,
    bottleneck_from,
    describe_bottleneck,
)
from ldm.nn.vector_quantizer import VectorQuantizer

ALL: dict[str, Bottleneck] = {
    "gaussian": Gaussian(),
    "deterministic": Deterministic(),
    "fixed_noise": FixedNoise(std=0.2, bound=2.0),
    "fsq": FSQ(levels=[4, 3]),
    "vq": VQ(num_codes=6),
    "vq by gradients": VQ(num_codes=6, decay=None),
}


def networks(bottleneck: Bottleneck | None) -> list[Autoencoder]:
    torch.manual_seed(0)
    return [
        AutoencoderKL(
            latent_channels=2,
            channels=(8, 8),
            blocks_per_level=1,
            num_groups=4,
            quant_convs=True,
            bottleneck=bottleneck,
        ),
        AutoencoderDC(
            latent_channels=2,
            channels=(8, 8),
            encoder_blocks=(1, 1),
            decoder_blocks=(1, 1),
            attention_levels=1,
            head_width=4,
            bottleneck=bottleneck,
        ),
    ]


@pytest.mark.parametrize("name", ALL)
def test_every_bottleneck_goes_with_every_network_and_into_its_file(name: str, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    for network in networks(ALL[name]):
        moments = network.encode(images)
        assert moments.shape == (2, 4, 4, 4)
        mean, log_var = moments.chunk(2, dim=1)
        assert network.decode(mean).shape == images.shape
        contract = LatentContract(mean=(0.1, 0.2), std=(1.0, 2.0), downsample=2, num_images=1)
        write_autoencoder(tmp_path / "a.safetensors", autoencoder=network, contract=contract)
        codec = KLCodec(path=str(tmp_path / "a.safetensors"))
        # Without gradients torch takes other kernels for some layers.
        torch.testing.assert_close(codec.moments(images), moments, rtol=1e-4, atol=1e-5)
        latents = codec.latents(moments, noise=None)
        back = latents * codec.std + codec.mean
        torch.testing.assert_close(codec.decode(latents), network.decode(back), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(back, mean, rtol=1e-4, atol=1e-4)
        assert bool((log_var > -30).all()) == (name in ("gaussian", "fixed_noise"))


@pytest.mark.parametrize("name", ALL)
def test_a_description_makes_the_same_bottleneck(name: str) -> None:
    assert bottleneck_from(describe_bottleneck(ALL[name])) == ALL[name]


def test_what_a_network_has_by_itself_leaves_its_description_as_it_was() -> None:
    """So files from before there was a choice keep their hash."""
    for network in networks(None):
        assert "bottleneck" not in network.architecture
    for network, default in zip(networks(Gaussian()), (True, False), strict=True):
        assert ("bottleneck" not in network.architecture) == default
    with pytest.raises(ValueError, match="bottleneck 'Tea' is not known here"):
        bottleneck_from({"is": "Tea"})


def test_encoding_parts_are_all_but_the_decoder() -> None:
    for network in networks(VQ(num_codes=4)):
        for part in network.encoding_parts():
            part.requires_grad_(False)
        left = {name.split(".")[0] for name, x in network.named_parameters() if x.requires_grad}
        assert left <= {"decoder", "post_quant_conv"} and "decoder" in left


# --- finite scalar quantisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[2, 3], [4, 5], [8, 5, 5, 5]])
def test_each_channel_has_its_levels_and_each_code_its_number(levels: list[int]) -> None:
    layer = FSQ(levels=levels).build(len(levels))
    assert isinstance(layer, FSQLayer)
    h = torch.linspace(-8, 8, 4001)[None, None, None, :].expand(1, len(levels), 1, -1)
    mean = layer.moments(h)[:, : len(levels)]
    seen = layer.enter(mean)  # (1, C, 1, 4001)
    for channel, count in enumerate(levels):
        values = seen[0, channel, 0].unique().tolist()
        expected = [(step - count // 2) / (count // 2) for step in range(count)]
        assert values == pytest.approx(expected), "equal steps, zero among them"
        widths = [int((seen[0, channel, 0] == value).sum()) for value in values]
        assert min(widths) > 50, "each can be reached from a finite encoder output"
    grid = torch.tensor(list(itertools.product(*[range(n) for n in levels])), dtype=torch.float32)
    half = torch.tensor([n // 2 for n in levels])
    codes = layer.codes(((grid - half) / half)[:, :, None, None])
    assert sorted(codes.flatten().tolist()) == list(range(math.prod(levels)))


def test_rounding_lets_gradients_through_and_brings_back_what_lies_beyond() -> None:
    layer = FSQ(levels=[4, 5]).build(2)
    latents = torch.tensor([-9.0, -0.3, 0.4, 9.0])[None, None, None, :].repeat(1, 2, 1, 1).requires_grad_()
    out = layer.enter(latents)
    assert out[0, 0, 0].tolist() == pytest.approx([-1.0, -0.5, 0.5, 0.5])  # four levels: -1, -1/2, 0, 1/2
    assert out[0, 1, 0].tolist() == pytest.approx([-1.0, -0.5, 0.5, 1.0])
    weights = torch.randn(out.shape)
    (out * weights).sum().backward()
    assert latents.grad is not None and torch.equal(latents.grad, weights)


def test_levels_for_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"levels=\[4, 4, 4\] are 3 and the latents have 2 channels"):
        networks(FSQ(levels=[4, 4, 4]))


# --- fixed noise ------------------------------------------------------------------------------------------------


def test_an_encoder_cannot_outgrow_the_noise() -> None:
    layer = FixedNoise(std=0.1, bound=1.5).build(3)
    mean, log_var = layer.moments(1e3 * torch.randn(2, 3, 4, 4)).chunk(2, dim=1)
    assert float(mean.abs().max()) <= 1.5
    torch.testing.assert_close((0.5 * log_var).exp(), torch.full_like(log_var, 0.1))
    small = 1e-3 * torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer.moments(small)[:, :3], small, rtol=1e-4, atol=0)


# --- vector quantisation ----------------------------------------------------------------------------------------


def clusters(num: int, *, seed: int, centres: Tensor) -> Tensor:
    """Latents (num, C, 4, 4) close about the centres (K, C), evenly."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(centres), (num, 4, 4), generator=generator)
    points = centres[which] + 0.01 * torch.randn(num, 4, 4, centres.shape[1], generator=generator)
    return points.permute(0, 3, 1, 2)


def test_the_nearest_code_is_taken_and_gradients_pass_it_by() -> None:
    layer = VQ(num_codes=7, decay=None).build(3)
    assert isinstance(layer, VQLayer)
    latents = torch.randn(2, 3, 4, 5, requires_grad=True)
    rows = latents.detach().permute(0, 2, 3, 1).reshape(-1, 3)
    codebook = layer.quantizer.codebook.detach()
    expected = torch.cdist(rows, codebook).argmin(dim=1).view(2, 4, 5)
    assert torch.equal(layer.quantizer.codes(latents), expected)
    out = layer.enter(latents)
    torch.testing.assert_close(out.detach(), codebook[expected].permute(0, 3, 1, 2))
    weights = torch.randn(out.shape)
    (out * weights).sum().backward()
    assert latents.grad is not None and torch.equal(latents.grad, weights)
    assert layer.quantizer.codebook.grad is None


def test_running_means_find_the_clusters_and_use_every_code() -> None:
    """Codes begin anywhere, most of them where no latent is; a far code is put beside a busy one, and both settle."""
    torch.manual_seed(0)
    centres = 5 + 3 * torch.randn(8, 2)
    quantizer = VectorQuantizer(num_codes=8, width=2, decay=0.5, revive_below=0.5)
    for step in range(60):
        quantizer.see(clusters(16, seed=step, centres=centres))
        quantizer.settle(lambda x: x)
    nearest = torch.cdist(centres, quantizer.codebook).min(dim=1).values
    assert float(nearest.max()) < 0.3
    codes = quantizer.codes(clusters(64, seed=99, centres=centres))
    assert len(codes.unique()) == 8


def test_pieces_and_processes_settle_as_one_batch_does_and_what_is_forgotten_does_nothing() -> None:
    def settled(pieces: list[Tensor], others: list[Tensor] | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        mine, theirs = (VectorQuantizer(num_codes=5, width=2, decay=0.9, revive_below=0.01) for _ in range(2))
        theirs.load_state_dict(mine.state_dict())
        for piece in pieces:
            mine.see(piece)
        for piece in others or []:
            theirs.see(piece)
        theirs_seen = iter(theirs._seen or ())
        mine.settle(lambda x: x + next(theirs_seen) if others else x)
        return mine.state_dict()

    latents = torch.randn(8, 2, 4, 4)
    whole = settled([latents])
    torch.testing.assert_close(settled(list(latents.split(2))), whole)
    torch.testing.assert_close(settled([latents[:4]], [latents[4:]]), whole)

    torch.manual_seed(0)
    quantizer = VectorQuantizer(num_codes=5, width=2, decay=0.9, revive_below=0.01)
    before = {name: x.clone() for name, x in quantizer.state_dict().items()}
    quantizer.see(latents)
    quantizer.forget()
    quantizer.settle(lambda x: x)
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
