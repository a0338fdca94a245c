"""What the schema lets through and what it refuses, on a toy package."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from ldm.commands.messages import ConfigError, nearest
from ldm.commands.schema import check

pytestmark = pytest.mark.usefixtures("toy")

NET = {"_target_": "toy.parts.Net", "width": 3}


def examine(**values: Any) -> None:
    check(OmegaConf.create(values), allowed=("toy.",))


def refusal(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        examine(**values)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "extra",
    [
        {"rate": 1},
        {"rate": 1e-4},
        {"name": None},
        {"name": "x"},
        {"mode": "b"},
        {"sizes": []},
        {"sizes": [1, 2]},
        {"size": 3},
        {"size": [3, 4]},
        {"act": None},
        {"act": {"_target_": "toy.parts.build", "_partial_": True}},
        {"table": {"a": 1, "b": 0.5}},
        {"flag": True},
        {"_convert_": "all"},
    ],
)
def test_right_values_pass(extra: dict[str, Any]) -> None:
    examine(**NET, **extra)


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ({"depth": 2.0}, "depth"),
        ({"depth": "2"}, "depth"),
        ({"depth": True}, "depth"),
        ({"depth": None}, "depth"),
        ({"rate": "fast"}, "rate"),
        ({"name": 3}, "name"),
        ({"mode": "c"}, "mode"),
        ({"sizes": "1"}, "sizes"),
        ({"sizes": [1, "2"]}, "sizes[1]"),
        ({"pair": [1, 2, 3]}, "pair"),
        ({"pair": [1, "2"]}, "pair[1]"),
        ({"size": [1, "2"]}, "size[1]"),
        ({"act": 3}, "act"),
        ({"act": {"x": 3}}, "act"),
        ({"table": {"a": "x"}}, "table.a"),
        ({"flag": 1}, "flag"),
        ({"_partial_": "yes"}, "_partial_"),
    ],
)
def test_wrong_types_are_named(extra: dict[str, Any], key: str) -> None:
    assert refusal(**NET, **extra).startswith(f"{key}: expected ")


def test_a_misspelt_key_gets_the_nearest_one() -> None:
    message = refusal(part=NET | {"dpeth": 3}, _target_="toy.parts.Holder")
    assert message == "part.dpeth: Net has no parameter 'dpeth'; did you mean 'depth'?"


def test_objects_inside_lists_are_looked_at() -> None:
    message = refusal(_target_="toy.parts.Holder", part=NET, parts=[NET, NET | {"widht": 3}])
    assert message.startswith("parts[1].widht: ") and "'width'" in message


def test_required_parameters_are_asked_for_unless_partial() -> None:
    assert "Net also needs width" in refusal(_target_="toy.parts.Net")
    examine(_target_="toy.parts.Net", _partial_=True)


def test_a_missing_value_is_named() -> None:
    assert refusal(**NET | {"width": "???"}) == "width has no value yet; give width=..."


def test_an_object_is_not_a_plain_mapping() -> None:
    assert "without _target_" in refusal(_target_="toy.parts.Holder", part={"width": 3})
    assert "expected Net" in refusal(_target_="toy.parts.Holder", part="net")


def test_what_is_borrowed_is_reported_at_home() -> None:
    message = refusal(_target_="toy.parts.build", first=1, net=NET | {"dpeth": 1}, holder="${net}")
    assert message.startswith("net.dpeth: ")


def test_open_signatures_still_have_their_objects_checked() -> None:
    assert "refused" in refusal(_target_="toy.parts.build", first=1, extra={"_target_": "os.system"})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "hydra.utils.get_method",
        "toy.os.system",
        "toy.parts.subprocess.run",
        "toy.parts.Tensor",
        "toy.parts.Size",
        "toy.parts",
        "toyota.Net",
    ],
)
def test_foreign_targets_are_refused(target: str) -> None:
    message = refusal(_target_="toy.parts.build", first=1, extra={"_target_": target})
    assert message.startswith("extra._target_: ") and f"'{target}'" in message


@pytest.mark.parametrize(
    "target",
    [
        "lightning.pytorch.cli.LightningCLI",
        "lightning.pytorch.utilities.rank_zero.rank_zero_info",
        "lightning.pytorch.callbacks.os.system",
        "torch.load",
        "torch.optim.optimizer.torch.load",
        "torch.optim.swa_utils.get_ema_avg_fn",
        "torch.nn.Linear",
        "bitsandbytes.nn.Linear8bitLt",
        "bitsandbytes.optim.optimizer.sync_gpu",
        "ldm.randomness.torch.load",
        "ldm.commands.shapes.shapes",
    ],
)
def test_the_real_list_is_short(target: str) -> None:
    config = OmegaConf.create({"callbacks": {"x": {"_target_": target}}})
    with pytest.raises(ConfigError, match=r"callbacks\.x\._target_"):
        check(config, record="ldm.commands.settings.TrainConfig")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.commands import schema

    monkeypatch.setattr(schema.signatures, "load", lambda name: None)
    config = OmegaConf.create({"callbacks": {"x": {"_target_": "bitsandbytes.optim.AdamW8bit"}}})
    with pytest.raises(ConfigError, match=r"is not installed: pip install 'ldm\[optimizers\]'"):
        check(config.callbacks.x)


def test_positional_arguments_and_made_up_mappings_are_refused() -> None:
    assert "_args_" in refusal(**NET, _args_=[1])
    made = "${oc.create:'{_target_: os.system, command: ls}'}"
    assert "refused" in refusal(_target_="toy.parts.Holder", part=made)


def test_resolvers_that_are_not_there_and_dangling_references() -> None:
    assert "eval" in refusal(**NET, rate="${eval:1}")
    assert "'nowhere'" in refusal(**NET, rate="${nowhere}")


def test_environment_variables_may_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_NAME", "x")
    examine(**NET, name="${oc.env:TOY_NAME}")


def test_nearest() -> None:
    assert nearest("dpeth", ["depth", "width"]) == "did you mean 'depth'?"
    assert nearest("zzz", ["depth", "width"]).startswith("the nearest is '")
    assert nearest("x", []) == "there are none"
