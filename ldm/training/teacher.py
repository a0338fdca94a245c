"""An earlier run's denoiser, frozen, for a training to learn from; and its weights, to begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ldm.diffusion.diffusion import Diffusion
from ldm.interfaces import Conditioning, Denoiser, Network
from ldm.nn.late_inputs import silence
from ldm.nn.layers import TimeEmbedding
from ldm.sampling.guidance import ClassifierFree
from ldm.sampling.guidance_distilled import Distilled
from ldm.training.checkpoint import read_run
from ldm.training.initial import parts_of, refuse_other_network, refuse_other_text

LATE = ("late.guidance_embedding", "late.span_embedding", "guidance_embedding")


class Teacher(nn.Module):
    """A network and its text encoder, in evaluation mode whatever the training does.

    Args:
        network: Frozen.
        text_encoder: Frozen; what the network was trained with.
        hears_guidance: The network is told the guidance scale, so it need not be compared with no captions.
        content_hash: Of its checkpoint, 64 hex digits.
    """

    def __init__(
        self, network: nn.Module, text_encoder: nn.Module, *, hears_guidance: bool, content_hash: str
    ) -> None:
        super().__init__()
        self.network = network
        self.text_encoder = text_encoder
        self.hears_guidance = hears_guidance
        self.content_hash = content_hash
        network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    def denoiser(
        self,
        diffusion: Diffusion,
        scales: Tensor,
        *,
        captions: Callable[[nn.Module], Conditioning],
        no_captions: Callable[[nn.Module], Conditioning],
    ) -> Denoiser:
        """Guided by ``scales`` (B,): classifier-free, or as the network was taught.

        Args:
            diffusion: Resolved for these latents.
            scales: On the CPU.
            captions: The samples' conditioning, by a text encoder.
            no_captions: B times the null condition, by a text encoder.
        """
        network, cond, factors = cast(Network, self.network), captions(self.text_encoder), scales.tolist()
        if self.hears_guidance:
            return Distilled(scale=1.0)(diffusion, network, cond, None, scales=factors)
        uncond = no_captions(self.text_encoder)
        return ClassifierFree(scale=1.0)(diffusion, network, cond, uncond, scales=factors)


def read_teacher(where: str | Path, module: nn.Module, *, runs: str | Path) -> Teacher:
    """A run's averaged weights, where it kept some, in copies of a module's network and text encoder.

    The network may have inputs that the run's had not (``LateInputs``): they are silent in the copy.

    Args:
        where: The run's folder, ``<name>/<run id>``, ``<name>``, or one of its checkpoints.
        module: Has ``network``, ``text_encoder``, ``codec`` and ``text_contract``.
        runs: The folder that holds the runs.

    Raises:
        FileNotFoundError: There is no such run, or it has no checkpoint yet.
        ValueError: It is of another network, of the latents of another autoencoder, or of another text encoder.
    """
    own: Any = module
    saved = read_run(where, runs=runs)
    checkpoint = saved.checkpoint
    codec_hash = checkpoint.get("codec_hash")
    if codec_hash is None:
        raise ValueError(f"task.teacher={where} is no denoiser: name a run of task=diffusion")
    if codec_hash != own.codec.content_hash:
        raise ValueError(
            f"task.teacher={where} was trained on the latents of autoencoder {codec_hash[:12] or 'none'}, the codec "
            f"here is {own.codec.content_hash[:12] or 'none'}: give the one it was trained with by codec.path=..."
        )
    refuse_other_text(checkpoint.get("text_contract", {}), own.text_contract, where)
    parts = {**parts_of(checkpoint["state_dict"]), **(checkpoint.get("ema") or {})}
    network = deepcopy(own.network)
    load_with_late_inputs(network, parts["network"], where)
    text_encoder = own.text_encoder
    if "text_encoder" in parts:  # it was trained, so its weights are the run's
        text_encoder = deepcopy(text_encoder).requires_grad_(False)
        refuse_other_network("text_encoder", text_encoder, parts["text_encoder"], where)
        text_encoder.load_state_dict(parts["text_encoder"])
    return Teacher(
        network,
        text_encoder,
        hears_guidance=any("guidance_embedding." in name for name in parts["network"]),
        content_hash=saved.checkpoint_hash,
    )


def load_with_late_inputs(network: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Load a network's weights; embeddings of late inputs that they lack are made silent.

    Raises:
        ValueError: They are of another network.
    """
    own = network.state_dict()
    lacking = [
        prefix for prefix in LATE if any(name.startswith(f"{prefix}.") and name not in state for name in own)
    ]
    filled = {
        name: x for name, x in own.items() if name.startswith(tuple(f"{prefix}." for prefix in lacking))
    }
    refuse_other_network("network", network, {**filled, **state}, where)
    network.load_state_dict({**filled, **state})
    for prefix in lacking:
        silence(cast(TimeEmbedding, network.get_submodule(prefix)))
