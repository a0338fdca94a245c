"""The report on a latent space as a metric: its numbers, and latents.png, which shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.evaluation.features import FeatureNetwork, Raw
from ldm.evaluation.latents import (
    Channels,
    Equivariance,
    Posterior,
    Robustness,
    Spectrum,
    channels,
    spectrum,
)
from ldm.evaluation.looking import Pictures
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.reconstruction import OfReconstructions
from ldm.evaluation.scores import PerSample
from ldm.evaluation.subject import Look, Measured, Subject
from ldm.needs import Need
from ldm.training.figures import new_grid, save

POSTERIOR, EQUIVARIANCE, ROBUSTNESS, RAW = Posterior(), Equivariance(), Robustness(), Raw()
LOOKED: tuple[FeatureNetwork, ...] = (POSTERIOR, EQUIVARIANCE, ROBUSTNESS, RAW)
AT = 0.1  # the noise at which the decoder's robustness is told as one number
HIGH = 0.5  # of the highest frequency: what lies above it is called high
SCORES = {
    "collapsed": True,  # share of channels
    "kurtosis": None,  # the largest, either way
    "high_frequency": None,  # share of variance
    "equivariance_scale": True,
    "equivariance_rotation": True,
    "robustness": True,  # dB lost at noise AT
}


@dataclass(frozen=True, kw_only=True)
class LatentReport(OfReconstructions):
    """Channels, spectrum, equivariance, robustness: six scores, latents.json and latents.png.

    See ``OfReconstructions``; of buckets only the fullest.
    """

    num_images: int | None = 1000

    def needs(self) -> list[Need]:
        return []

    def originals(self, subject: Subject) -> Pictures:
        return subject.reference(self.split, self.num_images, one_size=True)

    def protocols(self, subject: Subject) -> list[Protocol]:
        details = {"at": AT, "above": HIGH, "strengths": list(ROBUSTNESS.strengths)}
        first = next(iter(self.originals(subject).batches([0])))
        can_be_halved = all(side % (2 * subject.codec().downsample) == 0 for side in first.shape[-2:])
        return [
            self.passport(subject, f"latents/{name}", details=details)
            for name in SCORES
            if name != "equivariance_scale" or can_be_halved
        ]

    def looks(self, subject: Subject) -> list[Look]:
        originals = self.originals(subject)
        return [Look(originals, network) for network in LOOKED]

    def measure(self, subject: Subject) -> list[Measured]:
        originals = self.originals(subject)
        moments, moved, noised, images = (subject.features(originals, network) for network in LOOKED)
        found = channels(moments)
        latent, picture = spectrum(moments.chunk(2, dim=1)[0]), spectrum(images.float())
        lost = noised[:, :1] - noised  # (N, K) dB
        if subject.together.is_main:
            self._write(subject, found, latent, picture, moved, noised)
        at = ROBUSTNESS.strengths.index(AT)
        rows = {
            "equivariance_scale": moved[:, 0],
            "equivariance_rotation": moved[:, 1],
            "robustness": lost[:, at],
        }
        numbers = {
            "collapsed": float(found.collapsed.double().mean()),
            "kurtosis": float(found.kurtosis[found.kurtosis.abs().argmax()]),
            "high_frequency": latent.share_above(HIGH),
        }
        return [
            self._measured(protocol, numbers, rows, originals.keys, latent, picture)
            for protocol in self.protocols(subject)
        ]

    @staticmethod
    def _name(protocol: Protocol) -> str:
        return protocol.metric.partition("/")[2]

    def _measured(
        self,
        protocol: Protocol,
        numbers: dict[str, float],
        rows: dict[str, Tensor],
        keys: Sequence[str],
        latent: Spectrum,
        picture: Spectrum,
    ) -> Measured:
        name = self._name(protocol)
        better = SCORES[name]
        if name in numbers:
            extra = {"of_pictures": picture.share_above(HIGH)} if name == "high_frequency" else {}
            return Measured(
                protocol=protocol, value=numbers[name], num=len(keys), lower_is_better=better, extra=extra
            )
        values = rows[name].double()
        return Measured(
            protocol=protocol,
            value=float(values.mean()),
            num=len(values),
            influence=values,
            lower_is_better=better,
            per_sample=PerSample(tuple(keys), values[:, None].numpy()),
        )

    def _write(
        self,
        subject: Subject,
        found: Channels,
        latent: Spectrum,
        picture: Spectrum,
        moved: Tensor,
        noised: Tensor,
    ) -> None:
        """latents.json and latents.png."""
        subject.folder.mkdir(parents=True, exist_ok=True)
        report = {
            "scored": subject.title,
            "channels": {
                name: getattr(found, name).tolist() for name in ("mean", "std", "kurtosis", "carried")
            },
            "spectrum": _plain(latent),
            "spectrum_of_pictures": _plain(picture),
            "equivariance": dict(zip(("scale", "rotation"), _numbers(moved.mean(0)), strict=True)),
            "psnr_at_noise": dict(zip(map(str, ROBUSTNESS.strengths), noised.mean(0).tolist(), strict=True)),
        }
        (subject.folder / "latents.json").write_text(json.dumps(report, indent=1) + "\n")
        draw_report(
            subject.folder / "latents.png", found, latent, picture, moved, noised, title=subject.title
        )


def _plain(one: Spectrum) -> dict[str, list[float]]:
    return {"frequency": one.frequency.tolist(), "power": one.power.tolist()}


def _numbers(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def draw_report(
    path: Any,
    found: Channels,
    latent: Spectrum,
    picture: Spectrum,
    moved: Tensor,
    noised: Tensor,
    *,
    title: str,
) -> None:
    """Four panels: channels, spectra, equivariance, robustness."""
    figure, ((first, second), (third, fourth)) = new_grid(2, 2, size=(11, 7.5))
    figure.suptitle(title, fontsize=10)
    places = np.arange(len(found.std))
    first.errorbar(
        places, found.mean, yerr=found.std, fmt="o", ms=4, lw=1.2, color="#3465a4", label="mean, deviation"
    )
    first.plot(places, found.kurtosis, "x", color="#cc4c02", label="excess kurtosis")
    for place in places[found.collapsed.numpy()]:
        first.axvspan(place - 0.4, place + 0.4, color="#cc4c02", alpha=0.15)
    first.xaxis.get_major_locator().set_params(integer=True)
    first.set_xlabel(f"channel; {int(found.collapsed.sum())} of {len(places)} collapsed (shaded)")
    second.loglog(latent.frequency, latent.power, "o-", ms=3, color="#3465a4", label="latents")
    second.loglog(picture.frequency, picture.power, "-", color="#888888", label="pictures")
    second.axhline(1, lw=0.8, ls=":", color="#888888")
    second.set_xlabel("frequency, 1 is the highest; power of white noise is 1")
    for values, name, colour in zip(
        moved.T, ("half the size", "quarter turn"), ("#3465a4", "#cc4c02"), strict=True
    ):
        kept = values[values.isfinite()].numpy()
        if len(kept):
            label = f"{name}, mean {kept.mean():.3g}"
            third.hist(kept, bins=40, histtype="step", lw=1.4, color=colour, label=label)
    third.set_xlabel("encoding the moved picture against moving the latent, relative squared error")
    low, middle, high = torch.quantile(noised.double(), torch.tensor([0.1, 0.5, 0.9]).double(), dim=0)
    fourth.plot(
        ROBUSTNESS.strengths, middle, "o-", ms=4, color="#3465a4", label="median PSNR, 10 to 90 % of pictures"
    )
    fourth.fill_between(ROBUSTNESS.strengths, low, high, color="#3465a4", alpha=0.15)
    fourth.set_xlabel("noise on latents of unit variance")
    fourth.set_ylabel("dB")
    for panel in (first, second, third, fourth):
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8)
    save(figure, path)
