"""Encoded pictures of any common kind -> 8-bit RGB, or a reason why not.

What people hand in: photographs lying on their side with an EXIF note, scans with 16 bits, grey and palette
pictures, stickers with alpha, CMYK from print, pages of HTML that are called .jpg. All of them come out as the eye
would expect or are refused with ``UnreadablePicture``.
"""

from __future__ import annotations

import io
import warnings
from functools import cache

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

MAX_PIXELS = 80_000_000
"""Pictures above it are refused before they are decoded: 240 MB in RGB, more than any camera's picture is worth."""

Colour = tuple[int, int, int]


class UnreadablePicture(ValueError):
    """The bytes are no picture, a damaged one, or one too large to decode."""


@cache
def colour(name: str) -> Colour:
    """An RGB colour from its name ("white", "#f5f0e6").

    Raises:
        ValueError: there is no such colour.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise ValueError(f"no colour '{name}'; give a name like white or a code like #f5f0e6") from None


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header only: format, mode and size are known, nothing is decoded.

    Raises:
        UnreadablePicture: no picture, or more than ``max_pixels``.
    """
    if not data:
        raise UnreadablePicture("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit comes next
            picture = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        raise UnreadablePicture(f"no known picture format (begins with {data[:16]!r})") from None
    except Exception as error:  # a damaged header surfaces as almost any type
        raise UnreadablePicture(_reason(error)) from error
    if picture.width * picture.height > max_pixels:
        raise UnreadablePicture(
            f"{picture.width} x {picture.height} pixels are more than the limit of {max_pixels:,}"
        )
    return picture


def decode(data: bytes, *, background: Colour = (255, 255, 255), max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture; of an animation, the first frame.

    Args:
        data: the encoded picture.
        background: what transparent parts show.
        max_pixels: refused above it, before decoding. PIL itself refuses above 179 million, whatever stands here.

    Returns:
        An upright picture in mode RGB.

    Raises:
        UnreadablePicture: with the reason in its text.
    """
    return to_rgb(open_picture(data, max_pixels=max_pixels), background=background)


def to_rgb(picture: Image.Image, *, background: Colour = (255, 255, 255)) -> Image.Image:
    """Decode an opened picture to upright RGB; see ``decode``."""
    try:
        picture.load()
        picture = _upright(picture)
        if picture.mode.startswith(("I", "F")):
            picture = _eight_bits(picture)
        if picture.has_transparency_data:
            # Laid on the background at full size: resizing first would mix in the colour hidden under alpha 0.
            picture = picture.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture).convert("RGB")
        if picture.mode == "CMYK":
            picture = _from_print(picture)
        return picture.convert("RGB")
    except UnreadablePicture:
        raise
    except Exception as error:  # decoders of damaged data raise almost any type
        raise UnreadablePicture(_reason(error)) from error


def is_plain(picture: Image.Image) -> bool:
    """Whether the opened picture's own bytes already are upright RGB without alpha."""
    return picture.mode == "RGB" and not picture.has_transparency_data and orientation(picture) == 1


def orientation(picture: Image.Image) -> int:
    """EXIF's number for how the picture lies, 1 to 8; 1 is upright."""
    try:
        return picture.getexif().get(0x0112, 1)
    except Exception:  # EXIF is often malformed where the picture is sound
        return 1


def _upright(picture: Image.Image) -> Image.Image:
    return picture if orientation(picture) == 1 else ImageOps.exif_transpose(picture)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey in 16 or 32 bits or floating point -> grey in 8, white staying white; PIL's own convert would clip."""
    values = np.asarray(picture)
    if picture.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # false for NaN as well
            raise UnreadablePicture("a floating point picture with values outside 0 to 1")
        grey = np.rint(values * 255)
    else:
        if values.min() < 0 or values.max() > 65_535:
            raise UnreadablePicture("an integer picture with values outside 0 to 65535")
        grey = np.rint(values / 257)  # 65535 / 255
    out = Image.fromarray(grey.astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):  # the one grey value that PNG may declare transparent
        out.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return out


def _from_print(picture: Image.Image) -> Image.Image:
    """CMYK -> RGB by the picture's own ink profile, or by subtraction where it has none that can be read."""
    profile = picture.info.get("icc_profile")
    if not profile:
        return picture
    try:
        inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, inks, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        return picture
    return converted or picture


def _reason(error: Exception) -> str:
    return f"damaged: {error or type(error).__name__}"
