"""MMDiT and what others call it: diffusers' SD3Transformer2DModel, and the original single-file layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.interop.configs import refuse_unsupported
from ldm.interop.weights import Rule, linear
from ldm.nn.layers import RMSNorm
from ldm.nn.mmdit import MMDiT, MMDiTBlock

DEFAULTS = {  # of their class: what a config that leaves a key out means
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": (),
    "qk_norm": None,
}
SWAPPED = (1, 0)  # their last modulations are scale, then shift


@dataclass(frozen=True)
class SD3Map:
    """SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

    class_name: str = "SD3Transformer2DModel"
    network: type[nn.Module] = MMDiT

    def build(self, config: Mapping[str, Any]) -> MMDiT:
        full = {**DEFAULTS, **config}
        width = full["num_attention_heads"] * full["attention_head_dim"]
        fixed = {
            "caption_projection_dim": width,
            "out_channels": full["in_channels"],
            "qk_norm": {None, "rms_norm"},
        }
        refuse_unsupported(full, fixed=fixed, known=DEFAULTS.keys() - fixed.keys(), where=self.class_name)
        return MMDiT(
            in_channels=full["in_channels"],
            patch_size=full["patch_size"],
            width=width,
            depth=full["num_layers"],
            num_heads=full["num_attention_heads"],
            context_width=full["joint_attention_dim"],
            pooled_width=full["pooled_projection_dim"],
            max_size=full["pos_embed_max_size"],
            base_size=full["sample_size"] // full["patch_size"],
            qk_norm=full["qk_norm"] is not None,
            dual_attention=full["dual_attention_layers"],
            context_mask=False,
        )

    def config(self, network: nn.Module) -> dict[str, Any]:
        net = cast(MMDiT, network)
        if net.context_mask:
            raise ValueError(
                f"{self.class_name} attends to padding, this network does not (context_mask=true)"
            )
        blocks = _blocks(net)
        width, num_heads = net.patch_in.out_features, blocks[0].image.num_heads
        return {
            "sample_size": net.base_size * net.patch_size,
            "patch_size": net.patch_size,
            "in_channels": net.in_channels,
            "num_layers": len(blocks),
            "attention_head_dim": width // num_heads,
            "num_attention_heads": num_heads,
            "joint_attention_dim": net.text_in.in_features,
            "caption_projection_dim": width,
            "pooled_projection_dim": cast(nn.Linear, net.pooled_embedding[0]).in_features,
            "out_channels": net.in_channels,
            "pos_embed_max_size": len(net.positions),
            "dual_attention_layers": [i for i, block in enumerate(blocks) if block.dual is not None],
            "qk_norm": "rms_norm" if _has_qk_norm(net) else None,
        }

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        net = cast(MMDiT, network)
        side, width = len(net.positions), net.patch_in.out_features
        time_text = "time_text_embed"
        rules = [
            Rule("positions", ("pos_embed.pos_embed",), their_shape=(1, side * side, width)),
            *_patches(net, "pos_embed.proj"),
            *linear("time_embedding.mlp.0", f"{time_text}.timestep_embedder.linear_1"),
            *linear("time_embedding.mlp.2", f"{time_text}.timestep_embedder.linear_2"),
            *linear("pooled_embedding.0", f"{time_text}.text_embedder.linear_1"),
            *linear("pooled_embedding.2", f"{time_text}.text_embedder.linear_2"),
            *linear("text_in", "context_embedder"),
            *linear("modulation_out", "norm_out.linear", order=SWAPPED),
            *linear("patch_out", "proj_out"),
        ]
        norms = _has_qk_norm(net)
        for i, block in enumerate(_blocks(net)):
            ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
            last = i == len(net.blocks) - 1
            rules += linear(f"{ours}.image.modulation", f"{theirs}.norm1.linear")
            rules += linear(
                f"{ours}.text.modulation", f"{theirs}.norm1_context.linear", order=SWAPPED if last else None
            )
            rules += linear(f"{ours}.image.qkv", *(f"{theirs}.attn.to_{part}" for part in "qkv"))
            rules += linear(f"{ours}.text.qkv", *(f"{theirs}.attn.add_{part}_proj" for part in "qkv"))
            rules += linear(f"{ours}.image.out", f"{theirs}.attn.to_out.0")
            rules += linear(f"{ours}.image.feed_forward.up", f"{theirs}.ff.net.0.proj")
            rules += linear(f"{ours}.image.feed_forward.down", f"{theirs}.ff.net.2")
            if norms:
                rules += [
                    Rule(f"{ours}.image.{p}_norm.weight", (f"{theirs}.attn.norm_{p}.weight",)) for p in "qk"
                ]
                rules += [
                    Rule(f"{ours}.text.{p}_norm.weight", (f"{theirs}.attn.norm_added_{p}.weight",))
                    for p in "qk"
                ]
            if not last:
                rules += linear(f"{ours}.text.out", f"{theirs}.attn.to_add_out")
                rules += linear(f"{ours}.text.feed_forward.up", f"{theirs}.ff_context.net.0.proj")
                rules += linear(f"{ours}.text.feed_forward.down", f"{theirs}.ff_context.net.2")
            if block.dual is not None:
                rules += linear(f"{ours}.dual.qkv", *(f"{theirs}.attn2.to_{part}" for part in "qkv"))
                rules += linear(f"{ours}.dual.out", f"{theirs}.attn2.to_out.0")
                if norms:
                    rules += [
                        Rule(f"{ours}.dual.{p}_norm.weight", (f"{theirs}.attn2.norm_{p}.weight",))
                        for p in "qk"
                    ]
        return rules

    def call(self, theirs: Callable[..., Any], x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        answer = theirs(
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=cond.tokens,
            pooled_projections=cond.pooled,
            return_dict=False,
        )
        return answer[0]


@dataclass(frozen=True)
class SD3Original:
    """The layout of Stability AI's own files, which ComfyUI reads."""

    layout: str = "Stable Diffusion 3, original"
    network: type[nn.Module] = MMDiT
    prefix: str = "model.diffusion_model."

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        net = cast(MMDiT, network)
        side, width = len(net.positions), net.patch_in.out_features
        p = self.prefix
        rules = [
            Rule("positions", (f"{p}pos_embed",), their_shape=(1, side * side, width)),
            *_patches(net, f"{p}x_embedder.proj"),
            *linear("time_embedding.mlp.0", f"{p}t_embedder.mlp.0"),
            *linear("time_embedding.mlp.2", f"{p}t_embedder.mlp.2"),
            *linear("pooled_embedding.0", f"{p}y_embedder.mlp.0"),
            *linear("pooled_embedding.2", f"{p}y_embedder.mlp.2"),
            *linear("text_in", f"{p}context_embedder"),
            *linear("modulation_out", f"{p}final_layer.adaLN_modulation.1"),
            *linear("patch_out", f"{p}final_layer.linear"),
        ]
        for i, block in enumerate(_blocks(net)):
            last = i == len(net.blocks) - 1
            for stream, name in (("image", "x_block"), ("text", "context_block")):
                ours, theirs = f"blocks.{i}.{stream}", f"{p}joint_blocks.{i}.{name}"
                rules += linear(f"{ours}.modulation", f"{theirs}.adaLN_modulation.1")
                rules += _attention(
                    ours, f"{theirs}.attn", norms=_has_qk_norm(net), out=stream == "image" or not last
                )
                if stream == "image" or not last:
                    rules += linear(f"{ours}.feed_forward.up", f"{theirs}.mlp.fc1")
                    rules += linear(f"{ours}.feed_forward.down", f"{theirs}.mlp.fc2")
            if block.dual is not None:
                theirs = f"{p}joint_blocks.{i}.x_block.attn2"
                rules += _attention(f"blocks.{i}.dual", theirs, norms=_has_qk_norm(net), out=True)
        return rules


def _attention(ours: str, theirs: str, *, norms: bool, out: bool) -> list[Rule]:
    rules = linear(f"{ours}.qkv", f"{theirs}.qkv")
    if norms:
        rules += [Rule(f"{ours}.{part}_norm.weight", (f"{theirs}.ln_{part}.weight",)) for part in "qk"]
    return rules + linear(f"{ours}.out", f"{theirs}.proj") if out else rules


def _patches(net: MMDiT, theirs: str) -> list[Rule]:
    """Our linear layer over patches is their strided convolution."""
    shape = (net.patch_in.out_features, net.in_channels, net.patch_size, net.patch_size)
    weight = Rule("patch_in.weight", (f"{theirs}.weight",), their_shape=shape)
    return [weight, Rule("patch_in.bias", (f"{theirs}.bias",))]


def _blocks(net: MMDiT) -> list[MMDiTBlock]:
    return [cast(MMDiTBlock, block) for block in net.blocks]


def _has_qk_norm(net: MMDiT) -> bool:
    return isinstance(_blocks(net)[0].image.q_norm, RMSNorm)
