"""Terms and disturbances of an autoencoder's training: what they say, and which weights they move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.codecs.contract import LatentContract
from ldm.codecs.kl import write_autoencoder
from ldm.nn.bottlenecks import FSQ, VQ, FixedNoise
from ldm.training.autoencoder_loss import (
    AbsoluteError,
    Charbonnier,
    CodebookLoss,
    KLDivergence,
    SquaredError,
)
from ldm.training.autoencoder_pass import Draw, Pass
from ldm.training.disturbances import ChannelMasking, Equivariance, LatentNoise, transformed
from ldm.training.features import AutoencoderFeatures, Features
from ldm.training.latent_terms import EquivarianceError, FeatureAlignment, ScaleEquivariance
from ldm.training.perceptual_terms import DiscriminatorFeatures, FeatureDistance, PerceptualDistance
from tests.nn.test_perceptual import written
from tests.training.autoencoders import adversary, autoencoder, module, moved, passed


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished autoencoder."""
    path = tmp_path_factory.mktemp("finished") / "autoencoder.safetensors"
    contract = LatentContract(mean=(0.0, 0.5), std=(1.0, 2.0), downsample=2, num_images=9)
    write_autoencoder(path, autoencoder=autoencoder(seed=5), contract=contract)
    return str(path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    from ldm.nn.perceptual import vgg16

    torch.manual_seed(0)
    return written(tmp_path_factory.mktemp("classifier"), vgg16())


BOTH, ENCODER = {"encoder", "decoder"}, {"encoder"}


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "term, expected",
    [
        (SquaredError(), BOTH),
        (AbsoluteError(), BOTH),
        (Charbonnier(), BOTH),
        (KLDivergence(), ENCODER),
        (ScaleEquivariance(), BOTH),
        (EquivarianceError(), BOTH),
        (DiscriminatorFeatures(), BOTH),
        ("lpips", BOTH),
        ("features", BOTH),
        ("alignment", ENCODER),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_a_term_moves_what_it_should_and_nothing_else(
    term: Any, expected: set[str], file: str, classifier: tuple[str, str]
) -> None:
    made = {
        "lpips": lambda: PerceptualDistance(classifier=classifier[0], heads=classifier[1]),
        "features": lambda: FeatureDistance(features=AutoencoderFeatures(path=file)),
        "alignment": lambda: FeatureAlignment(
            features=AutoencoderFeatures(path=file), latent_channels=2, margin_cosine=0.0, margin_distance=0.0
        ),
    }
    term = made[term]() if isinstance(term, str) else term
    network, judge = autoencoder(), adversary()
    seen = enlarged(network, 16, judge) if isinstance(term, PerceptualDistance) else passed(
        network, discriminator=judge.discriminator
    )  # fmt: skip
    value = term(seen)
    assert value.shape == () and float(value) > 0
    value.backward()
    assert rooms(moved(network)) == expected
    assert not moved(judge.discriminator)
    if isinstance(term, torch.nn.Module):
        trained = (
            {id(x) for x in term.trained().parameters()} if isinstance(term, FeatureAlignment) else set()
        )
        for name, x in term.named_parameters():
            assert (x.grad is not None) == (id(x) in trained), name


def enlarged(network: Any, side: int, judge: Any) -> Pass:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    from ldm.training.autoencoder_pass import run

    draw = Draw(seed=0, keys=["a", "b"], visits=[0, 0], step=0)
    return run(network, images, draw, disturbances={}, discriminator=judge.discriminator)


def test_a_codebook_by_gradients_moves_towards_latents_and_latents_towards_it() -> None:
    network = autoencoder(VQ(num_codes=5, decay=None))
    CodebookLoss(commitment=0.25)(passed(network)).backward()
    assert rooms(moved(network)) == {"encoder", "bottleneck"}
    network = autoencoder(VQ(num_codes=5))
    CodebookLoss()(passed(network)).backward()
    assert rooms(moved(network)) == {"encoder"}
    # Of the two distances, equal in value, each has its own weight.
    network = autoencoder(VQ(num_codes=5, decay=None))
    seen = passed(network)
    assert isinstance(seen.latents, Tensor)
    nearest = network.bottleneck.enter(seen.latents)
    expected = 1.25 * F.mse_loss(nearest, seen.latents)
    torch.testing.assert_close(CodebookLoss(commitment=0.25)(seen), expected)


def test_divergence_of_what_has_no_spread_of_its_own_is_the_means_part() -> None:
    for bottleneck in (FixedNoise(), FSQ(levels=[3, 3])):
        seen = passed(autoencoder(bottleneck))
        mean, _ = seen.moments.chunk(2, dim=1)
        torch.testing.assert_close(KLDivergence()(seen), 0.5 * mean.square().mean())


# --- disturbances -------------------------------------------------------------------------------------------------


def draws(step: int = 0, size: int = 64) -> Draw:
    return Draw(seed=3, keys=[str(i) for i in range(size)], visits=[0] * size, step=step)


def test_pictures_and_latents_are_changed_alike() -> None:
    """A latent that is a picture shrunk to its stride stays one."""
    picture = torch.rand(2, 3, 4, 8)
    images = picture.repeat_interleave(4, 2).repeat_interleave(4, 3)  # stride 4
    for turns in range(4):
        x, z = transformed(images, picture, scale=1.0, turns=turns)
        torch.testing.assert_close(x[:, :, ::4, ::4], z)
    x, z = transformed(images, picture, scale=0.5, turns=1)
    assert z.shape == (2, 3, 4, 2) and x.shape == (2, 3, 16, 8)
    torch.testing.assert_close(F.avg_pool2d(x, 4), z, rtol=0.3, atol=0.1)


def test_equivariance_acts_in_its_share_of_the_steps_on_all_pictures_alike() -> None:
    images, latents = torch.randn(2, 3, 16, 16), torch.randn(2, 2, 8, 8)
    act = Equivariance(share=0.5, smallest=0.25)
    sizes = [act(images, latents, draws(step, 2))[1].shape[-1] for step in range(400)]
    plain = sum(size == 8 and act(images, latents, draws(i, 2))[0] is images for i, size in enumerate(sizes))
    assert 150 < plain < 250
    assert set(sizes) == {2, 3, 4, 5, 6, 7, 8}
    again = act(images, latents, draws(7, 2))[1]
    other = Draw(seed=3, keys=["x"], visits=[5], step=7)  # another process's share of the step
    assert act(images[:1], latents[:1], other)[1].shape[1:] == again.shape[1:]


def test_channels_are_kept_from_the_first_on() -> None:
    latents = torch.ones(64, 4, 2, 2)
    images, out = ChannelMasking(kept=[1, 3])(torch.zeros(64, 3, 4, 4), latents, draws())
    kept = out[:, :, 0, 0].sum(dim=1)
    assert set(kept.tolist()) == {1.0, 3.0}
    assert torch.equal(out[:, 0], latents[:, 0]) and not out[:, 3].any()
    with pytest.raises(ValueError, match="latents that have 4 channels"):
        ChannelMasking(kept=[5])(images, latents, draws())


def test_latents_are_blended_with_noise_by_the_papers_law() -> None:
    """z' = (1 - tau) z + tau gamma eps with tau even in [0, 1]: E z' = z / 2, Var z' = z^2 / 12 + gamma^2 / 3."""
    num, gamma = 4000, 3.0
    latents = torch.full((num, 1, 4, 4), 2.0)
    _, out = LatentNoise(gamma=gamma)(torch.zeros(num, 3, 8, 8), latents, draws(size=num))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(out.var()) == pytest.approx(4 / 12 + gamma**2 / 3, rel=0.05)


# --- equivariance, alignment --------------------------------------------------------------------------------------


class Enlarging:
    """An autoencoder whose latents are small pictures: the decoder only enlarges, so it turns with its latents."""

    bottleneck = None

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_what_turns_with_its_latents_has_no_error_of_turning() -> None:
    latents = torch.rand(2, 3, 4, 4)
    network = Enlarging()
    images = network.decode(latents)
    seen = Pass(
        originals=images,
        images=images,
        moments=latents,
        latents=latents,
        reconstructions=images,
        autoencoder=network,  # type: ignore[arg-type]
        draw=draws(size=2),
    )
    assert float(EquivarianceError(scales=[1.0])(seen)) == pytest.approx(0.0, abs=1e-12)
    assert 0 < float(EquivarianceError(scales=[0.5], turns=[0])(seen)) < 0.5
    assert float(ScaleEquivariance(factors=[2])(seen)) < float(images.var())
    wrong = Pass(**{**vars(seen), "latents": latents.flip(3)})
    assert float(EquivarianceError(scales=[1.0])(wrong)) > 0.5


class Given(Features):
    """Maps that are given."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps, self.widths = maps, [maps.shape[1]]

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.maps]


def test_aligned_latents_cost_nothing_and_margins_forgive() -> None:
    torch.manual_seed(0)
    seen = passed(autoencoder(), size=2)
    exact = FeatureAlignment(
        features=Given(3.0 * seen.latents.detach()),
        latent_channels=2,
        margin_cosine=0.0,
        margin_distance=0.0,
    )
    with torch.no_grad():
        exact.projection.weight.copy_(torch.eye(2)[:, :, None, None])
    assert float(exact(seen)) == pytest.approx(0.0, abs=1e-5)
    opposite = FeatureAlignment(features=Given(-seen.latents.detach()), latent_channels=2)
    with torch.no_grad():
        opposite.projection.weight.copy_(torch.eye(2)[:, :, None, None])
    assert float(opposite(seen)) == pytest.approx(1.5, abs=1e-4)  # relu(1 - 0.5 + 1), distances agree
    with pytest.raises(ValueError, match="latent_channels=2, and the autoencoder has 3"):
        module(autoencoder=autoencoder(channels=3), terms={"error": SquaredError(), "alignment": opposite})


# --- what does not go together ------------------------------------------------------------------------------------


def test_terms_that_do_not_go_with_the_training_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a discriminator: add one by terms=\[adversary\]"):
        module(terms={"error": SquaredError(), "features": DiscriminatorFeatures()})
    with pytest.raises(ValueError, match="for bottleneck=vq"):
        module(terms={"error": SquaredError(), "codebook": CodebookLoss()})
    with pytest.raises(ValueError, match="bottleneck=vq needs the term CodebookLoss"):
        module(autoencoder=autoencoder(VQ(num_codes=4)))
    with pytest.raises(ValueError, match="terms is empty"):
        module(terms={"error": None, "measured": EquivarianceError()})
