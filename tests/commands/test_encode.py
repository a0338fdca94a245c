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
from ldm.data.buckets import Buckets
from ldm.data.latent_dataset import LatentDataset
from ldm.data.latents import contract_for
from ldm.data.pipeline import ShardDataset, in_order
from ldm.data.shards import ShardWriter
from ldm.data.text_cache import TextCache, text_contract, text_folder
from ldm.nn.autoencoder import AutoencoderKL
from tests.data.cached import Letters


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
    options |= {"out": str(tmp_path), "text_out": str(tmp_path / "text"), "device": "cpu"}
    encode(**options, batch_size=4)  # type: ignore[arg-type]
    codec = KLCodec(path=options["run"])  # type: ignore[arg-type]
    pictures = ShardDataset(shards=str(place / "shards"), image_size=8)
    folder = contract_for(codec.content_hash, pictures).folder(tmp_path)
    assert str(folder) in capsys.readouterr().out
    cached = LatentDataset(folder, pictures, codec_hash=codec.content_hash)
    for a, b in zip(cached.in_order(batch_size=4), in_order(pictures, batch_size=4), strict=True):
        assert b.images is not None and (a.keys, a.captions) == (b.keys, b.captions)
        assert a.moments is not None
        torch.testing.assert_close(a.moments.float(), codec.moments(b.images), rtol=2e-3, atol=2e-3)
    encode(**options, batch_size=4)  # type: ignore[arg-type]
    assert "there already" in capsys.readouterr().out


def test_text_alone_and_with_buckets_on_two_processes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "shards": str(place / "shards"),
        "text_out": str(tmp_path / "text"),
        "out": str(tmp_path / "latents"),
    }
    buckets = Buckets(image_size=8, multiple_of=4, slack=0.5)
    encoder = Letters()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        file = str(place / "autoencoder.safetensors")
        encode(run=file, text_encoder=encoder, buckets=buckets, device="cpu", **options)  # type: ignore[arg-type]
    pictures = ShardDataset(shards=options["shards"], image_size=1, buckets=buckets)
    text = TextCache(text_folder(tmp_path / "text", text_contract(encoder, pictures)), pictures, encoder)
    folder = contract_for(KLCodec(path=file).content_hash, pictures).folder(tmp_path / "latents")
    cached = LatentDataset(folder, pictures, codec_hash=KLCodec(path=file).content_hash, text=text)
    assert len(list(cached.in_order(batch_size=9))) == 1
    with pytest.raises(ValueError, match="nothing to encode"):
        encode(run=None, **options)  # type: ignore[arg-type]


def test_what_is_missing_or_does_not_fit_is_named(place: Path, tmp_path: Path) -> None:
    file, shards, out = str(place / "autoencoder.safetensors"), str(place / "shards"), str(tmp_path)
    with pytest.raises(ValueError, match="give image_size"):
        encode(run=file, shards=shards, out=out, text_out=out)
    with pytest.raises(ValueError, match="image_size=9 is not divisible by 2, the autoencoder's stride"):
        encode(run=file, shards=shards, out=out, text_out=out, image_size=9)
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        encode(run=str(tmp_path / "gone.safetensors"), shards=shards, out=out, text_out=out, image_size=8)
    with pytest.raises(FileNotFoundError, match="no run"):
        encode(run="nowhere", shards=shards, out=out, text_out=out, runs=str(tmp_path))
