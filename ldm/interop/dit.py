"""``DiT`` and diffusers' DiTTransformer2DModel: class-conditional, adaLN-Zero (2212.09748)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.interop.configs import refuse_unsupported
from ldm.interop.weights import Rule, linear
from ldm.nn.dit import DiT, DiTBlock
from ldm.nn.layers import GELU
from ldm.nn.positions import SinCos

# Keys of the class and of its elder form, Transformer2DModel, that ours has one answer to, and keys it has no use for.
FIXED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "cross_attention_dim": None,
    "only_cross_attention": False,
    "double_self_attention": False,
    "num_vector_embeds": None,
    "use_linear_projection": False,
}
IDLE = {"norm_num_groups", "upcast_attention"}
DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
}


@dataclass(frozen=True)
class DiTMap:
    """The embeddings of time and label stand once in ours and once in each of their blocks, with the same weights."""

    class_name: str = "DiTTransformer2DModel"
    network: type[nn.Module] = DiT

    def build(self, config: Mapping[str, Any]) -> DiT:
        refuse_unsupported(config, fixed=FIXED, known=DEFAULTS.keys() | IDLE, where=self.class_name)
        given = DEFAULTS | {key: value for key, value in config.items() if key in DEFAULTS}
        return DiT(
            in_channels=given["in_channels"],
            patch_size=given["patch_size"],
            width=given["num_attention_heads"] * given["attention_head_dim"],
            depth=given["num_layers"],
            num_heads=given["num_attention_heads"],
            num_classes=given["num_embeds_ada_norm"],
            qk_norm=False,
            out_channels=given["out_channels"],
            frequency_shift=1.0,
            norm3_eps=given["norm_eps"],
            positions=SinCos(base_size=given["sample_size"] // given["patch_size"]),
            activation=GELU(),
        )

    def config(self, network: nn.Module) -> dict[str, Any]:
        assert isinstance(network, DiT)
        block = cast(DiTBlock, network.blocks[0])
        fits = {
            "class labels (num_classes)": network.num_classes is not None,
            "no captions (context_width, pooled_width)": network.context_norm is None
            and network.pooled_embedding is None,
            "qk_norm=false": isinstance(block.attention.q_norm, nn.Identity),
            "rms_norm=false": isinstance(network.norm_out, nn.LayerNorm),
            "gated=false": not block.feed_forward.gated,
            "mlp_ratio=4": block.feed_forward.down.in_features == 4 * network.width,
            "the activation GELU": isinstance(block.feed_forward.activation, GELU),
            "frequency_shift=1": network.time_embedding.shift == 1,
            "positions SinCos of scale 1": isinstance(network.positions, SinCos)
            and network.positions.scale == 1,
        }
        refuse_misfits(self.class_name, fits)
        assert isinstance(network.positions, SinCos)
        return {
            "num_attention_heads": block.attention.num_heads,
            "attention_head_dim": network.head_width,
            "in_channels": network.in_channels,
            "out_channels": network.out_channels,
            "num_layers": len(network.blocks),
            "sample_size": network.positions.base_size * network.patch_size,
            "patch_size": network.patch_size,
            "num_embeds_ada_norm": network.num_classes,
            "norm_eps": cast(nn.LayerNorm, block.norm3).eps,
        }

    def call(self, theirs: Callable[..., Any], x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return theirs(x, timestep=1000.0 * t, class_labels=cond.labels).sample[:, : x.shape[1]]

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        assert isinstance(network, DiT)
        shape = (network.width, network.in_channels, network.patch_size, network.patch_size)
        rules = [
            Rule("patch_in.weight", ("pos_embed.proj.weight",), their_shape=shape),
            Rule("patch_in.bias", ("pos_embed.proj.bias",)),
        ]

        def embedding(ours: str, theirs: str) -> Rule:
            first, *others = (
                f"transformer_blocks.{i}.norm1.emb.{theirs}" for i in range(len(network.blocks))
            )
            return Rule(ours, (first,), copies=tuple(others))

        rules.append(embedding("label_embedding.weight", "class_embedder.embedding_table.weight"))
        for kind in ("weight", "bias"):
            rules.append(embedding(f"time_embedding.mlp.0.{kind}", f"timestep_embedder.linear_1.{kind}"))
            rules.append(embedding(f"time_embedding.mlp.2.{kind}", f"timestep_embedder.linear_2.{kind}"))
        for i in range(len(network.blocks)):
            ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
            rules += linear(f"{ours}.modulation.1", f"{theirs}.norm1.linear")
            rules += linear(f"{ours}.attention.qkv", *(f"{theirs}.attn1.to_{part}" for part in "qkv"))
            rules += linear(f"{ours}.attention.out", f"{theirs}.attn1.to_out.0")
            rules += linear(f"{ours}.feed_forward.up", f"{theirs}.ff.net.0.proj")
            rules += linear(f"{ours}.feed_forward.down", f"{theirs}.ff.net.2")
        rules += linear("modulation_out.1", "proj_out_1")
        rules += linear(
            "patch_out", "proj_out_2", order=patch_order(network.out_channels, network.patch_size)
        )
        return rules


def patch_order(channels: int, patch_size: int) -> tuple[int, ...]:
    """Where the rows of a last layer, (channel, row, column) in ours, stand in theirs, (row, column, channel)."""
    pixels = patch_size**2
    return tuple(pixel * channels + channel for channel in range(channels) for pixel in range(pixels))


def refuse_misfits(class_name: str, fits: Mapping[str, bool]) -> None:
    """
    Raises:
        ValueError: One of these is false; it is named.
    """
    wanting = [what for what, holds in fits.items() if not holds]
    if wanting:
        raise ValueError(f"diffusers' {class_name} cannot be this network: it has {', '.join(wanting)}")
