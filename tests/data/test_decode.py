"""Every common kind of picture comes out as the eye expects, and what is none says so."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ldm.data.decode import UnreadablePicture, colour, decode, is_plain, open_picture

GREY = np.linspace(0, 255, 64).reshape(8, 8).round().astype(np.uint8)
RGB = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes, **options: object) -> np.ndarray:
    picture = decode(data, **options)  # type: ignore[arg-type]
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1).astype(int)


def test_rgb_and_grey_stay_what_they_are() -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(RGB))), RGB)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(GREY))), as_rgb(GREY))
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(GREY > 99))), as_rgb((GREY > 99) * 255))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("PPM", np.uint16), ("TIFF", np.int32)]
)
def test_sixteen_bits_are_scaled_not_clipped(kind: str, dtype: type) -> None:
    deep = (GREY.astype(np.int64) * 257).astype(dtype)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(deep), kind)), as_rgb(GREY))


def test_floating_point_is_scaled_from_0_to_1_and_refused_outside() -> None:
    shares = (GREY / 255).astype(np.float32)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(shares), "TIFF")), as_rgb(GREY))
    for wrong in (shares * 2, np.full_like(shares, np.nan)):
        with pytest.raises(UnreadablePicture, match="outside 0 to 1"):
            decode(encoded(Image.fromarray(wrong), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_alpha_is_laid_on_the_background(mode: str, background: tuple[int, int, int]) -> None:
    over = Image.fromarray(RGB if mode == "RGBA" else GREY)
    alpha = GREY.T
    over.putalpha(Image.fromarray(alpha))
    front = RGB if mode == "RGBA" else as_rgb(GREY)
    expected = (
        front * (alpha[..., None] / 255) + np.array(background) * (1 - alpha[..., None] / 255)
    ).round()
    assert over.mode == mode
    assert np.abs(pixels(encoded(over), background=background) - expected).max() <= 1


def test_what_hides_under_full_transparency_never_shows() -> None:
    loud = np.dstack([np.full((8, 8), 255), np.zeros((8, 8)), np.zeros((8, 8)), np.zeros((8, 8))])
    data = encoded(Image.fromarray(loud.astype(np.uint8)))
    assert (pixels(data, background=(1, 2, 3)) == (1, 2, 3)).all()


def test_palettes_with_and_without_transparency() -> None:
    picture = Image.new("P", (8, 8))
    picture.putpalette([200, 10, 10, 10, 10, 200])
    picture.putdata([0, 1] * 32)
    assert pixels(encoded(picture))[0, :2].tolist() == [[200, 10, 10], [10, 10, 200]]
    for kind in ("PNG", "GIF"):
        clear = pixels(encoded(picture, kind, transparency=0), background=(1, 2, 3))
        assert clear[0, :2].tolist() == [[1, 2, 3], [10, 10, 200]]


def test_one_colour_may_be_declared_transparent() -> None:
    assert pixels(encoded(Image.fromarray(GREY), transparency=0), background=(9, 8, 7))[0, 0].tolist() == [
        9,
        8,
        7,
    ]
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert pixels(encoded(deep, transparency=65535), background=(9, 8, 7))[-1, -1].tolist() == [9, 8, 7]


def test_print_colours_come_out_right() -> None:
    # As every viewer shows them: no ink is white, full cyan holds back red, full black everything.
    for kind in ("JPEG", "TIFF"):
        for inks, rgb in (
            ((0, 0, 0, 0), (255, 255, 255)),
            ((255, 0, 0, 0), (0, 255, 255)),
            ((0, 0, 0, 255), (0, 0, 0)),
        ):
            got = pixels(encoded(Image.new("CMYK", (8, 8), inks), kind))
            assert np.abs(got - rgb).max() <= 3, (kind, inks)


def test_an_unreadable_ink_profile_does_not_matter() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF", icc_profile=b"nonsense")
    assert (pixels(data) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = np.zeros((6, 8, 3), np.uint8)
    upright[:3, :4] = (250, 0, 0)
    turn = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud}
    turn |= {5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, 1)}
    turn |= {7: lambda x: np.rot90(x.transpose(1, 0, 2), 2), 8: lambda x: np.rot90(x, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(turn[orientation](upright))), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(data), upright)
    assert is_plain(open_picture(data)) == (orientation == 1)


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), name) for name in ("red", "blue")]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [
        255,
        0,
        0,
    ]


JPEG = encoded(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG"
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><p>404", "no known picture format.*DOCTYPE"),
        (JPEG[: len(JPEG) // 2], "damaged.*truncated"),
        (encoded(Image.fromarray(RGB))[:60], "damaged"),
        (JPEG[:20], "damaged|no known"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadablePicture, match=reason):
        decode(data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL remarks on the damage
def test_any_cut_and_any_flipped_byte_is_a_picture_or_unreadable_never_another_error() -> None:
    for data in (JPEG, encoded(Image.fromarray(RGB)), encoded(Image.fromarray(RGB), "TIFF")):
        for at in range(0, len(data), max(1, len(data) // 60)):
            for bad in (data[:at], data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]):
                try:
                    decode(bad)
                except UnreadablePicture as error:
                    assert str(error)


def test_too_many_pixels_are_refused_from_the_header() -> None:
    head = encoded(Image.new("1", (20_000, 8_000)))[:64]  # its pixels are not even there
    with pytest.raises(UnreadablePicture, match="20000 x 8000 pixels"):
        decode(head)
    with pytest.raises(UnreadablePicture, match="8 x 8 pixels are more than the limit of 63"):
        decode(encoded(Image.fromarray(RGB)), max_pixels=63)


def test_colours_by_name_and_code() -> None:
    assert colour("white") == (255, 255, 255)
    assert colour("#f5f0e6") == (245, 240, 230)
    with pytest.raises(ValueError, match="no colour 'wite'"):
        colour("wite")
