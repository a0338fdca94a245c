"""What one picture is asked for with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as a person gives it: a line of a prompt file.

    Args:
        text: What to draw; the empty text asks for any picture.
        negative: What to draw away from, in place of the empty text.
        seed: The one seed it is drawn from; None where the command's seeds count.
        scale: Its own guidance scale; None for the guidance's.
    """

    text: str
    negative: str = ""
    seed: int | None = None
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Blend:
    """A second prompt and a second seed, and how far a picture lies towards them, in [0, 1]."""

    prompt: str
    seed: int
    fraction: float

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"a blend's fraction must lie in [0, 1], got {self.fraction}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture; with the model, the sampler and the batch size this determines it.

    Args:
        prompt: What to draw.
        seed: Of its noise.
        negative: What guidance compares with; the empty text is the null condition.
        scale: This picture's own guidance scale; None for the guidance's.
        blend: Towards which other prompt and noise it lies; None for none.
        original_size: (height, width) that networks with size conditioning are told the picture had before it was
            resized (SDXL: 2307.01952, section 2.2): large ones ask for detail; None for the size it is made in.
        crop: (top, left) that such networks are told was cut off.
    """

    prompt: str
    seed: int
    negative: str = ""
    scale: float | None = None
    blend: Blend | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)

    def sizes(self, height: int, width: int) -> tuple[int, ...]:
        """The six numbers of ``Conditioning.sizes`` for a picture made in this size."""
        return (*(self.original_size or (height, width)), *self.crop, height, width)
