"""What pretrained encoders say of captions is the same from a cache as from the encoder, for every kind of encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.data.latent_dataset import LatentDataset
from ldm.data.latents import encode
from ldm.data.text_cache import TextCache, encode_text
from ldm.text.labels import ClassLabels
from tests.data.cached import Halves, dataset, write_shards
from tests.text.test_frozen import clip, flux, sd3, sdxl


@pytest.mark.parametrize("make", [clip, sdxl, sd3, flux], ids=lambda make: make.__name__)
def test_cached_and_live_embeddings_are_the_same(tmp_path: Path, make: object) -> None:
    data, encoder = dataset(write_shards(tmp_path / "shards", 12)), make()  # type: ignore[operator]
    encode(Halves(), data, tmp_path / "latents", batch_size=5)
    encode_text(encoder, data, tmp_path / "text", batch_size=7)
    text = TextCache(tmp_path / "text", data, encoder)
    cached = LatentDataset(tmp_path / "latents", data, codec_hash=Halves.content_hash, text=text)
    for batch in cached.in_order(batch_size=4):
        assert batch.text is not None
        kept = torch.arange(len(batch)) != 1
        captions = [caption if keep else "" for caption, keep in zip(batch.captions, kept, strict=True)]
        live, found = encoder(captions), batch.text.conditioning(kept)
        assert found.mask.equal(live.mask)
        for name in ("tokens", "pooled"):
            there, here = getattr(found, name), getattr(live, name)
            assert there.dtype == torch.float32 and there.shape == here.shape
            torch.testing.assert_close(there, here, rtol=1e-3, atol=2e-3)  # float16


def test_a_changed_length_layer_or_padding_is_refused_by_name(tmp_path: Path) -> None:
    data = dataset(write_shards(tmp_path / "shards", 3))
    encode_text(clip(), data, tmp_path / "text", batch_size=7)
    for options, said in (
        ({"length": 20}, "encoder.length was 77 and is 20"),
        ({"layer": -2}, "encoder.layer was -1 and is -2"),
        ({"padding": 0}, "encoder.padding was 49407 and is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            TextCache(tmp_path / "text", data, clip(**options))


def test_class_labels_have_nothing_to_encode(tmp_path: Path) -> None:
    data = dataset(write_shards(tmp_path / "shards", 3), caption_field="other")
    with pytest.raises(ValueError, match="ClassLabels tells class labels"):
        encode_text(ClassLabels(names=["c1", "c2"]), data, tmp_path / "text", batch_size=7)
