"""From a published autoencoder to the one file that ``codec=kl`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.codecs.contract import LatentContract
from ldm.codecs.kl import write_autoencoder
from ldm.interop.weights import AutoencoderMap, to_ours
from ldm.nn.autoencoder_base import Autoencoder


def convert_autoencoder(
    found: AutoencoderMap, *, config: Mapping[str, Any], theirs: Mapping[str, Tensor], out: Path
) -> LatentContract:
    """Write ``out`` with weights of theirs in float32, and with their scaling and shift as its latent contract.

    Args:
        found: The map of their class.
        config: Their config.json.
        theirs: Their weights.
        out: The file to write, for codec.path=...

    Raises:
        ValueError: The config asks for something that ours has not, or the weights are not of this config.
    """
    network = found.build(config)
    assert isinstance(network, Autoencoder)
    network.load_state_dict(to_ours(found.rules(network), found.present_names(theirs), network))
    mean, std = found.latent_scale(config)
    stated = LatentContract(
        mean=mean, std=std, downsample=network.downsample, num_images=0
    )  # none were measured
    return write_autoencoder(out, autoencoder=network, contract=stated)
