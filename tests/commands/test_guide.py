from __future__ import annotations

from types import SimpleNamespace

import pytest

from ldm.commands.guide import check_training
from ldm.sampling.guidance import Autoguidance, ClassifierFree


def test_a_training_cannot_be_guided_by_a_second_model() -> None:
    check_training(SimpleNamespace(guidance=ClassifierFree(scale=2.0)))
    check_training(SimpleNamespace())  # an autoencoder's
    with pytest.raises(ValueError, match="a training does not load"):
        check_training(SimpleNamespace(guidance=Autoguidance(scale=2.0, run="small")))
