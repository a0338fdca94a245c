"""``PixArt`` and diffusers' PixArtTransformer2DModel (2310.00426)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.interop.configs import refuse_unsupported
from ldm.interop.dit import patch_order, refuse_misfits
from ldm.interop.weights import Rule, linear
from ldm.nn.layers import GELU
from ldm.nn.pixart import PixArt, PixArtBlock
from ldm.nn.positions import SinCos

# Keys of the class and of its elder form, Transformer2DModel, that ours has one answer to, and keys it has no use for.
FIXED = {
    "norm_type": "ada_norm_single",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "only_cross_attention": False,
    "double_self_attention": False,
    "num_vector_embeds": None,
    "use_linear_projection": False,
}
IDLE = {"norm_num_groups", "upcast_attention", "num_embeds_ada_norm"}
DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "sample_size": 128,
    "patch_size": 2,
    "interpolation_scale": None,
    "use_additional_conditions": None,
    "caption_channels": None,
}


@dataclass(frozen=True)
class PixArtMap:
    """Tensor for tensor the same network."""

    class_name: str = "PixArtTransformer2DModel"
    network: type[nn.Module] = PixArt

    def build(self, config: Mapping[str, Any]) -> PixArt:
        refuse_unsupported(config, fixed=FIXED, known=DEFAULTS.keys() | IDLE, where=self.class_name)
        given = DEFAULTS | {key: value for key, value in config.items() if key in DEFAULTS}
        width = given["num_attention_heads"] * given["attention_head_dim"]
        if given["caption_channels"] is None or given["cross_attention_dim"] != width:
            raise ValueError(
                f"{self.class_name} with caption_channels={given['caption_channels']} and "
                f"cross_attention_dim={given['cross_attention_dim']} has no counterpart here: captions are projected "
                f"to the network's own width, {width}"
            )
        micro, size, scale = (
            given[key] for key in ("use_additional_conditions", "sample_size", "interpolation_scale")
        )
        return PixArt(
            in_channels=given["in_channels"],
            patch_size=given["patch_size"],
            width=width,
            depth=given["num_layers"],
            num_heads=given["num_attention_heads"],
            context_width=given["caption_channels"],
            micro_conditioning=size == 128 if micro is None else micro,
            out_channels=given["out_channels"],
            positions=SinCos(
                base_size=size // given["patch_size"], scale=max(size // 64, 1) if scale is None else scale
            ),
            activation=GELU(),
        )

    def config(self, network: nn.Module) -> dict[str, Any]:
        assert isinstance(network, PixArt)
        block = cast(PixArtBlock, network.blocks[0])
        fits = {
            "mlp_ratio=4": block.feed_forward.down.in_features == 4 * network.width,
            "the activation GELU": isinstance(block.feed_forward.activation, GELU),
            "positions SinCos": isinstance(network.positions, SinCos),
        }
        refuse_misfits(self.class_name, fits)
        assert isinstance(network.positions, SinCos)
        return {
            "num_attention_heads": block.attention.num_heads,
            "attention_head_dim": network.head_width,
            "in_channels": network.in_channels,
            "out_channels": network.out_channels,
            "num_layers": len(network.blocks),
            "cross_attention_dim": network.width,
            "sample_size": network.positions.base_size * network.patch_size,
            "patch_size": network.patch_size,
            "interpolation_scale": network.positions.scale,
            "use_additional_conditions": network.size_embedding is not None,
            "caption_channels": cast(nn.Linear, network.context_in[0]).in_features,
        }

    def call(self, theirs: Callable[..., Any], x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        sizes = cond.sizes
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if sizes is not None:
            added = {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 4:5] / sizes[:, 5:6]}
        answer = theirs(
            x,
            encoder_hidden_states=cond.tokens,
            encoder_attention_mask=cond.mask,
            timestep=1000.0 * t,
            added_cond_kwargs=added,
        )
        return answer.sample[:, : x.shape[1]]

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        assert isinstance(network, PixArt)
        shape = (network.width, network.in_channels, network.patch_size, network.patch_size)
        embedder = "adaln_single.emb"
        rules = [
            Rule("patch_in.weight", ("pos_embed.proj.weight",), their_shape=shape),
            Rule("patch_in.bias", ("pos_embed.proj.bias",)),
            *linear("time_embedding.mlp.0", f"{embedder}.timestep_embedder.linear_1"),
            *linear("time_embedding.mlp.2", f"{embedder}.timestep_embedder.linear_2"),
            *linear("modulation.1", "adaln_single.linear"),
            *linear("context_in.0", "caption_projection.linear_1"),
            *linear("context_in.2", "caption_projection.linear_2"),
            Rule("modulation_out", ("scale_shift_table",)),
            *linear("patch_out", "proj_out", order=patch_order(network.out_channels, network.patch_size)),
        ]
        if network.size_embedding is not None:
            for ours, theirs in (("side", "resolution_embedder"), ("ratio", "aspect_ratio_embedder")):
                rules += linear(f"size_embedding.{ours}.0", f"{embedder}.{theirs}.linear_1")
                rules += linear(f"size_embedding.{ours}.2", f"{embedder}.{theirs}.linear_2")
        for i in range(len(network.blocks)):
            ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
            rules.append(Rule(f"{ours}.modulation", (f"{theirs}.scale_shift_table",)))
            rules += linear(f"{ours}.attention.qkv", *(f"{theirs}.attn1.to_{part}" for part in "qkv"))
            rules += linear(f"{ours}.attention.out", f"{theirs}.attn1.to_out.0")
            rules += linear(f"{ours}.cross_attention.q", f"{theirs}.attn2.to_q")
            rules += linear(f"{ours}.cross_attention.kv", f"{theirs}.attn2.to_k", f"{theirs}.attn2.to_v")
            rules += linear(f"{ours}.cross_attention.out", f"{theirs}.attn2.to_out.0")
            rules += linear(f"{ours}.feed_forward.up", f"{theirs}.ff.net.0.proj")
            rules += linear(f"{ours}.feed_forward.down", f"{theirs}.ff.net.2")
        return rules
