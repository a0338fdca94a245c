"""Latents are what the codec says, made once, whole or not at all, and never mixed up with another codec's."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.data.blend import order_of
from ldm.data.captions import CaptionRecipe
from ldm.data.latent_dataset import LatentDataset
from ldm.data.latents import contract_for, encode, latent_parts
from ldm.data.parts import missing
from ldm.data.pipeline import ShardDataset, endless, in_order
from ldm.data.text_cache import TextCache, encode_text, text_contract, text_folder
from ldm.interfaces import Batch
from tests.data.cached import Halves, Letters, dataset, write_shards


@pytest.fixture
def data(tmp_path: Path) -> ShardDataset:
    return dataset(write_shards(tmp_path / "shards"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(batch: Batch) -> tuple:
    assert batch.sizes is not None
    return batch.keys, batch.captions, batch.visits, batch.slots, batch.num_slots, batch.sizes.tolist()


def assert_same(batch: Batch, pictures: Batch) -> None:
    assert batch.images is None and batch.moments is not None and pictures.images is not None
    assert said(batch) == said(pictures)
    torch.testing.assert_close(batch.moments.float(), Halves().moments(pictures.images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("buckets", [True, False])
def test_cached_batches_are_those_of_the_pictures(tmp_path: Path, buckets: bool) -> None:
    """From pictures, from latents, from latents and text: one after the other and in training, on two processes."""
    data = dataset(write_shards(tmp_path / "shards", broken=4), **({} if buckets else {"buckets": None}))
    encoder = Letters()
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    encode_text(encoder, data, tmp_path / "text", batch_size=5)
    text = TextCache(tmp_path / "text", data, encoder)
    cached = LatentDataset(tmp_path / "out", data, codec_hash=Halves.content_hash, text=text)
    assert len(cached) == 23 and len(data.assignment.sizes) == (3 if buckets else 1)
    pairs = list(zip(cached.in_order(batch_size=4), in_order(data, batch_size=4), strict=True))
    for rank in range(2):
        options = {"global_batch": 6, "rank": rank, "world_size": 2, "start": 12}
        order = order_of(data, num=23, **options)
        live = itertools.islice(endless(data, lambda o=order: o, num_workers=0), 12)
        pairs += list(zip(cached.endless(order), live, strict=False))
    assert len({caption for _, pictures in pairs for caption in pictures.captions}) > 40
    for batch, pictures in pairs:
        assert_same(batch, pictures)
        assert batch.text is not None
        kept = torch.arange(len(batch)) % 3 > 0
        captions = [caption if keep else "" for caption, keep in zip(batch.captions, kept, strict=True)]
        expected, found = encoder(captions), batch.text.conditioning(kept)
        assert found.tokens.dtype == torch.float32 and torch.equal(found.mask, expected.mask)
        torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-3, atol=1e-3)


def test_captions_are_chosen_later_without_encoding_anew(tmp_path: Path, data: ShardDataset) -> None:
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    for field, captions in {"txt": {"sample 7"}, "captions": {"a7"}, "other": {"c7"}}.items():
        other = dataset(tmp_path / "shards", caption_field={field: 1.0, "txt": 1e-9})
        cached = LatentDataset(tmp_path / "out", other, codec_hash=Halves.content_hash)
        drawn = {cached.batch([7], [visit], slots=range(1), num_slots=1).captions[0] for visit in range(30)}
        assert drawn == captions


@pytest.mark.parametrize("stop_after", [0, 1, 3, 6])
def test_an_interrupted_encoding_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, data: ShardDataset, stop_after: int
) -> None:
    encode(Halves(), data, tmp_path / "whole", batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        encode(Halves(stop_after=stop_after), data, tmp_path / "cut", batch_size=5)
    assert not list((tmp_path / "cut").rglob("*.partial"))
    with pytest.raises(FileNotFoundError, match=r"the latents of . of 3 shards are missing"):
        LatentDataset(tmp_path / "cut", data, codec_hash=Halves.content_hash)
    before = files(tmp_path / "cut")
    codec = Halves()
    encode(codec, data, tmp_path / "cut", batch_size=5)
    assert codec.num_encoded == 23 - 10 * (len(before) - 1)  # whole shards are kept
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    encode(codec, data, tmp_path / "cut", batch_size=5)
    assert codec.num_encoded <= 23


def test_processes_share_the_shards(tmp_path: Path, data: ShardDataset) -> None:
    encode(Halves(), data, tmp_path / "alone", batch_size=5)
    encode_text(Letters(), data, tmp_path / "alone text", batch_size=5)
    num = []
    for rank in reversed(range(2)):
        share = {"batch_size": 5, "rank": rank, "world_size": 2}
        num.append(encode(Halves(), data, tmp_path / "shared", **share))
        encode_text(Letters(), data, tmp_path / "shared text", **share)
    assert num == [10, 13]
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert files(tmp_path / "shared text") == files(tmp_path / "alone text")


def test_only_what_is_new_or_has_changed_is_encoded(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 20)
    assert encode(Halves(), dataset(tmp_path / "shards"), tmp_path / "out", batch_size=5) == 20
    write_shards(tmp_path / "shards", 27)  # the first two shards are kept
    grown = dataset(tmp_path / "shards")
    assert [part.name for part in missing(latent_parts(grown), tmp_path / "out")] == ["00002"]
    assert encode(Halves(), grown, tmp_path / "out", batch_size=5) == 7
    other_size = dataset(tmp_path / "shards", buckets=None)
    assert len(missing(latent_parts(other_size), tmp_path / "out")) == 3


def test_latents_of_another_autoencoder_are_refused_by_name(tmp_path: Path, data: ShardDataset) -> None:
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    with pytest.raises(ValueError, match="codec_hash was 'abababababab' and is 'cdcdcdcdcdcd'"):
        LatentDataset(tmp_path / "out", data, codec_hash="cd" * 32)
    other = dataset(tmp_path / "shards", background="red")
    with pytest.raises(ValueError, match="background was 'white' and is 'red'"):
        LatentDataset(tmp_path / "out", other, codec_hash=Halves.content_hash)
    with pytest.raises(FileNotFoundError, match=r"no latents in .*ldm encode"):
        LatentDataset(tmp_path / "nowhere", data, codec_hash=Halves.content_hash)


def test_text_of_another_encoder_or_other_captions_is_refused_by_name(
    tmp_path: Path, data: ShardDataset
) -> None:
    encode_text(Letters(), data, tmp_path / "text", batch_size=5)
    other = Letters()
    other.content_hash, other.contract = "cd" * 32, {"encoder": "Letters", "length": 14}
    expected = "encoder_hash was efefefefefef and is cdcdcdcdcdcd; encoder.length was 12 and is 14"
    with pytest.raises(ValueError, match=expected):
        TextCache(tmp_path / "text", data, other)
    fewer = dataset(tmp_path / "shards", caption_field="txt")
    with pytest.raises(
        FileNotFoundError, match=r"the text of 3 of 3 shards is missing .* fields have changed since"
    ):
        TextCache(tmp_path / "text", fewer, Letters())
    templates = dataset(tmp_path / "shards", captions=CaptionRecipe(templates=["a {caption}"]))
    with pytest.raises(ValueError, match=r"templates was None and is \['a {caption}'\]"):
        TextCache(tmp_path / "text", templates, Letters())
    contracts = [text_contract(e, d) for e, d in ((Letters(), data), (other, data), (Letters(), templates))]
    assert len({text_folder("out", contract) for contract in contracts}) == 3


def test_text_that_training_changes_cannot_be_encoded_once(tmp_path: Path, data: ShardDataset) -> None:
    class Learned(Letters, torch.nn.Module):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.weight = torch.nn.Parameter(torch.zeros(1))

    with pytest.raises(ValueError, match="Learned is trained together with the denoiser"):
        encode_text(Learned(), data, tmp_path / "text", batch_size=5)


def test_each_different_caption_is_encoded_once(tmp_path: Path, data: ShardDataset) -> None:
    encoder = Letters()
    encode_text(encoder, data, tmp_path / "text", batch_size=4)
    assert len(encoder.encoded) == len(set(encoder.encoded)) and "" in encoder.encoded


def test_every_codec_and_transform_has_its_own_place(tmp_path: Path, data: ShardDataset) -> None:
    contracts = [
        contract_for("ab" * 32, data),
        contract_for("cd" * 32, data),
        contract_for("", data),
        contract_for("ab" * 32, dataset(tmp_path / "shards", background="red")),
        contract_for("ab" * 32, dataset(tmp_path / "shards", original_size_from=["h", "w"])),
    ]
    folders = [contract.folder(tmp_path) for contract in contracts]
    assert len(set(folders)) == len(folders)
    assert folders[0].parent == tmp_path / ("ab" * 6) and folders[2].parent == tmp_path / "identity"
    sizes = [dataset(tmp_path / "shards", buckets=None, image_size=side) for side in (4, 8)]
    names = [{part.file(tmp_path).name for part in latent_parts(one)} for one in (data, *sizes)]
    assert len(set.union(*names)) == 9


def test_random_choices_cannot_be_encoded_once(tmp_path: Path, data: ShardDataset) -> None:
    for options in ({"flip": True}, {"crop": "random"}):
        with pytest.raises(ValueError, match="flip=false and crop=center"):
            encode(Halves(), dataset(tmp_path / "shards", **options), tmp_path / "out", batch_size=5)


def test_moments_that_are_not_finite_stop_the_encoding(tmp_path: Path, data: ShardDataset) -> None:
    class Diverged(Halves):
        def moments(self, images: Tensor) -> Tensor:
            return super().moments(images) * 1e9

    with pytest.raises(ValueError, match=r"of samples 00000/00000000. to 00000/00000000. are not finite"):
        encode(Diverged(), data, tmp_path / "out", batch_size=5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["contract.json"]


def test_the_contract_is_written_down(tmp_path: Path, data: ShardDataset) -> None:
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    assert contract == {
        "codec_hash": "ab" * 32, "background": "white", "original_size_from": [], "resampling": 1,
        "decode_margin": 2.0,
    }  # fmt: skip
