import pytest
import torch
from torch import nn

from ldm.codecs.identity import IdentityCodec
from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import Flow
from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.time_samplers import Uniform
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Batch
from ldm.nn.blocks import Execution
from ldm.nn.dit import DiT
from ldm.sampling.grids import Uniform as UniformGrid
from ldm.sampling.guidance import Unguided
from ldm.sampling.samplers import Euler
from ldm.text.labels import ClassLabels
from ldm.training.diffusion_module import DiffusionModule
from ldm.training.module import refuse_other_shapes
from ldm.training.optim import AdamW, ConstantRate


def task(*, network=None, num_classes=3, **changes):
    if network is None:
        torch.manual_seed(0)
        network = DiT(in_channels=3, patch_size=2, width=16, depth=2, num_heads=2, num_classes=3)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    options = {
        "diffusion": Diffusion(
            schedule=RectifiedFlow(), parameterization=Flow(), time_sampler=Uniform(), weighting=Unweighted()
        ),
        "network": network,
        "text_encoder": ClassLabels(num_classes=num_classes),
        "codec": IdentityCodec(),
        "optimizer": AdamW(lr=1e-3),
        "lr_schedule": ConstantRate(),
        "sampler": Euler(),
        "grid": UniformGrid(),
        "guidance": Unguided(),
        "num_steps": 2,
        "num_images": 10,
        "image_size": 4,
    }
    return DiffusionModule(**{**options, **changes})


def gradients(module):
    batch = Batch(
        captions=["0", "", "2"],
        images=torch.linspace(-1, 1, 3 * 3 * 4 * 4).reshape(3, 3, 4, 4),
        moments=None,
        keys=["a", "b", "c"],
        visits=[0, 0, 0],
        slots=range(3),
        num_slots=3,
    )
    losses, *_ = module.losses(
        batch, torch.ones(3, dtype=torch.bool), torch.tensor([0.2, 0.5, 0.8]), purpose="noise"
    )
    losses.sum().backward()
    return [parameter.grad for parameter in module.network.parameters()]


def test_blocks_are_wrapped_for_training_only_and_train_the_same():
    module, plain = task(execution=Execution(checkpoint_blocks=True)), task()
    module.setup("validate")
    assert all("forward" not in vars(block) for block in module.network.blocks)
    module.setup("fit")
    assert all("forward" in vars(block) for block in module.network.blocks)
    for wrapped, reference in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(wrapped, reference)
    assert list(module.state_dict()) == list(plain.state_dict())


def test_a_network_without_blocks_is_refused_when_its_blocks_are_wanted():
    task(network=nn.Conv2d(3, 3, 1), execution=Execution(channels_last=True)).setup("fit")
    with pytest.raises(ValueError, match="Conv2d does not list its blocks"):
        task(network=nn.Conv2d(3, 3, 1), execution=Execution(compile=True)).setup("fit")


def test_other_classes_than_the_network_knows_are_refused():
    with pytest.raises(ValueError, match=r"wants 3 classes, but the text encoder tells 4.*num_classes=3"):
        task(num_classes=4)
    with pytest.raises(ValueError, match="the text encoder tells none"):
        task(text_encoder=nn.Identity())


def test_weights_of_another_size_are_refused_by_name():
    small, large = nn.Linear(2, 3), nn.Linear(2, 4)
    refuse_other_shapes(small, small.state_dict())
    with pytest.raises(ValueError, match=r"weight is \(4, 2\) and not \(3, 2\); bias is"):
        refuse_other_shapes(small, large.state_dict())
