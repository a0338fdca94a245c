"""Folders of diffusers, read and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.interop.catalogue import described, map_for
from ldm.interop.folder import read_component, read_json, read_weights
from ldm.interop.native import read_parts, write_parts
from tests.interop import tiny
from tests.interop.witness import with_random_weights


def written(folder: Path) -> torch.nn.Module:
    network = with_random_weights(tiny.mmdit())
    from ldm.interop.folder import write_component

    found, config = described(network)
    write_component(folder, found, network, config, max_shard_bytes=5_000)
    return network


def test_what_is_written_is_read_bit_for_bit_also_in_shards(tmp_path: Path) -> None:
    network = written(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = read_component(tmp_path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    written(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        read_component(tmp_path)


def test_a_variant_is_read_where_it_is_the_only_file(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(read_weights(tmp_path)["x"], torch.ones(2))
    save_file({"x": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(ValueError, match="several files of weights"):
        read_weights(tmp_path)


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_component(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="should hold a mapping, not a list"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(
        ValueError, match=r"VQModel has no counterpart here; known are .*UNet2DConditionModel"
    ):
        read_component(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match=r"model\.bin is a pickle, which is not read here"):
        read_weights(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_weights(tmp_path)


def test_every_class_is_found_by_its_name_and_its_network() -> None:
    for class_name in (
        "UNet2DConditionModel",
        "DiTTransformer2DModel",
        "PixArtTransformer2DModel",
        "SD3Transformer2DModel",
        "FluxTransformer2DModel",
        "AutoencoderKL",
    ):
        assert map_for(class_name).class_name == class_name
    for kind in tiny.KINDS.values():
        network = kind.network()
        found, config = described(network)
        assert isinstance(found.build(config), type(network))
    with pytest.raises(ValueError, match="no class for a Linear"):
        described(torch.nn.Linear(2, 2))


def test_parts_by_our_own_names(tmp_path: Path) -> None:
    parts = {"network": torch.nn.Linear(2, 3), "text_encoder": torch.nn.LayerNorm(4)}
    write_parts(tmp_path / "weights.safetensors", parts, codec_hash="abc")
    weights = read_parts(tmp_path / "weights.safetensors")
    assert weights.codec_hash == "abc" and weights.parts.keys() == parts.keys()
    for name, part in parts.items():
        part.load_state_dict(weights.parts[name])
    assert torch.equal(weights.parts["network"]["weight"], parts["network"].weight)
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="ldm import from="):
        read_parts(tmp_path / "other.safetensors")
    assert [path.name for path in tmp_path.glob(".tmp*")] == []
