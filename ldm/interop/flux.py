"""Flux and what others call it: diffusers' FluxTransformer2DModel, and the original single-file layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.interfaces import Conditioning
from ldm.interop.configs import refuse_unsupported
from ldm.interop.weights import Rule, linear
from ldm.nn.flux import Flux
from ldm.nn.rope import image_positions

DEFAULTS = {  # of their class: what a config that leaves a key out means
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
PATCH = 2  # side of the squares of latents that their pipeline folds into channels
GUIDANCE = 3.5  # the scale at which FLUX.1 [dev] is usually asked
SWAPPED = (1, 0)  # their last modulation is scale, then shift


@dataclass(frozen=True)
class FluxMap:
    """FluxTransformer2DModel: FLUX.1 [dev] and [schnell]. Their pipeline folds 2 x 2 latents, our network does."""

    class_name: str = "FluxTransformer2DModel"
    network: type[nn.Module] = Flux

    def build(self, config: Mapping[str, Any]) -> Flux:
        full = {**DEFAULTS, **config}
        channels, odd = divmod(full["in_channels"], PATCH**2)
        if odd:
            raise ValueError(
                f"{self.class_name}: in_channels={full['in_channels']} must be a multiple of {PATCH**2}"
            )
        fixed = {"patch_size": 1, "out_channels": {None, full["in_channels"]}}
        refuse_unsupported(full, fixed=fixed, known=DEFAULTS.keys() - fixed.keys(), where=self.class_name)
        return Flux(
            in_channels=channels,
            patch_size=PATCH,
            width=full["num_attention_heads"] * full["attention_head_dim"],
            num_double_blocks=full["num_layers"],
            num_single_blocks=full["num_single_layers"],
            num_heads=full["num_attention_heads"],
            context_width=full["joint_attention_dim"],
            pooled_width=full["pooled_projection_dim"],
            rotary_widths=full["axes_dims_rope"],
            guidance=GUIDANCE if full["guidance_embeds"] else None,
            context_mask=False,
        )

    def config(self, network: nn.Module) -> dict[str, Any]:
        net = cast(Flux, network)
        if net.context_mask:
            raise ValueError(
                f"{self.class_name} attends to padding, this network does not (context_mask=true)"
            )
        if net.patch_size != PATCH:
            raise ValueError(f"{self.class_name} has patches of {PATCH}, this network of {net.patch_size}")
        return {
            "patch_size": 1,
            "in_channels": net.in_channels * PATCH**2,
            "out_channels": None,
            "num_layers": len(net.double_blocks),
            "num_single_layers": len(net.single_blocks),
            "attention_head_dim": sum(net.rotary_widths),
            "num_attention_heads": net.patch_in.out_features // sum(net.rotary_widths),
            "joint_attention_dim": net.text_in.in_features,
            "pooled_projection_dim": cast(nn.Linear, net.pooled_embedding[0]).in_features,
            "guidance_embeds": net.guidance is not None,
            "axes_dims_rope": list(net.rotary_widths),
        }

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        net = cast(Flux, network)
        rules = [
            *linear("patch_in", "x_embedder"),
            *linear("text_in", "context_embedder"),
            *linear("modulation_out", "norm_out.linear", order=SWAPPED),
            *linear("patch_out", "proj_out"),
        ]
        for ours, theirs in _embeddings(net, time="timestep", guidance="guidance", pooled="text"):
            rules += linear(f"{ours}.0", f"time_text_embed.{theirs}_embedder.linear_1")
            rules += linear(f"{ours}.2", f"time_text_embed.{theirs}_embedder.linear_2")
        for i in range(len(net.double_blocks)):
            ours, theirs = f"double_blocks.{i}", f"transformer_blocks.{i}"
            for stream, suffix in (("image", ""), ("text", "_context")):
                rules += linear(f"{ours}.{stream}.modulation", f"{theirs}.norm1{suffix}.linear")
                rules += linear(f"{ours}.{stream}.feed_forward.up", f"{theirs}.ff{suffix}.net.0.proj")
                rules += linear(f"{ours}.{stream}.feed_forward.down", f"{theirs}.ff{suffix}.net.2")
            rules += linear(f"{ours}.image.qkv", *(f"{theirs}.attn.to_{part}" for part in "qkv"))
            rules += linear(f"{ours}.text.qkv", *(f"{theirs}.attn.add_{part}_proj" for part in "qkv"))
            rules += linear(f"{ours}.image.out", f"{theirs}.attn.to_out.0")
            rules += linear(f"{ours}.text.out", f"{theirs}.attn.to_add_out")
            for part in "qk":
                rules.append(Rule(f"{ours}.image.{part}_norm.weight", (f"{theirs}.attn.norm_{part}.weight",)))
                rules.append(
                    Rule(f"{ours}.text.{part}_norm.weight", (f"{theirs}.attn.norm_added_{part}.weight",))
                )
        width = net.patch_in.out_features
        for i in range(len(net.single_blocks)):
            ours, theirs = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
            into = (*(f"{theirs}.attn.to_{part}" for part in "qkv"), f"{theirs}.proj_mlp")
            rules += linear(f"{ours}.modulation", f"{theirs}.norm.linear")
            rules += linear(f"{ours}.into", *into, sizes=(width, width, width, 4 * width))
            rules += linear(f"{ours}.out", f"{theirs}.proj_out")
            rules += [
                Rule(f"{ours}.{part}_norm.weight", (f"{theirs}.attn.norm_{part}.weight",)) for part in "qk"
            ]
        return rules

    def call(self, theirs: Callable[..., Any], x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """x (B, C, H, W); ``cond.guidance`` must be given where the network is told of it."""
        h, w = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        answer = theirs(
            hidden_states=rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH),
            timestep=t,
            guidance=cond.guidance,
            encoder_hidden_states=cond.tokens,
            pooled_projections=cond.pooled,
            img_ids=F.pad(image_positions(h, w, device=x.device), (1, 0)).float(),  # (N, 3)
            txt_ids=torch.zeros(cond.tokens.shape[1], 3, device=x.device),
            return_dict=False,
        )
        return rearrange(answer[0], "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=PATCH, q=PATCH)


@dataclass(frozen=True)
class FluxOriginal:
    """The layout of Black Forest Labs' own files, which ComfyUI reads."""

    layout: str = "Flux, original"
    network: type[nn.Module] = Flux
    prefix: str = "model.diffusion_model."

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        net = cast(Flux, network)
        p = self.prefix
        rules = [
            *linear("patch_in", f"{p}img_in"),
            *linear("text_in", f"{p}txt_in"),
            *linear("modulation_out", f"{p}final_layer.adaLN_modulation.1"),
            *linear("patch_out", f"{p}final_layer.linear"),
        ]
        for ours, theirs in _embeddings(net, time="time", guidance="guidance", pooled="vector"):
            rules += linear(f"{ours}.0", f"{p}{theirs}_in.in_layer")
            rules += linear(f"{ours}.2", f"{p}{theirs}_in.out_layer")
        for i in range(len(net.double_blocks)):
            for stream, name in (("image", "img"), ("text", "txt")):
                ours, theirs = f"double_blocks.{i}.{stream}", f"{p}double_blocks.{i}.{name}"
                rules += linear(f"{ours}.modulation", f"{theirs}_mod.lin")
                rules += linear(f"{ours}.qkv", f"{theirs}_attn.qkv")
                rules += linear(f"{ours}.out", f"{theirs}_attn.proj")
                rules += linear(f"{ours}.feed_forward.up", f"{theirs}_mlp.0")
                rules += linear(f"{ours}.feed_forward.down", f"{theirs}_mlp.2")
                rules += _norms(ours, f"{theirs}_attn.norm")
        for i in range(len(net.single_blocks)):
            ours, theirs = f"single_blocks.{i}", f"{p}single_blocks.{i}"
            rules += linear(f"{ours}.modulation", f"{theirs}.modulation.lin")
            rules += linear(f"{ours}.into", f"{theirs}.linear1")
            rules += linear(f"{ours}.out", f"{theirs}.linear2")
            rules += _norms(ours, f"{theirs}.norm")
        return rules


def _norms(ours: str, theirs: str) -> list[Rule]:
    names = {"q": "query", "k": "key"}
    return [
        Rule(f"{ours}.{part}_norm.weight", (f"{theirs}.{name}_norm.scale",)) for part, name in names.items()
    ]


def _embeddings(net: Flux, *, time: str, guidance: str, pooled: str) -> list[tuple[str, str]]:
    """Our two-layer networks that make the conditioning vector, and their names for them."""
    told = [("guidance_embedding.mlp", guidance)] if net.guidance is not None else []
    return [("time_embedding.mlp", time), ("pooled_embedding", pooled), *told]
