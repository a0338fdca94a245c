"""``AutoencoderDC`` and diffusers' class of the same name: the deep-compression autoencoder of Sana."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ldm.interop.configs import refuse_unsupported
from ldm.interop.latents import refuse_bottleneck
from ldm.interop.weights import Rule, linear
from ldm.nn.autoencoder_dc import AutoencoderDC, Downsample, ResidualBlock, Upsample

FIXED = {  # what ours has one answer to
    "in_channels": 3,
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
}
IDLE = {"scaling_factor"}  # of the latents and not of the network: see ``latent_scale`` below
WIDTHS = (128, 256, 512, 512, 1024, 1024)
SCALES = ((), (), (), (5,), (5,), (5,))
DEFAULTS: dict[str, Any] = {  # of their class: what a config that leaves a key out means
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": WIDTHS,
    "decoder_block_out_channels": WIDTHS,
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": SCALES,
    "decoder_qkv_multiscales": SCALES,
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
}
RESIDUAL, TRANSFORMER = "ResBlock", "EfficientViTBlock"


@dataclass(frozen=True)
class AutoencoderDCMap:
    class_name: str = "AutoencoderDC"
    network: type[nn.Module] = AutoencoderDC

    def build(self, config: Mapping[str, Any]) -> AutoencoderDC:
        config = {key: _each_as_one(value) for key, value in config.items()}
        refuse_unsupported(config, fixed=FIXED, known=DEFAULTS.keys() | IDLE, where=self.class_name)
        given = DEFAULTS | {key: value for key, value in config.items() if key in DEFAULTS}
        channels = self._agreed(given, "block_out_channels")
        types = self._agreed(given, "block_types")
        types = [types] * len(channels) if isinstance(types, str) else list(types)
        levels = types.count(TRANSFORMER)
        if types != [RESIDUAL] * (len(types) - levels) + [TRANSFORMER] * levels:
            raise ValueError(
                f"{self.class_name}: encoder_block_types={types} has no counterpart here, only {RESIDUAL} at the "
                f"higher and {TRANSFORMER} at the lower resolutions"
            )
        scales = {tuple(s) for s in self._agreed(given, "qkv_multiscales")[len(types) - levels :]} or {()}
        if len(scales) > 1:
            raise ValueError(
                f"{self.class_name}: encoder_qkv_multiscales differ between resolutions: {scales}"
            )
        shuffles = given["downsample_block_type"] == "pixel_unshuffle"
        if shuffles != (given["upsample_block_type"] == "pixel_shuffle"):
            raise ValueError(
                f"{self.class_name}: downsample_block_type={given['downsample_block_type']!r} with "
                f"upsample_block_type={given['upsample_block_type']!r} has no counterpart here"
            )
        return AutoencoderDC(
            latent_channels=given["latent_channels"],
            channels=list(channels),
            encoder_blocks=list(given["encoder_layers_per_block"]),
            decoder_blocks=list(given["decoder_layers_per_block"]),
            attention_levels=levels,
            head_width=given["attention_head_dim"],
            scales=list(*scales),
            pixel_shuffle=shuffles,
        )

    def _agreed(self, given: Mapping[str, Any], key: str) -> Any:
        first, second = given[f"encoder_{key}"], given[f"decoder_{key}"]
        if first != second:
            raise ValueError(
                f"{self.class_name}: encoder_{key}={first} and decoder_{key}={second} must agree here"
            )
        return first

    def config(self, network: nn.Module) -> dict[str, Any]:
        """Without scaling: that belongs to the codec's contract."""
        assert isinstance(network, AutoencoderDC)
        refuse_bottleneck(network)
        ours = network.architecture
        attending = ours["attention_levels"]
        residual = len(ours["channels"]) - attending
        both = {
            "block_types": [RESIDUAL] * residual + [TRANSFORMER] * attending,
            "block_out_channels": list(ours["channels"]),
            "qkv_multiscales": [[]] * residual + [list(ours["scales"])] * attending,
        }
        return {
            **FIXED,
            **{f"{side}_{key}": value for key, value in both.items() for side in ("encoder", "decoder")},
            "latent_channels": ours["latent_channels"],
            "attention_head_dim": ours["head_width"],
            "encoder_layers_per_block": list(ours["encoder_blocks"]),
            "decoder_layers_per_block": list(ours["decoder_blocks"]),
            "downsample_block_type": "pixel_unshuffle" if ours["pixel_shuffle"] else "conv",
            "upsample_block_type": "pixel_shuffle" if ours["pixel_shuffle"] else "interpolate",
        }

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        assert isinstance(network, AutoencoderDC)
        rules = [
            *linear("encoder.conv_out", "encoder.conv_out"),
            *linear("decoder.conv_in", "decoder.conv_in"),
            *linear("decoder.norm_out", "decoder.norm_out"),
        ]
        for name in ("encoder.conv_in", "decoder.conv_out"):
            deep = not isinstance(network.get_submodule(name), nn.Conv2d)
            rules += linear(f"{name}.conv", f"{name}.conv") if deep else linear(name, name)
        for ours, theirs in _layers(network):
            module = network.get_submodule(ours)
            if isinstance(module, Downsample | Upsample):
                rules += linear(f"{ours}.conv", f"{theirs}.conv")
            elif isinstance(module, ResidualBlock):
                rules += linear(f"{ours}.conv1", f"{theirs}.conv1") + linear(f"{ours}.norm", f"{theirs}.norm")
                rules.append(Rule(f"{ours}.conv2.weight", (f"{theirs}.conv2.weight",)))
            else:
                rules += _transformer(ours, theirs, num_scales=len(network.architecture["scales"]))
        return rules

    def latent_scale(self, config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Their pipelines train on ``z * scaling_factor``."""
        channels = config.get("latent_channels", DEFAULTS["latent_channels"])
        return (0.0,) * channels, (1.0 / config.get("scaling_factor", 1.0),) * channels

    def present_names(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(theirs)


def _layers(network: AutoencoderDC) -> Iterator[tuple[str, str]]:
    """(our block, their block); theirs count resolutions from the highest, and blocks within one."""
    for side, theirs, stack in (
        ("encoder", "encoder.down_blocks", network.encoder.layers),
        ("decoder", "decoder.up_blocks", network.decoder.layers),
    ):
        numbers = network.architecture[f"{side}_blocks"]
        levels = list(range(len(numbers)))
        places = []
        for level in levels if side == "encoder" else reversed(levels):
            resamples = numbers[level] > 0 and level < levels[-1]
            places += [(level, i) for i in range(numbers[level] + resamples)]
        for place, (level, i) in enumerate(places):
            yield f"{side}.layers.{place}", f"{theirs}.{level}.{i}"
        assert len(places) == len(stack)


def _transformer(ours: str, theirs: str, *, num_scales: int) -> list[Rule]:
    attention, gated = f"{ours}.0", f"{ours}.1"
    rules = [
        Rule(f"{attention}.qkv.weight", tuple(f"{theirs}.attn.to_{part}.weight" for part in "qkv")),
        Rule(f"{attention}.out.weight", (f"{theirs}.attn.to_out.weight",)),
        Rule(f"{gated}.down.weight", (f"{theirs}.conv_out.conv_point.weight",)),
        *linear(f"{attention}.norm", f"{theirs}.attn.norm_out"),
        *linear(f"{gated}.up", f"{theirs}.conv_out.conv_inverted"),
        *linear(f"{gated}.depthwise", f"{theirs}.conv_out.conv_depth"),
        *linear(f"{gated}.norm", f"{theirs}.conv_out.norm"),
    ]
    for i in range(num_scales):
        gather, their_gather = f"{attention}.gather.{i}", f"{theirs}.attn.to_qkv_multiscale.{i}"
        rules += [
            Rule(f"{gather}.0.weight", (f"{their_gather}.proj_in.weight",)),
            Rule(f"{gather}.1.weight", (f"{their_gather}.proj_out.weight",)),
        ]
    return rules


def _each_as_one(value: Any) -> Any:
    """A list of equal names means the same as that name; lists count as tuples."""
    if isinstance(value, list | tuple):
        value = tuple(_each_as_one(item) for item in value)
        if value and isinstance(value[0], str) and len(set(value)) == 1:
            return value[0]
    return value
