"""Feature networks that need no published weights, and pretrained ones with random weights in published layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.codecs.identity import IdentityCodec
from ldm.codecs.kl import KLCodec
from ldm.evaluation.features import OwnEncoder, Pixels, last_read
from ldm.evaluation.pretrained import IMAGENET_MEAN, IMAGENET_STD, OpenClip, Timm, normalised
from ldm.evaluation.resize import CleanBicubic
from ldm.needs import MissingNeeds

CPU = torch.device("cpu")


def pictures(num: int = 3, side: int = 16) -> Tensor:
    return torch.randint(
        0, 256, (num, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def no_codec(path: str | None) -> None:
    raise AssertionError("asked for an autoencoder")


class Codec(nn.Module):
    """A convolution over 3 x 3 that gives 6 channels, another that gives 8, and one over single places."""

    content_hash = "codec"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.last = nn.Conv2d(8, 8, 1)

    def moments(self, images: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.first(images))))


def test_own_features_are_what_the_last_spatial_convolution_reads() -> None:
    codec, images = Codec(), pictures()
    read = torch.relu(codec.first(images.float() / 127.5 - 1))
    known = torch.cat([read.mean((2, 3)), read.std((2, 3), correction=0)], dim=1)
    found = OwnEncoder().open(device=CPU, codecs=lambda path: codec)  # type: ignore[arg-type,return-value]
    torch.testing.assert_close(found(images), known)
    assert found.content_hash == "codec"
    assert not codec.second._forward_pre_hooks, "nothing stays behind"


def test_without_convolutions_the_moments_are_looked_at() -> None:
    images = pictures().float() / 127.5 - 1
    codec = IdentityCodec()
    torch.testing.assert_close(last_read(codec, images), codec.moments(images))


def test_the_path_of_another_autoencoder_is_handed_on_and_needed() -> None:
    asked = []

    def codecs(path: str | None) -> Codec:
        asked.append(path)
        return Codec()

    OwnEncoder(path="there.safetensors").open(device=CPU, codecs=codecs)  # type: ignore[arg-type]
    assert asked == ["there.safetensors"]
    (need,) = OwnEncoder(path="there.safetensors").needs()
    assert not need.is_met and "path=" in need.bring
    assert OwnEncoder().needs() == [] and KLCodec.needs_for(path="x")


def test_pixels_are_pixels() -> None:
    images = pictures(2, 16)
    found = Pixels(size=8).open(device=CPU, codecs=no_codec)(images)
    known = images.float().view(2, 3, 8, 2, 8, 2).mean((3, 5)).flatten(1) / 255
    torch.testing.assert_close(found, known)


def test_timm_networks_read_their_weights_from_a_path(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    network = timm.create_model(name, pretrained=False).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    found = Timm(model=name, path=str(tmp_path / "model.safetensors"), label="tiny").open(
        device=CPU, codecs=no_codec
    )
    images = pictures(2, 64)
    with torch.no_grad():
        x = normalised(CleanBicubic(size=224)(images), IMAGENET_MEAN, IMAGENET_STD)
        known = network.forward_head(network.forward_features(x), pre_logits=True)
    torch.testing.assert_close(found(images), known, rtol=1e-4, atol=1e-5)


def test_clip_gives_pictures_and_texts_unit_length_in_one_space(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    torch.manual_seed(0)
    name = "ViT-S-32"
    network = open_clip.create_model(name, pretrained=None).eval()
    torch.save(network.state_dict(), tmp_path / "clip.pt")
    clip = OpenClip(model=name, size=224, path=str(tmp_path / "clip.pt"))
    found = clip.open(device=CPU, codecs=no_codec)
    images, captions = pictures(2, 64), ["a red circle", "two blue squares"]
    assert found.texts is not None
    seen, said = found(images), found.texts(captions)
    assert seen.shape == said.shape
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(2))
    with torch.no_grad():
        known = network.encode_text(open_clip.get_tokenizer(name)(captions), normalize=True)
    torch.testing.assert_close(said, known, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "network", [Timm(path="/nowhere/x.safetensors"), OpenClip(path="/nowhere/x.pt"), Timm()]
)
def test_missing_weights_are_told(network: Timm | OpenClip, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(MissingNeeds, match="path="):
        network.open(device=CPU, codecs=no_codec)
