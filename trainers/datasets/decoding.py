"""One encoded image as pixels, whatever it is encoded as."""

import warnings
from io import BytesIO
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

SMALLEST_SIDE = 8  # pixels
SIXTEEN_BITS = 2**16 - 1


class Decoded(NamedTuple):
    """Pixels (3, size, size) uint8, and what had to be converted."""

    pixels: UInt8[np.ndarray, "3 s s"]
    cmyk: bool = False
    sixteen_bit: bool = False


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason in a few words."""


def decoded(content: bytes, size: int) -> Decoded:
    """The image in `content`: shorter side to `size` pixels by antialiased bilinear interpolation,
    then the centre, as torchvision's Resize and CenterCrop do.

    Grey becomes three channels, transparency is dropped, 16 bits are scaled to 8. Raises
    BadImageError for what is truncated, animated, smaller than 8 pixels or no image at all.
    """
    if not content:
        raise BadImageError("empty")
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(content)) as image:
            warnings.simplefilter("ignore")  # of odd metadata, which is not read
            _require_usable(image)
            image.load()
            cmyk, sixteen = image.mode == "CMYK", _has_sixteen_bits(image, content)
            pixels = np.asarray(_centre(_rgb(image), size))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("no image") from None
    except Image.DecompressionBombError:
        raise BadImageError("far too large") from None
    except Exception:  # decoders raise OSError, SyntaxError, struct.error, EOFError and others
        raise BadImageError("truncated or corrupt") from None
    return Decoded(np.ascontiguousarray(pixels.transpose(2, 0, 1)), cmyk, sixteen)


def _require_usable(image: ImageFile.ImageFile) -> None:
    # A multi-picture JPEG of a camera has its previews as further frames.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise BadImageError("animated")
    if min(image.size) < SMALLEST_SIDE:
        raise BadImageError(f"smaller than {SMALLEST_SIDE} pixels")


def _has_sixteen_bits(image: Image.Image, content: bytes) -> bool:
    if image.mode.startswith("I"):
        return True
    # Pillow gives 16 bits per colour as RGB of the upper 8; the depth is byte 24 of a PNG.
    return image.format == "PNG" and content[24] == 16


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImageError("of floating-point pixels")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > SIXTEEN_BITS:
            raise BadImageError("of more than 16 bits")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "P":  # whose transparency Pillow converts by way of RGBA only
        image = image.convert("RGBA")
    return image.convert("RGB")


def _centre(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
