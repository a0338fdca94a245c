"""``AutoencoderKL`` and diffusers' class of that name: Stable Diffusion 1.x, 2.x, SDXL, Stable Diffusion 3, Flux."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ldm.interop.configs import refuse_unsupported
from ldm.interop.latents import refuse_bottleneck
from ldm.interop.weights import Rule, linear
from ldm.nn.autoencoder import AttentionBlock, AutoencoderKL, Downsample, ResidualBlock, Upsample

FIXED = {  # what ours has one answer to
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": frozenset({"silu", "swish"}),
}
# Which ours has no use for, or which are of the latents and not of the network: see ``latent_scale`` below.
IDLE = {"sample_size", "force_upcast", "scaling_factor", "shift_factor", "latents_mean", "latents_std"}
DEFAULTS: dict[str, Any] = {  # of their class: what a config that leaves a key out means
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
SCALING_FACTOR = 0.18215  # what a config without one means
# Attention weights of files written before diffusers had its present attention; its loader renames them, too.
ELDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class AutoencoderKLMap:
    class_name: str = "AutoencoderKL"
    network: type[nn.Module] = AutoencoderKL

    def build(self, config: Mapping[str, Any]) -> AutoencoderKL:
        refuse_unsupported(config, fixed=FIXED, known=DEFAULTS.keys() | IDLE, where=self.class_name)
        given = DEFAULTS | {key: value for key, value in config.items() if key in DEFAULTS}
        channels = list(given["block_out_channels"])
        for key, only in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            if list(given[key]) != [only] * len(channels):
                raise ValueError(
                    f"{self.class_name}: {key}={list(given[key])} has no counterpart here, only {only} for each of "
                    f"block_out_channels={channels}"
                )
        if given["use_quant_conv"] != given["use_post_quant_conv"]:
            raise ValueError(f"{self.class_name}: use_quant_conv and use_post_quant_conv must agree")
        return AutoencoderKL(
            latent_channels=given["latent_channels"],
            channels=channels,
            blocks_per_level=given["layers_per_block"],
            num_groups=given["norm_num_groups"],
            attention=given["mid_block_add_attention"],
            quant_convs=given["use_quant_conv"],
        )

    def config(self, network: nn.Module) -> dict[str, Any]:
        """Without scaling and shift: those belong to the codec's contract."""
        assert isinstance(network, AutoencoderKL)
        refuse_bottleneck(network)
        ours = network.architecture
        if ours["patch_size"] != 1:
            raise ValueError(
                f"diffusers' {self.class_name} cannot be this network: it has patch_size={ours['patch_size']}, and "
                f"theirs starts from single pixels"
            )
        if ours["encoder_channels"] != ours["channels"]:
            raise ValueError(
                f"diffusers' {self.class_name} cannot be this network: it has encoder_channels="
                f"{ours['encoder_channels']} that differ from channels={ours['channels']}"
            )
        num_levels = len(ours["channels"])
        return {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * num_levels,
            "up_block_types": ["UpDecoderBlock2D"] * num_levels,
            "block_out_channels": list(ours["channels"]),
            "layers_per_block": ours["blocks_per_level"],
            "latent_channels": ours["latent_channels"],
            "norm_num_groups": ours["num_groups"],
            "use_quant_conv": ours["quant_convs"],
            "use_post_quant_conv": ours["quant_convs"],
            "mid_block_add_attention": ours["attention"],
        }

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        assert isinstance(network, AutoencoderKL)
        return autoencoder_rules(network, AutoencoderNames())

    def latent_scale(self, config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """
        Their pipelines train on ``(z - shift_factor) * scaling_factor``; with ``latents_mean`` and ``latents_std``, on
        ``(z - latents_mean) * scaling_factor / latents_std``.
        """
        channels = config.get("latent_channels", DEFAULTS["latent_channels"])
        scaling = config.get("scaling_factor", SCALING_FACTOR)
        shift = config.get("shift_factor") or 0.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        means = [shift] * channels if mean is None else mean
        spread = [1.0] * channels if std is None else std
        return tuple(map(float, means)), tuple(s / scaling for s in spread)

    def present_names(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {".".join(ELDER.get(part, part) for part in name.split(".")): x for name, x in theirs.items()}


@dataclass(frozen=True)
class AutoencoderNames:
    """What a layout calls the parts of the autoencoder; as it stands, diffusers'.

    Fields in braces: ``level`` counts resolutions from the highest, ``step`` those of the decoder from the lowest,
    ``block`` blocks within one, ``number`` the same from 1; ``side`` is encoder or decoder.
    """

    down: str = "encoder.down_blocks.{level}.resnets.{block}"
    downsample: str = "encoder.down_blocks.{level}.downsamplers.0.conv"
    middle: str = "{side}.mid_block.resnets.{block}"
    middle_attention: str = "{side}.mid_block.attentions.0"
    up: str = "decoder.up_blocks.{step}.resnets.{block}"
    upsample: str = "decoder.up_blocks.{step}.upsamplers.0.conv"
    norm_out: str = "{side}.conv_norm_out"
    shortcut: str = "conv_shortcut"
    # Of the attention: norm, queries, keys, values, out; as linear layers or as 1x1 convolutions.
    attention: tuple[str, str, str, str, str] = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
    conv_attention: bool = False


def autoencoder_rules(network: AutoencoderKL, names: AutoencoderNames, *, prefix: str = "") -> list[Rule]:
    """A rule for each tensor of ``network``; all of their names begin with ``prefix``."""
    rules: list[Rule] = []
    for ours, theirs in _parts(network, names):
        module, theirs = network.get_submodule(ours), prefix + theirs
        if isinstance(module, ResidualBlock):
            for part in ("norm1", "conv1", "norm2", "conv2"):
                rules += linear(f"{ours}.{part}", f"{theirs}.{part}")
            if not isinstance(module.shortcut, nn.Identity):
                rules += linear(f"{ours}.shortcut", f"{theirs}.{names.shortcut}")
        elif isinstance(module, AttentionBlock):
            norm, *qkv, out = (f"{theirs}.{name}" for name in names.attention)
            width = module.norm.num_channels
            shape = (width, width, 1, 1) if names.conv_attention else None
            rules += linear(f"{ours}.norm", norm)
            rules += [
                Rule(f"{ours}.attention.qkv.weight", tuple(f"{x}.weight" for x in qkv), their_shape=shape),
                Rule(f"{ours}.attention.qkv.bias", tuple(f"{x}.bias" for x in qkv)),
                Rule(f"{ours}.attention.out.weight", (f"{out}.weight",), their_shape=shape),
                Rule(f"{ours}.attention.out.bias", (f"{out}.bias",)),
            ]
        else:
            rules += linear(ours, theirs)
    return rules


def _parts(network: AutoencoderKL, names: AutoencoderNames) -> Iterator[tuple[str, str]]:
    """(our module, their module): blocks, and single layers with a weight and a bias."""
    if network.architecture["quant_convs"]:
        yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    for side, stack in (("encoder", network.encoder), ("decoder", network.decoder)):
        num_levels = len(network.architecture["channels"])
        step = block = convolutions = 0  # the encoder's steps go by level, the decoder's the other way
        for place, module in enumerate(stack):
            ours = f"{side}.{place}"
            at = {"side": side, "level": step, "step": step, "block": block}
            if side == "decoder":
                at["level"] = num_levels - 1 - step
            if isinstance(module, ResidualBlock):
                yield ours, (names.down if side == "encoder" else names.up).format(**at)
                block += 1
            elif isinstance(module, Downsample | Upsample):
                name = names.downsample if isinstance(module, Downsample) else names.upsample
                yield f"{ours}.conv", name.format(**at)
                step, block = step + 1, 0
            elif isinstance(module, nn.Sequential):
                yield from _middle(module, ours, side, names)
            elif isinstance(module, nn.GroupNorm):
                yield ours, names.norm_out.format(side=side)
            elif isinstance(module, nn.Conv2d):
                yield ours, f"{side}.conv_out" if convolutions else f"{side}.conv_in"
                convolutions += 1


def _middle(
    module: nn.Sequential, ours: str, side: str, names: AutoencoderNames
) -> Iterator[tuple[str, str]]:
    block = 0
    for place, part in enumerate(module):
        if isinstance(part, AttentionBlock):
            yield f"{ours}.{place}", names.middle_attention.format(side=side)
        else:
            yield f"{ours}.{place}", names.middle.format(side=side, block=block, number=block + 1)
            block += 1
