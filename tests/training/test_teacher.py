"""Weights of a network without late inputs in one that has them: nothing changes until they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm.training.teacher import load_with_late_inputs
from tests.nn.test_late_inputs import NETWORKS, answer, awake


@NETWORKS
def test_the_first_answer_is_the_teachers_whatever_is_told(build: Any) -> None:
    plain, student = awake(build()), build(guidance=2.0, average=True)
    load_with_late_inputs(student, plain.state_dict(), "teacher")
    told = {"guidance": torch.tensor([1.0, 3.0, 9.0]), "span": torch.tensor([0.0, 0.4, 1.0])}
    assert torch.equal(answer(student, **told), answer(plain))


@NETWORKS
def test_inputs_that_the_teacher_had_keep_their_weights(build: Any) -> None:
    teacher, student = awake(build(guidance=2.0)), build(guidance=2.0, average=True)
    for name, parameter in teacher.named_parameters():
        if "guidance_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    load_with_late_inputs(student, teacher.state_dict(), "teacher")
    told = {"guidance": torch.tensor([1.0, 3.0, 9.0])}
    assert torch.equal(answer(student, **told), answer(teacher, **told))
    assert not torch.equal(answer(student, **told), answer(student))


@NETWORKS
def test_another_network_is_refused(build: Any) -> None:
    state = build().state_dict()
    name = next(name for name in state if name.startswith("time_embedding"))
    with pytest.raises(ValueError, match=f"it lacks {name}"):
        load_with_late_inputs(build(average=True), {k: x for k, x in state.items() if k != name}, "teacher")
