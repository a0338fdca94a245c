"""Inception-v3 and the ways to its size against torch-fidelity and Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.evaluation.inception import FILES, Inception, InceptionV3
from ldm.evaluation.resize import CleanBicubic, TensorflowBilinear
from ldm.needs import MissingNeeds

CPU = torch.device("cpu")


def pictures(num: int, side: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (num, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def no_codec(path: str | None) -> None:
    raise AssertionError("asked for an autoencoder")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones that keep what passes through them alive, in the published file's names."""
    torch.manual_seed(0)
    network = InceptionV3()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.05)
            part.running_var.uniform_(0.01, 0.03)
    path = tmp_path_factory.mktemp("inception") / FILES[0]
    torch.save(network.state_dict(), path)
    return path


def test_the_network_is_torch_fidelitys(weights: Path) -> None:
    fidelity = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed"
    )
    theirs = fidelity.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights))
    images = pictures(2, 64)
    ours = Inception(path=str(weights), resize="tensorflow").open(device=CPU, codecs=no_codec)
    with torch.no_grad():
        (known,) = theirs(images)
    found = ours(images)
    assert found.shape == (2, 2048)
    assert float(known.std()) > 1e-3, "the weights let nothing through"
    torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-4 * float(known.abs().max()))


def test_the_resize_that_is_taken_is_told_and_matters(weights: Path) -> None:
    images = pictures(2, 64)
    clean, old = Inception(path=str(weights)), Inception(path=str(weights), resize="tensorflow")
    assert (clean.resizing, old.resizing) == ("bicubic 299, antialiased", "bilinear 299, TensorFlow 1")
    first, second = (one.open(device=CPU, codecs=no_codec) for one in (clean, old))
    assert first.content_hash == second.content_hash and first.key != second.key
    assert not torch.allclose(first(images), second(images), rtol=1e-2)


@pytest.mark.parametrize(("side", "size"), [(64, 299), (300, 37), (512, 299)])
def test_clean_bicubic_is_pillows_on_floats(side: int, size: int) -> None:
    images = pictures(1, side)
    channels = [
        Image.fromarray(channel.numpy().astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        for channel in images[0]
    ]
    known = np.stack([np.asarray(channel).clip(0, 255) for channel in channels])
    found = CleanBicubic(size=size)(images)[0].numpy()
    assert np.abs(found - known).max() < 0.01  # of 255


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    images = pictures(1, 37)
    for resize in (CleanBicubic(size=37), TensorflowBilinear(size=37)):
        torch.testing.assert_close(resize(images), images.float(), rtol=0, atol=0)


def test_missing_weights_say_where_they_were_looked_for_and_how_to_bring_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingNeeds, match=r"download https://github\.com/mseitzer") as error:
        Inception().open(device=CPU, codecs=no_codec)
    assert all(str(tmp_path / "hub" / "checkpoints" / name) in str(error.value) for name in FILES)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / FILES[1]).write_bytes(b"")
    assert Inception().needs()[0].is_met


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="does not hold the weights of FID's Inception-v3"):
        Inception(path=str(tmp_path / "x.pth")).open(device=CPU, codecs=no_codec)
