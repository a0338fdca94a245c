"""A discriminator and an autoencoder in one backward pass: whose gradients go where, when, and how strong."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from ldm.nn.discriminator import PatchDiscriminator
from ldm.training.adversary import (
    R1,
    FixedBalance,
    GradientBalance,
    Hinge,
    NonSaturating,
    linear,
)
from ldm.training.autoencoder_pass import Draw, run
from ldm.training.optim import AdamW, Joined, weights_apart
from tests.training.autoencoders import adversary, autoencoder, module, moved, passed
from tests.training.tiny import batch_at


def test_the_losses_are_the_papers() -> None:
    real, made = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert float(Hinge().discriminator(real, made)) == pytest.approx(0.5 * (0.25 + 0.75))
    assert float(Hinge().generator(made)) == pytest.approx(0.75)
    sigmoid = [[1 / (1 + math.exp(-x)) for x in logits] for logits in (real.tolist(), made.tolist())]
    expected = -0.5 * sum(math.log(p) + math.log(1 - q) for p, q in zip(*sigmoid, strict=True)) / 2
    assert float(NonSaturating().discriminator(real, made)) == pytest.approx(expected)
    assert float(NonSaturating().generator(made)) == pytest.approx(
        -sum(math.log(q) for q in sigmoid[1]) / 2, rel=1e-5
    )


def test_a_discriminators_logits_of_a_picture_do_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(channels=8, num_halvings=2, num_groups=4)
    images = torch.randn(4, 3, 32, 32)
    together = network(images)
    assert together.shape[:2] == (4, 1) and together.shape[2] > 1
    torch.testing.assert_close(torch.cat([network(image[None]) for image in images]), together)
    assert [f.shape[1] for f in network.features(images)] == [8, 16, 32]


def test_a_linear_stand_in_has_the_value_and_the_slope() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    value = (x**3).sum()
    (slope,) = torch.autograd.grad(value, x)
    y = torch.randn(3, 2, requires_grad=True)
    stand_in = linear(y * 2, slope, value=value)
    assert float(stand_in) == pytest.approx(float(value))
    stand_in.backward()
    assert y.grad is not None and x.grad is None
    torch.testing.assert_close(y.grad, 2 * slope)


@pytest.mark.parametrize("loss", [Hinge(), NonSaturating()])
@pytest.mark.parametrize("penalty", [None, R1(gamma=2.0)])
def test_each_loss_moves_its_own_weights_alone(loss: object, penalty: R1 | None) -> None:
    network, judge = autoencoder(), adversary(loss=loss, penalty=penalty)
    seen = passed(network)
    judged = judge(seen, (seen.reconstructions - seen.images).square().mean(), images_seen=0, num_images=4)

    judged.discriminator.backward(retain_graph=True)
    assert not moved(network), "the discriminator's loss leaks into the autoencoder"
    # A shift of all logits has no gradient from a hinge that is open everywhere, so the last bias may stand still.
    assert moved(judge.discriminator) >= {n for n, _ in judge.discriminator.named_parameters()} - {
        "logits.bias"
    }

    judge.discriminator.zero_grad(set_to_none=True)
    judged.generator.backward()
    assert not moved(judge.discriminator), "the autoencoder's loss leaks into the discriminator"
    names = {name for name, _ in network.named_parameters()}
    assert {name for name in names if name.startswith("decoder")} <= moved(network)
    assert any(name.startswith("encoder") for name in moved(network))


def test_one_backward_pass_is_the_step_of_two_in_turn() -> None:
    """Against two optimizers and two passes by hand: the generator's step, then the discriminator's."""
    judge = adversary(balance=FixedBalance(), penalty=R1(gamma=0.5), weight=0.3)
    # Some weights, such as a bias that all keys share, have no gradient but for rounding, which eps keeps small.
    recipe, judges = AdamW(lr=2e-3, eps=1e-3), AdamW(lr=1e-3, beta1=0.5, eps=1e-3)
    judge = dataclasses.replace(judge, optimizer=judges)
    ours = module(autoencoder=autoencoder(), adversary=judge, optimizer=recipe)
    network, discriminator = autoencoder(), copy.deepcopy(judge.discriminator)
    first, second = recipe({"a": network}), judges({"d": discriminator})
    joint = ours.configure_optimizers()
    assert isinstance(joint, Joined)
    for step in range(4):
        batch = batch_at(4 * step)
        joint.zero_grad()
        ours.training_step(batch, step).backward()
        joint.step()

        draw = Draw.of(batch, seed=ours.seed, step=4 * step)
        seen = run(network, batch.images, draw, disturbances={})
        mean, log_var = seen.moments.chunk(2, dim=1)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        error = (seen.reconstructions - seen.images).square().mean()
        first.zero_grad()
        (error + 1e-3 * kl - 0.3 * discriminator(seen.reconstructions).mean()).backward()
        first.step()
        second.zero_grad()
        real = seen.images.clone().requires_grad_()
        logits = discriminator(real)
        made = discriminator(seen.reconstructions.detach())
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalty = 0.25 * slope.square().sum(dim=(1, 2, 3)).mean()
        (0.5 * (torch.relu(1 - logits).mean() + torch.relu(1 + made).mean()) + penalty).backward()
        second.step()
    torch.testing.assert_close(ours.autoencoder.state_dict(), network.state_dict(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        judge.discriminator.state_dict(), discriminator.state_dict(), rtol=1e-4, atol=1e-6
    )


def test_both_pull_equally_at_the_last_layer() -> None:
    network, judge = autoencoder(), adversary(weight=1.0, balance=GradientBalance(delta=0.0))
    seen = passed(network)
    reconstruction = (seen.reconstructions - seen.images).abs().mean()
    judged = judge(seen, reconstruction, images_seen=0, num_images=4)
    last = network.last_layer.weight
    pulls = [
        torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (reconstruction, judged.generator)
    ]
    torch.testing.assert_close(pulls[0], pulls[1])
    value = judge.loss.generator(judge.discriminator(seen.reconstructions))
    torch.testing.assert_close(judged.generator, judged.figures["adversarial_strength"] * value)


def test_a_discriminator_that_says_nothing_gets_no_endless_weight() -> None:
    network, judge = autoencoder(), adversary(weight=1.0)
    for weight in judge.discriminator.parameters():
        nn.init.zeros_(weight)
    seen = passed(network)
    judged = judge(seen, seen.reconstructions.square().mean(), images_seen=0, num_images=4)
    assert float(judged.figures["adversarial_strength"]) <= 1e4


def test_it_begins_and_warms_up_by_pictures() -> None:
    judge = adversary(start_images=100, warmup_images=40)
    assert not judge.has_begun(99) and judge.has_begun(100)
    assert [judge.ramp(x) for x in (100, 120, 140, 500)] == [0.0, 0.5, 1.0, 1.0]
    lazy = R1(gamma=2.0, every_num_images=32)
    factors = [lazy.factor(before, 8) for before in range(0, 64, 8)]
    assert factors == [0, 0, 0, 4.0, 0, 0, 0, 4.0], "as much as one of 1 in each step"
    assert R1(gamma=2.0).factor(0, 8) == 1.0


def test_the_penalty_is_the_squared_slope_on_real_pictures() -> None:
    class Plane(nn.Module):
        """Logits whose slope is known."""

        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.randn(3, 8, 8))

        def forward(self, images: Tensor) -> Tensor:
            return (images * self.slope).sum(dim=(1, 2, 3))

    plane = Plane()
    judge = adversary(discriminator=plane, penalty=R1(gamma=3.0), loss=NonSaturating())
    seen = passed(autoencoder())
    with_it = judge(seen, seen.reconstructions.square().mean(), images_seen=0, num_images=4)
    torch.testing.assert_close(with_it.figures["r1"], plane.slope.detach().square().sum())
    without = adversary(discriminator=plane, loss=NonSaturating())
    plain = without(seen, seen.reconstructions.square().mean(), images_seen=0, num_images=4)
    (a,) = torch.autograd.grad(with_it.discriminator, plane.slope)
    (b,) = torch.autograd.grad(plain.discriminator, plane.slope)
    torch.testing.assert_close(a - b, 3.0 * plane.slope.detach())  # of gamma / 2 |slope|^2


def test_each_optimizer_has_its_own_weights_and_its_own_recipe() -> None:
    judge = adversary(optimizer=AdamW(lr=5e-4, beta1=0.0))
    ours = module(adversary=judge)
    apart = weights_apart(ours.configure_optimizers())
    assert {id(x) for x in apart["autoencoder"]} == {id(x) for x in ours.autoencoder.parameters()}
    assert {id(x) for x in apart["discriminator"]} == {id(x) for x in judge.discriminator.parameters()}
    groups = ours.configure_optimizers().param_groups
    assert {(group["lr"], group["betas"][0]) for group in groups} == {(2e-3, 0.9), (5e-4, 0.0)}
    assert list(weights_apart(module().configure_optimizers())) == [""]
