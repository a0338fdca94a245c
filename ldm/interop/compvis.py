"""The original single-file layout of Stable Diffusion 1.x, 2.x and SDXL, which ComfyUI and others read.

One file holds the U-Net (``model.diffusion_model.``), the autoencoder (``first_stage_model.``) and the text encoders
(``cond_stage_model.``, in SDXL ``conditioner.``), which are left alone here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ldm.interop.autoencoder_kl import AutoencoderNames, autoencoder_rules
from ldm.interop.latents import refuse_bottleneck
from ldm.interop.unet import UNetNames, unet_rules
from ldm.interop.weights import Rule
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.unet import UNet

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
AVERAGE = "model_ema."  # the averaged U-Net, in files that keep both

UNET_NAMES = UNetNames(
    time=("time_embed.0", "time_embed.2"),
    added=("label_emb.0.0", "label_emb.0.2"),
    labels="label_emb",
    conv_in="input_blocks.0.0",
    down="input_blocks.{place}.0",
    down_transformer="input_blocks.{place}.1",
    downsample="input_blocks.{place}.0.op",
    middle="middle_block.{place}",
    middle_transformer="middle_block.1",
    up="output_blocks.{place}.0",
    up_transformer="output_blocks.{place}.1",
    upsample="output_blocks.{place}.{slot}.conv",
    norm_out="out.0",
    conv_out="out.2",
    residual=(
        "in_layers.0",
        "in_layers.2",
        "emb_layers.1",
        "out_layers.0",
        "out_layers.3",
        "skip_connection",
    ),
)
AUTOENCODER_NAMES = AutoencoderNames(
    down="encoder.down.{level}.block.{block}",
    downsample="encoder.down.{level}.downsample.conv",
    middle="{side}.mid.block_{number}",
    middle_attention="{side}.mid.attn_1",
    up="decoder.up.{level}.block.{block}",
    upsample="decoder.up.{level}.upsample.conv",
    norm_out="{side}.norm_out",
    shortcut="nin_shortcut",
    attention=("norm", "q", "k", "v", "proj_out"),
    conv_attention=True,
)


@dataclass(frozen=True)
class CompVisUNet:
    layout: str = "CompVis"
    network: type[nn.Module] = UNet
    prefix: str = UNET

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        assert isinstance(network, UNet)
        ours = network.architecture
        for wrong, what in (
            (ours["context_width"] is None, "no context_width: its transformer blocks read a caption"),
            (ours["middle_depth"] == 0, "middle_depth=0: its middle has a transformer"),
            (
                ours["num_classes"] > 0 and network.added_embedding is not None,
                "both num_classes and pooled_width",
            ),
        ):
            if wrong:
                raise ValueError(f"the {self.layout} layout cannot hold this U-Net: it has {what}")
        return unet_rules(network, UNET_NAMES, prefix=self.prefix)


@dataclass(frozen=True)
class CompVisAutoencoder:
    layout: str = "CompVis"
    network: type[nn.Module] = AutoencoderKL
    prefix: str = AUTOENCODER

    def rules(self, network: nn.Module) -> Sequence[Rule]:
        assert isinstance(network, AutoencoderKL)
        refuse_bottleneck(network)
        ours = network.architecture
        if ours["patch_size"] != 1 or ours["encoder_channels"] != ours["channels"]:
            raise ValueError(
                f"the {self.layout} layout cannot hold this autoencoder: it has patch_size={ours['patch_size']} and "
                f"encoder_channels={ours['encoder_channels']}, where 1 and {ours['channels']} are needed"
            )
        return autoencoder_rules(network, AUTOENCODER_NAMES, prefix=self.prefix)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one network of a single file, by their full names."""
    return {name: x for name, x in tensors.items() if name.startswith(prefix)}


def averaged_unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's averaged weights under its plain names.

    The average's names have lost their dots: ``model.diffusion_model.out.0.weight`` is kept as
    ``model_ema.diffusion_modelout0weight``.

    Raises:
        ValueError: The file keeps no average, or not of all of the U-Net.
    """
    plain = part(tensors, UNET)
    flat = {name: AVERAGE + name.removeprefix("model.").replace(".", "") for name in plain}
    missing = [name for name in flat.values() if name not in tensors]
    if missing or not plain:
        raise ValueError(
            f"the file keeps no averaged U-Net: {missing[0] if missing else UNET + '*'} is missing; take its plain "
            f"weights"
        )
    return {name: tensors[flat[name]] for name in plain}


def left_alone(tensors: Mapping[str, Tensor]) -> str:
    """What a single file holds besides U-Net and autoencoder, in words; "" where there is nothing else."""
    others = [name for name in tensors if not name.startswith((UNET, AUTOENCODER))]
    counts = Counter(name.split(".")[0] for name in others)
    known = {
        "cond_stage_model": "the text encoder",
        "conditioner": "the text encoders",
        "model_ema": "the average",
    }
    parts = [f"{known.get(first, first)} ({first}.*: {n} tensors)" for first, n in counts.items()]
    return f"left alone: {', '.join(parts)}" if parts else ""
