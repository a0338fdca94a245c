"""Signatures from source text say what inspect would say of the imported thing."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest

from ldm.commands import signatures

pytestmark = pytest.mark.usefixtures("toy")


def required(name: str) -> set[str]:
    signature = signatures.signature(name)
    assert signature is not None
    return {p.name for p in signature.parameters.values() if p.required}


@pytest.mark.parametrize(
    "name",
    [
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "ldm.interfaces.Conditioning",
        "ldm.randomness.normal",
        "ldm.commands.settings.TrainConfig",
    ],
)
def test_agrees_with_inspect(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values()
    found = signatures.signature(name)
    assert found is not None
    assert set(found.parameters) == {p.name for p in parameters if p.kind != p.VAR_KEYWORD}
    assert required(name) == {p.name for p in parameters if p.default is p.empty and p.kind != p.VAR_KEYWORD}


def test_dataclass_fields_are_inherited_and_hidden_ones_left_out() -> None:
    found = signatures.signature("toy.parts.Child")
    assert found is not None
    assert list(found.parameters) == ["left", "right", "listed"]
    assert required("toy.parts.Child") == {"left"}


def test_init_is_inherited_and_a_bare_module_takes_nothing() -> None:
    assert required("toy.parts.Wide") == {"width"}
    silent = signatures.signature("toy.parts.Silent")
    assert silent is not None and not silent.parameters and not silent.open


def test_functions_with_free_keywords_are_open() -> None:
    found = signatures.signature("toy.parts.build")
    assert found is not None
    assert found.open and list(found.parameters) == ["first", "second"] and found.doc == "Build it."


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("toy.Renamed", "toy.parts.Net"),
        ("toy.Starred", "toy.more.Starred"),
        ("toy.parts.Base", "toy.more.Base"),
    ],
)
def test_reexports_are_followed_home(name: str, home: str) -> None:
    found = signatures.find(name)
    assert found is not None and found.dotted == home


@pytest.mark.parametrize(
    "name", ["toy.parts.Nothing", "toy.nowhere.Net", "nowhere.Net", "toy.parts.Net.width", "toy"]
)
def test_a_path_to_nothing_is_none(name: str) -> None:
    assert signatures.signature(name) is None


def test_nothing_is_imported() -> None:
    assert signatures.signature("toy.trap.Trap") is not None
    assert not any(name.split(".")[0] == "toy" for name in sys.modules)


def test_a_parameter_that_cannot_have_a_keywords_name_is_called_by_it_all_the_same() -> None:
    found = signatures.signature("ldm.commands.import_.import_")
    assert found is not None
    assert "from" in found.parameters and "from_" not in found.parameters
    assert required("ldm.commands.import_.import_") >= {"from", "out"}
