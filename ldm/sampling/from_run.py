"""Stand-ins for "as the run was configured": commands that load a run use its own parts unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ldm.interfaces import Guidance, Sampler
from ldm.sampling.generate import Generation
from ldm.sampling.grids import Grid
from ldm.sampling.guidance import ClassifierFree


@dataclass(frozen=True)
class FromRun:
    """The run's own sampler or grid."""

    def resolve(self, own: Any) -> Any:
        return own


@dataclass(frozen=True, kw_only=True)
class GuidanceFromRun:
    """The run's own guidance, with another scale if one is given; everything else about it stays.

    Args:
        scale: Replaces the run's; with a run that had no guidance it means ``ClassifierFree``.
    """

    scale: float | None = None

    def resolve(self, own: Any) -> Any:
        if self.scale is None:
            return own
        if any(field.name == "scale" for field in fields(own)):
            return replace(own, scale=self.scale)
        return ClassifierFree(scale=self.scale)


def with_parts(
    own: Generation,
    *,
    sampler: Sampler | FromRun,
    grid: Grid | FromRun,
    guidance: Guidance | FromRun | GuidanceFromRun,
    num_steps: int | None,
) -> Generation:
    """``own`` with other parts; a stand-in, or None for ``num_steps``, leaves the run's own.

    Raises:
        ValueError: ``num_steps`` is less than 1.
    """
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")

    def chosen(part: Any, own_part: Any) -> Any:
        return part.resolve(own_part) if isinstance(part, FromRun | GuidanceFromRun) else part

    return replace(
        own,
        sampler=chosen(sampler, own.sampler),
        grid=chosen(grid, own.grid),
        guidance=chosen(guidance, own.guidance),
        num_steps=num_steps or own.num_steps,
    )
