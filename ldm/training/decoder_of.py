"""Training only the decoder of a finished autoencoder: its latents stay, and with them all that was made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.codecs.contract import LatentContract
from ldm.codecs.kl import KLCodec, read_autoencoder
from ldm.needs import Need
from ldm.nn.autoencoder_base import Autoencoder


@dataclass(frozen=True, kw_only=True)
class DecoderOf:
    """Which autoencoder.

    Args:
        path: Its ``autoencoder.safetensors``.
    """

    path: str

    def needs(self) -> Sequence[Need]:
        return KLCodec.needs_for(path=self.path)

    def begin(self, autoencoder: Autoencoder) -> LatentContract:
        """Load its weights and freeze what latents depend on; the contract of the file that training will leave.

        Raises:
            MissingNeeds: There is no such file.
            ValueError: It is of another network than the one to train.
        """
        finished, contract = read_autoencoder(Path(self.path))
        if type(finished) is not type(autoencoder) or finished.architecture != autoencoder.architecture:
            raise ValueError(
                f"decoder_of.path={self.path} is {type(finished).__name__} {finished.architecture}, and the network to "
                f"train {type(autoencoder).__name__} {autoencoder.architecture}: give network= as it was trained with"
            )
        autoencoder.load_state_dict(finished.state_dict())
        for part in autoencoder.encoding_parts():
            part.requires_grad_(False)
        return replace(contract, origin=contract.latent_hash, content_hash="")
