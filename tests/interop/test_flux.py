from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from ldm.interfaces import Conditioning
from ldm.interop.flux import FluxMap, FluxOriginal
from ldm.interop.weights import to_ours, to_theirs
from tests.interop.witness import assert_agrees, translated, with_random_weights

DEV: dict[str, Any] = {  # transformer/config.json of black-forest-labs/FLUX.1-dev
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
SCHNELL: dict[str, Any] = {**DEV, "guidance_embeds": False}  # of black-forest-labs/FLUX.1-schnell


def tiny(**changes: Any) -> FluxTransformer2DModel:
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "joint_attention_dim": 20,
        "pooled_projection_dim": 12,
        "axes_dims_rope": (4, 4, 4),
    }
    return with_random_weights(FluxTransformer2DModel(**{**config, **changes}))


def question(guidance: bool) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    torch.manual_seed(0)
    cond = Conditioning(
        tokens=torch.randn(2, 5, 20),
        mask=torch.ones(2, 5, dtype=torch.bool),
        pooled=torch.randn(2, 12),
        guidance=torch.tensor([1.0, 3.5]) if guidance else None,
    )
    return torch.randn(2, 4, 6, 10), torch.tensor([0.37, 0.999]), cond


@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
def test_agrees_with_diffusers(guidance: bool) -> None:
    assert_agrees(FluxMap(), tiny(guidance_embeds=guidance), *question(guidance))


def test_a_guidance_that_is_not_given_is_the_networks_own() -> None:
    ours = translated(FluxMap(), tiny(guidance_embeds=True))
    x, t, cond = question(guidance=True)
    unsaid = ours(x, t, replace(cond, guidance=None))
    assert torch.equal(unsaid, ours(x, t, replace(cond, guidance=torch.full((2,), 3.5))))
    assert not torch.allclose(unsaid[0], ours(x, t, cond)[0])


def test_the_original_layout_is_what_diffusers_converts_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their conversion splits fused projections at a width of 3072 written into it, so ours are cut out as they are."""
    theirs = tiny(guidance_embeds=True)
    ours = translated(FluxMap(), theirs)
    original = to_theirs(FluxOriginal().rules(ours), ours)
    for name, tensor in to_ours(FluxOriginal().rules(ours), original, ours).items():
        assert torch.equal(tensor, ours.state_dict()[name])
    converted = converted_by_diffusers(original, width=24)
    state = theirs.state_dict()
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def converted_by_diffusers(original: dict[str, torch.Tensor], *, width: int) -> dict[str, torch.Tensor]:
    """Their function with its constant set to our width."""
    from types import CodeType, FunctionType

    from diffusers.loaders.single_file_utils import (
        convert_flux_transformer_checkpoint_to_diffusers as convert,
    )

    code: CodeType = convert.__code__
    constants = tuple(width if constant == 3072 else constant for constant in code.co_consts)
    resized = FunctionType(code.replace(co_consts=constants), convert.__globals__)
    return resized(dict(original))


@pytest.mark.parametrize("config", [DEV, SCHNELL], ids=["flux", "flux_schnell"])
def test_full_size_has_as_many_parameters(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        theirs, ours = FluxTransformer2DModel(**config), FluxMap().build(config)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert FluxMap().config(ours).items() >= config.items()


def test_what_has_no_counterpart_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="in_channels=65"):
        FluxMap().build({**DEV, "in_channels": 65})
    with pytest.raises(ValueError, match="out_channels=32"):
        FluxMap().build({**DEV, "out_channels": 32})
