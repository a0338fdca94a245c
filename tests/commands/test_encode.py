"""``ldm encode``: latents land where training looks for them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.codecs.contract import LatentContract
from ldm.codecs.kl import KLCodec, write_autoencoder
from ldm.commands.encode import encode
from ldm.data.latents import LatentDataset, contract_for, latents_folder
from ldm.data.pipeline import ShardDataset, in_order
from ldm.data.shards import ShardWriter
from ldm.nn.autoencoder import AutoencoderKL


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and the file of an untrained autoencoder."""
    place = tmp_path_factory.mktemp("encode")
    torch.manual_seed(0)
    network = AutoencoderKL(
        latent_channels=2, channels=[4, 8], blocks_per_level=1, num_groups=2, attention=False
    )
    write_autoencoder(
        place / "autoencoder.safetensors",
        autoencoder=network,
        contract=LatentContract(mean=(0.0, 0.0), std=(1.0, 1.0), downsample=network.downsample, num_images=1),
    )
    random = np.random.default_rng(0)
    with ShardWriter(place / "shards") as writer:
        for i in range(9):
            out = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
            writer.write(out.getvalue(), "png", f"sample {i}", {})
    return place


def test_latents_land_where_training_looks_for_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = {
        "run": str(place / "autoencoder.safetensors"),
        "shards": str(place / "shards"),
        "image_size": 8,
    }
    encode(**options, out=str(tmp_path), batch_size=4, device="cpu")  # type: ignore[arg-type]
    codec = KLCodec(path=options["run"])  # type: ignore[arg-type]
    pictures = ShardDataset(shards=str(place / "shards"), image_size=8)
    folder = latents_folder(tmp_path, contract_for(codec.content_hash, pictures))
    assert str(folder) in capsys.readouterr().out
    cached = LatentDataset(folder, codec_hash=codec.content_hash)
    for a, b in zip(cached.in_order(batch_size=4), in_order(pictures, batch_size=4), strict=True):
        assert b.images is not None and (a.keys, a.captions) == (b.keys, b.captions)
        torch.testing.assert_close(a.moments, codec.moments(b.images), rtol=2e-3, atol=2e-3)
    encode(**options, out=str(tmp_path), batch_size=4, device="cpu")  # type: ignore[arg-type]
    assert "there already" in capsys.readouterr().out


def test_what_is_missing_or_does_not_fit_is_named(place: Path, tmp_path: Path) -> None:
    file, shards = str(place / "autoencoder.safetensors"), str(place / "shards")
    with pytest.raises(ValueError, match="give image_size"):
        encode(run=file, shards=shards, out=str(tmp_path))
    with pytest.raises(ValueError, match="image_size=9 is not divisible by the autoencoder's stride 2"):
        encode(run=file, shards=shards, out=str(tmp_path), image_size=9)
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        encode(run=str(tmp_path / "gone.safetensors"), shards=shards, out=str(tmp_path), image_size=8)
    with pytest.raises(FileNotFoundError, match="no run"):
        encode(run="nowhere", shards=shards, out=str(tmp_path), runs=str(tmp_path))
