"""Planted copies are found, however they were disguised; disjoint sets have none."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.features import Pixels
from ldm.evaluation.memorization import (
    SIDE,
    Copies,
    Cuts,
    SeenInCuts,
    SeenMirrored,
    Small,
    find_copies,
    lay_over,
    nearest,
)

CPU = torch.device("cpu")
CUTS = Cuts()
NUM = 60


def no_codec(path: str | None) -> None:
    raise AssertionError("asked for an autoencoder")


def pictures(num: int, seed: int, side: int = 64) -> Tensor:
    """With edges and shading at all scales, as photographs have: amplitudes fall like one over frequency."""
    draw = torch.Generator().manual_seed(seed)
    colours = torch.randn(num, 1, side, side, generator=draw) + 0.3 * torch.randn(
        num, 3, side, side, generator=draw
    )
    noise = torch.fft.rfft2(colours)  # mostly light and dark
    fy, fx = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    shaped = torch.fft.irfft2(noise / (fy**2 + fx**2).sqrt().clamp(min=1 / side), s=(side, side))
    shaped = shaped / shaped.std(dim=(1, 2, 3), keepdim=True)
    return (128 + 50 * shaped).clamp(0, 255).to(torch.uint8)


def recompressed(image: Tensor) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "jpeg", quality=30)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def cropped(image: Tensor, share: float, top: int, left: int) -> Tensor:
    kept = round(share * image.shape[-1])
    part = image[None, :, top : top + kept, left : left + kept].float()
    return F.interpolate(part, image.shape[-2:], mode="bicubic")[0].clamp(0, 255).to(torch.uint8)


DISGUISES = {
    "exact": lambda x: x,
    "flipped": lambda x: x.flip(-1),
    "cropped": lambda x: cropped(x, 0.8, 3, 9),
    "cropped hard": lambda x: cropped(x, 0.68, 17, 2),
    "cropped and flipped": lambda x: cropped(x, 0.9, 1, 4).flip(-1),
    "recompressed": recompressed,
    "darker": lambda x: (0.8 * x.float()).to(torch.uint8),
}


def copies(images: Tensor, training: Tensor, *, same: bool = False) -> Copies:
    seen = SeenMirrored(features=Pixels(size=8)).open(device=CPU, codecs=no_codec)(images)
    cuts = SeenInCuts(features=Pixels(size=8), cuts=CUTS).open(device=CPU, codecs=no_codec)(training)
    small = Small().open(device=CPU, codecs=no_codec)
    rows = nearest(seen, cuts, num=8, own=torch.arange(len(images)) if same else None)
    return find_copies(small(images), small(training), rows, CUTS)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_planted_copies_are_found_and_their_source_named(disguise: str) -> None:
    training, images = pictures(NUM, 0), pictures(20, 1)
    sources = torch.tensor([7, 31, 58])
    planted = torch.tensor([0, 9, 19])
    images[planted] = torch.stack([DISGUISES[disguise](training[i]) for i in sources])
    found = copies(images, training)
    assert found.is_copy.nonzero().flatten().tolist() == planted.tolist()
    assert found.row[planted].tolist() == sources.tolist()
    assert found.mirrored[planted].tolist() == ["flipped" in disguise] * 3


def test_disjoint_sets_have_no_copies() -> None:
    found = copies(pictures(100, 2), pictures(NUM, 0))
    assert not found.is_copy.any()


def test_duplicates_within_a_set_are_found_and_no_picture_is_its_own_copy() -> None:
    training = pictures(NUM, 0)
    assert not copies(training, training, same=True).is_copy.any()
    training[40] = training[3].flip(-1)
    found = copies(training, training, same=True)
    assert found.is_copy.nonzero().flatten().tolist() == [3, 40]
    assert found.row[[3, 40]].tolist() == [40, 3]


def test_where_all_pictures_are_alike_none_is_a_copy() -> None:
    """Variations of one picture: each fits each well, none much better than the others."""
    base, noise = pictures(1, 0).float(), pictures(90, 1).float() - 128
    alike = (base + 0.15 * noise).clamp(0, 255).to(torch.uint8)
    found = copies(alike[:30], alike[30:])
    assert float(found.likeness.min()) > 0.95
    assert not found.is_copy.any()


def test_the_cut_that_was_made_is_found() -> None:
    whole = pictures(1, 3)
    part = cropped(whole[0], 0.75, 4, 12)[None]
    fit = lay_over(part, whole, CUTS)
    scale, x, y = fit.box[0].tolist()
    assert scale == pytest.approx(0.75, abs=0.02)
    assert x == pytest.approx((12 + 24) / 32 - 1, abs=0.04)  # the middle of 48 pixels from 12 on
    assert y == pytest.approx((4 + 24) / 32 - 1, abs=0.04)
    assert float(fit.likeness) > 0.97 and not fit.mirrored


def test_cuts_of_a_config_are_like_those_of_code() -> None:
    assert hash(Cuts(scales=[1.0, 0.7])) == hash(Cuts(scales=(1.0, 0.7)))
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        Cuts(scales=[1.2])


def test_plain_pictures_are_like_nothing() -> None:
    plain = torch.full((1, 3, SIDE, SIDE), 200, dtype=torch.uint8)
    assert float(lay_over(plain, pictures(1, 0, side=SIDE), CUTS).likeness) == 0
