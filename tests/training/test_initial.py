"""Weights to begin with; the whole way, by commands, is in tests/commands/test_export.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldm.interop.native import write_parts
from ldm.training.initial import begin_with


class Module(nn.Module):
    """What ``begin_with`` needs of a LightningModule."""

    def __init__(self, width: int = 3, codec_hash: str = "abc") -> None:
        super().__init__()
        self.network = nn.Linear(2, width)
        self.text_encoder = nn.LayerNorm(4)
        self.codec = SimpleNamespace(content_hash=codec_hash)

    def parts(self) -> dict[str, nn.Module]:
        return {"network": self.network, "text_encoder": self.text_encoder}


def run_with(folder: Path, checkpoint: dict) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder


def test_a_file_and_its_folder_are_the_same(tmp_path: Path) -> None:
    given = Module()
    write_parts(tmp_path / "weights.safetensors", given.parts(), codec_hash="abc")
    for where in (tmp_path, tmp_path / "weights.safetensors"):
        module = Module()
        assert begin_with(module, where) == f"begins with network and text_encoder of {where}"
        assert torch.equal(module.network.weight, given.network.weight)


def test_what_is_not_given_begins_anew_and_it_says_so(tmp_path: Path) -> None:
    write_parts(tmp_path / "weights.safetensors", {"network": nn.Linear(2, 3)}, codec_hash="")
    module = Module()
    before = module.text_encoder.weight.clone()
    assert begin_with(module, tmp_path).endswith("; text_encoder begins anew")
    assert torch.equal(module.text_encoder.weight, before)


def test_of_a_run_the_average_is_taken_where_it_kept_one(tmp_path: Path) -> None:
    plain, averaged = Module(), Module()
    state = dict(plain.state_dict())
    average = {name: part.state_dict() for name, part in averaged.parts().items()}
    both = run_with(tmp_path / "tiny/both", {"state_dict": state, "ema": average, "codec_hash": "abc"})
    alone = run_with(tmp_path / "tiny/alone", {"state_dict": state, "codec_hash": "abc"})
    for where, expected in ((both, averaged), (alone, plain), (alone / "checkpoints/last.ckpt", plain)):
        module = Module()
        begin_with(module, where)
        assert torch.equal(module.network.weight, expected.network.weight)
    module = Module()
    begin_with(module, "tiny/both", runs=tmp_path)
    assert torch.equal(module.network.weight, averaged.network.weight)


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    write_parts(tmp_path / "weights.safetensors", Module().parts(), codec_hash="abc")
    wide = Module(width=5)
    before = wide.text_encoder.weight.clone()
    message = (
        r"does not fit network, a Linear: weight is \(3, 2\) and not \(5, 2\); bias is \(3,\) and not \(5,\)"
    )
    with pytest.raises(ValueError, match=message):
        begin_with(wide, tmp_path)
    assert torch.equal(wide.text_encoder.weight, before)
    with pytest.raises(ValueError, match="on the latents of autoencoder abc, the codec here is other"):
        begin_with(Module(codec_hash="other"), tmp_path)
    write_parts(tmp_path / "vae" / "weights.safetensors", {"autoencoder": nn.Linear(1, 1)}, codec_hash="")
    with pytest.raises(ValueError, match="holds autoencoder, and none of network, text_encoder"):
        begin_with(Module(), tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match=r"there is no .*nothing\.ckpt"):
        begin_with(Module(), tmp_path / "nothing.ckpt")


def test_another_text_encoder_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    """Of a file and of a run, where both sides say what captions became."""
    given, then = Module(), {"encoder": "ClipText", "length": 77}
    write_parts(tmp_path / "weights.safetensors", given.parts(), codec_hash="abc", text_contract=then)
    checkpoint = {"state_dict": dict(given.state_dict()), "codec_hash": "abc", "text_contract": then}
    for where in (tmp_path, run_with(tmp_path / "tiny/one", checkpoint)):
        other = Module()
        other.text_contract = {**then, "length": 120}  # type: ignore[assignment]
        before = other.network.weight.clone()
        with pytest.raises(ValueError, match=r"length was 77 and is 120\. .* or init_other_text=true"):
            begin_with(other, where)
        assert torch.equal(other.network.weight, before)
        begin_with(other, where, other_text=True)
        assert torch.equal(other.network.weight, given.network.weight)
        same = Module()
        same.text_contract = then  # type: ignore[assignment]
        begin_with(same, where)
        begin_with(Module(), where)  # which knows of no text
