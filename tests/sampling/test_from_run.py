from __future__ import annotations

from typing import Any

import pytest

from ldm.sampling.from_run import FromRun, GuidanceFromRun, with_parts
from ldm.sampling.generate import Generation
from ldm.sampling.grids import LogSNR, Uniform
from ldm.sampling.guidance import ClassifierFree, Unguided
from ldm.sampling.samplers import Euler, Heun

NOT_USED: Any = None
OWN = Generation(
    diffusion=NOT_USED,
    network=NOT_USED,
    text_encoder=NOT_USED,
    codec=NOT_USED,
    sampler=Euler(),
    grid=LogSNR(),
    guidance=ClassifierFree(scale=3.0, interval=(0.1, 0.9)),
    num_steps=25,
)


def changed(own: Generation = OWN, **parts: Any) -> Generation:
    stand_ins = {"sampler": FromRun(), "grid": FromRun(), "guidance": GuidanceFromRun(), "num_steps": None}
    return with_parts(own, **{**stand_ins, **parts})


def test_stand_ins_leave_all_as_it_was() -> None:
    assert changed() == OWN


def test_a_given_part_replaces_the_runs_own() -> None:
    new = changed(sampler=Heun(), grid=Uniform(), guidance=Unguided(), num_steps=7)
    assert (new.sampler, new.grid, new.guidance, new.num_steps) == (Heun(), Uniform(), Unguided(), 7)


def test_a_scale_alone_keeps_the_rest_of_the_runs_guidance() -> None:
    assert changed(guidance=GuidanceFromRun(scale=5.0)).guidance == ClassifierFree(
        scale=5.0, interval=(0.1, 0.9)
    )


def test_a_scale_switches_guidance_on_in_a_run_without() -> None:
    unguided = changed(guidance=Unguided())
    assert changed(unguided, guidance=GuidanceFromRun(scale=5.0)).guidance == ClassifierFree(scale=5.0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        changed(num_steps=0)
