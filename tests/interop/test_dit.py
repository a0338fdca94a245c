import pytest
import torch

from ldm.interfaces import Conditioning
from ldm.interop.dit import DiTMap
from ldm.interop.weights import to_ours, to_theirs
from ldm.nn.dit import DiT
from ldm.nn.layers import GELU
from ldm.nn.positions import SinCos
from tests.interop.witness import translated, with_random_weights

diffusers = pytest.importorskip("diffusers")

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
}

# transformer/config.json of facebook/DiT-XL-2-256, of the elder class that DiTTransformer2DModel came out of.
PUBLISHED = {
    "_class_name": "Transformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_linear_projection": False,
}


def theirs(**changes):
    """Random, but with one embedding of time and label in all blocks, as in the published weights."""
    model = with_random_weights(diffusers.DiTTransformer2DModel(**{**TINY, **changes}))
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def ours(model):
    return translated(DiTMap(), model)


def inputs(size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    nothing = torch.zeros(3, 1, 0)
    cond = Conditioning(nothing, torch.ones(3, 1, dtype=torch.bool), nothing[:, 0], torch.tensor([0, 4, 5]))
    return torch.randn(3, 4, *size, generator=generator), torch.tensor([0.0, 0.5, 0.999]).double(), cond


@pytest.mark.parametrize("changes", [{}, {"out_channels": None, "norm_eps": 1e-6, "patch_size": 4}])
def test_outputs_agree(changes):
    model = theirs(**changes)
    network = ours(model)
    for size in ((8, 8), (16, 16)):  # the second has other positions than theirs was built with
        x, t, cond = inputs(size)
        torch.testing.assert_close(network(x, t, cond), DiTMap().call(model, x, t, cond), rtol=0, atol=1e-5)


def test_gradients_agree():
    model = theirs()
    network = ours(model)
    network.drop_variance = False
    x, t, cond = inputs()
    x.requires_grad_()
    wanted = torch.randn(3, 8, 8, 8)
    network(x, t, cond).mul(wanted).sum().backward()
    of_input, x.grad = x.grad, None
    model(x, timestep=1000 * t, class_labels=cond.labels).sample.mul(wanted).sum().backward()
    torch.testing.assert_close(of_input, x.grad, rtol=1e-4, atol=1e-4)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for rule in DiTMap().rules(network):  # of what stands once in ours, theirs are to be summed
        for copy in rule.copies:
            gradients[rule.theirs[0]] = gradients[rule.theirs[0]] + gradients[copy]
        for copy in rule.copies:
            gradients[copy] = gradients[rule.theirs[0]]
    reference = to_ours(DiTMap().rules(network), gradients, network)
    for name, parameter in network.named_parameters():
        scale = float(reference[name].abs().max())
        torch.testing.assert_close(parameter.grad, reference[name], rtol=1e-4, atol=1e-5 * max(scale, 1.0))


def test_weights_come_back_bit_for_bit_and_load():
    model = theirs()
    back = to_theirs(DiTMap().rules(ours(model)), ours(model))
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], x) for name, x in model.state_dict().items())
    other = diffusers.DiTTransformer2DModel.from_config(DiTMap().config(ours(model)))
    other.load_state_dict(back, strict=True)
    x, t, cond = inputs()
    assert torch.equal(DiTMap().call(other.eval(), x, t, cond), DiTMap().call(model, x, t, cond))


def test_config_comes_back():
    network = ours(theirs())
    config = DiTMap().config(network)
    assert config == {**TINY, "norm_eps": 1e-5}
    assert DiTMap().config(DiTMap().build(config)) == config


def test_blocks_with_embeddings_of_their_own_are_refused():
    model = theirs()
    with torch.no_grad():
        model.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight[0, 0] += 1
    with pytest.raises(
        ValueError, match=r"one tensor for all blocks.*transformer_blocks\.1\.norm1.emb.class_embedder"
    ):
        ours(model)


@pytest.mark.parametrize(
    "changes", [{"norm_type": "ada_norm_single"}, {"activation_fn": "geglu"}, {"cross_attention_dim": 8}]
)
def test_another_network_under_the_same_name_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        DiTMap().build({**TINY, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"context_width": 8}, "no captions"),
        ({"num_classes": None}, "class labels"),
        ({"qk_norm": True}, "qk_norm=false"),
        ({"rms_norm": True}, "rms_norm=false"),
        ({"gated": True}, "gated=false"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=4"),
        ({"frequency_shift": 0.0}, "frequency_shift=1"),
        ({"positions": SinCos(base_size=4, scale=2.0)}, "SinCos of scale 1"),
    ],
)
def test_what_theirs_cannot_be_is_named(changes, message):
    options = {"in_channels": 4, "patch_size": 2, "width": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
    options |= {
        "qk_norm": False,
        "frequency_shift": 1.0,
        "positions": SinCos(base_size=4),
        "activation": GELU(),
    }
    with pytest.raises(ValueError, match=f"it has.*{message}"):
        DiTMap().config(DiT(**{**options, **changes}))


def test_the_published_network_has_as_many_parameters():
    """Theirs has the embeddings of time and label once in each of 28 blocks."""
    known = {k: v for k, v in PUBLISHED.items() if k in DiTMap().config(ours(theirs()))}
    with torch.device("meta"):
        network = DiTMap().build(PUBLISHED)
        model = diffusers.DiTTransformer2DModel(**known)
    count = sum(p.numel() for p in network.parameters())
    shared = sum(p.numel() for p in model.transformer_blocks[0].norm1.emb.parameters())
    assert count + 27 * shared == sum(p.numel() for p in model.parameters())
    # Released as 675,129,632 with its table of positions, 256 x 1152, among the parameters.
    assert count + 256 * 1152 == 675_129_632
