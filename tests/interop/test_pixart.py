import pytest
import torch

from ldm.interfaces import Conditioning
from ldm.interop.pixart import PixArtMap
from ldm.nn.layers import GELU, SiLU
from ldm.nn.pixart import PixArt
from ldm.nn.positions import Rotary, SinCos
from tests.interop.witness import assert_agrees, translated, with_random_weights

diffusers = pytest.importorskip("diffusers")

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "cross_attention_dim": 24,
    "sample_size": 8,
    "patch_size": 2,
    "interpolation_scale": 1,
    "use_additional_conditions": True,
    "caption_channels": 20,
}

# transformer/config.json of PixArt-alpha/PixArt-XL-2-1024-MS, of the elder class that this one came out of.
PUBLISHED = {
    "_class_name": "Transformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "attention_type": "default",
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "double_self_attention": False,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 128,
    "upcast_attention": False,
    "use_linear_projection": False,
}


def theirs(**changes):
    return with_random_weights(diffusers.PixArtTransformer2DModel(**{**TINY, **changes}))


def inputs(size=(8, 8), *, sizes=True):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2:] = False
    cond = Conditioning(
        tokens=torch.randn(3, 5, 20, generator=generator),
        mask=mask,
        pooled=torch.zeros(3, 0),
        sizes=torch.tensor([[64, 48, 0, 0, 64, 64], [100, 200, 3, 4, 64, 128], [8, 8, 0, 0, 8, 8]])
        if sizes
        else None,
    )
    return torch.randn(3, 4, *size, generator=generator), torch.tensor([0.0, 0.5, 0.999]).double(), cond


@pytest.mark.parametrize("size", [(8, 8), (12, 4)])
@pytest.mark.parametrize("micro", [True, False])
def test_agrees_with_diffusers(size, micro):
    model = theirs(use_additional_conditions=micro, interpolation_scale=2)
    assert_agrees(PixArtMap(), model, *inputs(size, sizes=micro))


def test_config_comes_back():
    config = PixArtMap().config(translated(PixArtMap(), theirs()))
    assert config == TINY
    assert PixArtMap().config(PixArtMap().build(config)) == config


def test_what_the_config_leaves_out_is_their_default():
    config = {key: value for key, value in PUBLISHED.items() if key != "sample_size"}
    with torch.device("meta"):
        network = PixArtMap().build(config)
    assert network.size_embedding is not None and network.positions == SinCos(base_size=64, scale=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"caption_channels": None},
        {"cross_attention_dim": 20},
        {"norm_type": "ada_norm_zero"},
        {"norm_eps": 1e-5},
    ],
)
def test_another_network_under_the_same_name_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        PixArtMap().build({**TINY, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mlp_ratio": 2.0}, "mlp_ratio=4"),
        ({"activation": SiLU()}, "GELU"),
        ({"positions": Rotary()}, "SinCos"),
    ],
)
def test_what_theirs_cannot_be_is_named(changes, message):
    options = {
        "in_channels": 4,
        "patch_size": 2,
        "width": 24,
        "depth": 1,
        "num_heads": 2,
        "context_width": 20,
    }
    with pytest.raises(ValueError, match=f"it has.*{message}"):
        PixArtMap().config(PixArt(**{**options, "activation": GELU(), **changes}))


def test_the_published_network_has_as_many_parameters():
    known = {key: value for key, value in PUBLISHED.items() if key in TINY}
    with torch.device("meta"):
        network = PixArtMap().build(PUBLISHED)
        model = diffusers.PixArtTransformer2DModel(**known)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in model.parameters())
