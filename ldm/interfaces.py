"""The contract page: the data that travels between the rooms, and what each part must be able to do.

Shape legend, used in every docstring::

    B  batch          C  latent channels     H W  latent height and width
    L  text tokens    D  token width         P    pooled width
    f  the codec's stride, so that a picture is (B, 3, f*H, f*W)

Time runs from t = 0 (data) to t = 1 (noise), for every schedule::

    x_t = alpha(t) * x0 + sigma(t) * eps
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.transfer import sent


@dataclass(frozen=True)
class Conditioning:
    """What a network is told besides x_t and t. What a network has no use for may be None."""

    tokens: Tensor  # (B, L, D)
    mask: Tensor  # (B, L) bool, True where a real token stands; at least one per row
    pooled: Tensor  # (B, P)
    labels: Tensor | None = None  # (B,) int64 class labels; the number of classes stands for "no class"
    sizes: Tensor | None = None  # (B, 6) pixels: original height, width, crop top, left, target height, width
    guidance: Tensor | None = None  # (B,) the guidance scale, for networks it was distilled into
    span: Tensor | None = None  # (B,) how much time the answered velocity is an average over; None is 0

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> Conditioning:
        return self.each(lambda x: sent(x, device))

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return self.each(lambda x: x[rows])

    def where(self, kept: Tensor, other: Conditioning) -> Conditioning:
        """These rows, and those of ``other``, B or one for all, where ``kept`` (B,) is False."""
        kept = sent(kept, self.tokens.device)

        def chosen(name: str, x: Tensor) -> Tensor:
            return torch.where(kept.view(-1, *[1] * (x.dim() - 1)), x, getattr(other, name))

        given = {field.name: x for field in fields(self) if (x := getattr(self, field.name)) is not None}
        return replace(self, **{name: chosen(name, x) for name, x in given.items()})

    def float(self) -> Conditioning:
        """What is kept in half precision, in single."""
        return self.each(lambda x: x.float() if x.is_floating_point() else x)

    @staticmethod
    def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
        """Stack along the batch; shorter token sequences are padded with masked zeros.

        Raises:
            ValueError: An optional field is given in some parts and missing in others.
        """
        length = max(part.tokens.shape[1] for part in parts)

        def padded(x: Tensor) -> Tensor:
            shape = (x.shape[0], length - x.shape[1], *x.shape[2:])
            return torch.cat([x, x.new_zeros(shape)], dim=1)

        def optional(name: str) -> Tensor | None:
            given = [x for part in parts if (x := getattr(part, name)) is not None]
            if given and len(given) < len(parts):
                raise ValueError(
                    f"{name} is given in {len(given)} of {len(parts)} conditionings: give it in all"
                )
            return torch.cat(given) if given else None

        return Conditioning(
            tokens=torch.cat([padded(part.tokens) for part in parts]),
            mask=torch.cat([padded(part.mask) for part in parts]),
            pooled=torch.cat([part.pooled for part in parts]),
            labels=optional("labels"),
            sizes=optional("sizes"),
            guidance=optional("guidance"),
            span=optional("span"),
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """With ``change`` made to every field that is given."""
        given = {field.name: x for field in fields(self) if (x := getattr(self, field.name)) is not None}
        return replace(self, **{name: change(x) for name, x in given.items()})


@dataclass(frozen=True)
class EncodedText:
    """What a text encoder said beforehand of the captions of a batch, and of the empty one."""

    captions: Conditioning  # B
    null: Conditioning  # 1, the null condition

    def to(self, device: torch.device | str) -> EncodedText:
        return replace(self, captions=self.captions.to(device), null=self.null.to(device))

    def __getitem__(self, rows: slice) -> EncodedText:
        return replace(self, captions=self.captions[rows])

    def conditioning(self, kept: Tensor) -> Conditioning:
        """The captions', in float32, and the null condition where ``kept`` (B,) is False."""
        return self.captions.where(kept, self.null).float()


@dataclass(frozen=True)
class Batch:
    """One step's samples, as the data side hands them over; exactly one of images and moments is set."""

    captions: list[str]
    images: Tensor | None  # (B, 3, fH, fW) float32 in [-1, 1]
    moments: Tensor | None  # (B, 2C, H, W) posterior mean and log-variance, when encoded beforehand; float16
    keys: list[str]  # which sample of which shard, e.g. "00003/000030017": what randomness is tied to
    visits: list[int]  # how often each sample was seen before: the epoch, the other half of randomness
    slots: range  # the places of these samples in the step's global batch
    num_slots: int  # the size of the step's global batch, over all processes
    sizes: Tensor | None = None  # (B, 6) pixels, as in Conditioning: how each picture was resized and cropped
    text: EncodedText | None = None  # the captions, when encoded beforehand
    completes_step: bool = (
        True  # False for the pieces but the last where gradients are accumulated over several
    )

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        given = {name: getattr(self, name) for name in ("images", "moments", "sizes")}
        moved: dict[str, Any] = {name: sent(x, device) for name, x in given.items() if x is not None}
        return replace(self, **moved, text=None if self.text is None else self.text.to(device))

    def pieces(self, num: int) -> list[Batch]:
        """Split into ``num`` of equal length, in order; together they are the step's batch.

        Raises:
            ValueError: The samples cannot be shared equally.
        """
        size, left = divmod(len(self), num)
        if left or not size:
            raise ValueError(f"{len(self)} samples cannot be split into {num} pieces of equal length")
        cuts = [slice(i * size, (i + 1) * size) for i in range(num)]
        return [
            replace(
                self,
                captions=self.captions[cut],
                images=None if self.images is None else self.images[cut],
                moments=None if self.moments is None else self.moments[cut],
                sizes=None if self.sizes is None else self.sizes[cut],
                text=None if self.text is None else self.text[cut],
                keys=self.keys[cut],
                visits=self.visits[cut],
                slots=self.slots[cut],
                completes_step=cut.stop == len(self),
            )
            for cut in cuts
        ]


class Prediction(NamedTuple):
    """What a denoiser says of x_t; the two satisfy x_t = alpha * x0 + sigma * eps."""

    x0: Tensor  # (B, C, H, W) float32
    eps: Tensor  # (B, C, H, W) float32


class NoiseSchedule(Protocol):
    """alpha / sigma falls from infinity at t = 0 to (almost) 0 at t = 1.

    All three functions of t: any shape -> same shape, float32 or better. ``ldm.diffusion.schedules.Schedule`` is the
    base class with the two defaults.
    """

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: t itself, unless published networks were trained with another number."""
        ...

    def for_latents(self, shape: tuple[int, int, int]) -> NoiseSchedule:
        """The schedule for latents (C, H, W): itself, unless it depends on the resolution."""
        ...


class Parameterization(Protocol):
    """What the network is asked to output, as a line through (x0, eps)."""

    def target_coeffs(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) such that target = p * x0 + q * eps; same shape as alpha."""
        ...

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What x_t is multiplied with on its way into the network; 1 except for EDM."""
        ...


class TimeSampler(Protocol):
    """The law of t in training, stated as its quantile function.

    Uniform draws come in, so one definition serves draws tied to samples, stratified draws over the global
    batch and pinned validation grids alike.
    """

    def __call__(self, u: Tensor, *, slots: range, num_slots: int, schedule: NoiseSchedule) -> Tensor:
        """(n,) draws from (0, 1), one per slot of a global batch of ``num_slots`` -> (n,) times in [0, 1].

        ``schedule`` is for laws that are stated in sigma and not in t.
        """
        ...


class Weighting(Protocol):
    """A loss weight stated once, in x0 space, whatever the network predicts."""

    def __call__(self, log_snr: Tensor, x0_factor: Tensor) -> Tensor:
        """The factor on the squared error of the network's output.

        Args:
            log_snr: (B,) log(alpha^2 / sigma^2).
            x0_factor: (B,) squared x0 error per squared output error, (sigma / det)^2. A weight w on the squared
                x0 error is ``w * x0_factor``.
        """
        ...


MoreNoise = Callable[[Sequence[int]], Tensor]
"""Shape -> (B, *shape) further standard normal noise for the samples of a batch; row i is tied to sample i."""


class TrainingNoise(Protocol):
    """Which noise training adds."""

    def __call__(self, eps: Tensor, more: MoreNoise) -> Tensor:
        """Standard normal eps (B, C, H, W) -> (B, C, H, W)."""
        ...


class Coupling(Protocol):
    """Which picture of a batch gets which noise."""

    def __call__(self, x0: Tensor, eps: Tensor) -> Tensor:
        """x0, eps (B, C, H, W) -> eps with its rows in another order."""
        ...


class Contrast(Protocol):
    """How near the network's output may come to the targets of other samples."""

    def __call__(self, output: Tensor, x0: Tensor, eps: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """output, x0, eps (B, C, H, W), p and q (B, 1, 1, 1) -> (B,), what is taken off the squared error."""
        ...


class Uncertainty(Protocol):
    """How the losses at different noise levels are brought to one scale."""

    def __call__(self, loss: Tensor, log_snr: Tensor) -> Tensor:
        """Weighted squared errors (B,) at log_snr (B,) -> the losses that are minimised, (B,)."""
        ...


class Network(Protocol):
    """The U-Net / DiT / MMDiT."""

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """x (B, C, H, W), t (B,) -> (B, C, H, W); any H x W that the patch size divides.

        t is the schedule's ``network_time``: in [0, 1], but for ``VarianceExploding``.
        """
        ...


class Denoiser(Protocol):
    """Network, parameterization and conditioning, bound."""

    def __call__(self, x_t: Tensor, t: Tensor | float) -> Prediction:
        """x_t (B, C, H, W); t (B,), or one number where all rows stand at the same time.

        A sampler hands over numbers: what depends on the time alone (does guidance act here?) is then decided in
        Python, and no step waits for the device to say what time it is.
        """
        ...


NoiseSource = Callable[[int], Tensor]
"""Step number -> (B, C, H, W) standard normal noise; row i depends on image i's own seed only."""

StepCallback = Callable[[int, Tensor, Prediction], None]
"""Called before each step with its number, x_t and the prediction."""


class Sampler(Protocol):
    """Walks x from times[0] to times[-1]; a pure function."""

    def __call__(
        self,
        denoise: Denoiser,
        schedule: NoiseSchedule,
        x: Tensor,
        times: Tensor,
        *,
        noise: NoiseSource,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """x (B, C, H, W) at times[0], times (num_steps + 1,) falling -> x at times[-1]."""
        ...


class Guidance(Protocol):
    """Turns a network and two conditionings into the denoiser a sampler walks along."""

    @property
    def needs_uncond(self) -> bool:
        """Whether the answer without the prompt (or to a negative prompt) is asked for."""
        ...

    def __call__(
        self,
        diffusion: DenoiserFactory,
        network: Network,
        cond: Conditioning,
        uncond: Conditioning | None,
        *,
        scales: Sequence[float] | None = None,
        weaker: Denoiser | None = None,
    ) -> Denoiser:
        """The denoiser for one walk; what it remembers on the way, if anything, ends with it.

        Args:
            diffusion: What the network was trained with, its schedule resolved for these latents.
            network: The network to guide.
            cond: The prompts', B.
            uncond: B times the null condition, or negative prompts in its place.
            scales: One guidance scale per prompt, in place of the guidance's own.
            weaker: A weaker model's denoiser for the same prompts, for guidance that needs one.
        """
        ...


class DenoiserFactory(Protocol):
    """The part of ``Diffusion`` that guidance needs."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def denoiser(self, network: Network, cond: Conditioning) -> Denoiser: ...


class TextEncoder(Protocol):
    """Captions -> Conditioning. The empty caption is the null condition, for every encoder."""

    width: int  # D
    pooled_width: int  # P
    length: int  # the most tokens a caption may take
    contract: Mapping[
        str, Any
    ]  # plain data: all that an embedding depends on besides its caption and learned weights
    content_hash: str  # the contract's: what a cache of embeddings is named by

    def __call__(self, captions: Sequence[str]) -> Conditioning: ...


@runtime_checkable
class CountsCutCaptions(Protocol):
    """A text encoder that knows how many captions were longer than it takes."""

    def shares_cut(self) -> Mapping[str, float]:
        """Share of the captions so far, in [0, 1], by the names of joined encoders; of a single one under ""."""
        ...


class LatentCodec(Protocol):
    """Images <-> normalised latents: posterior samples have zero mean and unit variance per channel."""

    channels: int  # C
    downsample: int  # f
    content_hash: str  # of weights and latent statistics; "" where there are none (identity)

    def moments(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) in [-1, 1] -> (B, 2C, H, W), mean and log-variance of the posterior."""
        ...

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        """(B, 2C, H, W) -> (B, C, H, W): the posterior's mean, or its sample with ``noise`` (B, C, H, W)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, fH, fW), about [-1, 1], not clipped."""
        ...
