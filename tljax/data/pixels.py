"""Pixels: an encoded image of any kind becomes RGB, in one defined way, and never more than a stated size."""

import io
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from tljax.data.stores import ImageRef

MAX_PIXELS = 64 * 1000 * 1000  # 64 Mpixel, 192 MB as RGB; looked at before anything is decoded
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content; the rest of Pillow's readers stay shut
# What Pillow raises on damaged files; OSError includes its own UnidentifiedImageError. Warnings stand here for
# programs that turn them into errors.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError, struct.error,
          zlib.error, Image.DecompressionBombError, UserWarning, Image.DecompressionBombWarning)  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag
_TURN = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # fmt: skip


class ImageFault(ValueError):
    """Why an image cannot be used; the caller adds which one it is."""


def _open(content: BinaryIO) -> Image.Image:
    """The header of an encoded image; its pixels are not decoded yet."""
    start = content.read(64)
    content.seek(0)
    try:
        image = Image.open(content, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFault(f"too many pixels, more than {MAX_PIXELS // 10**6} million ({error})") from None
    except DAMAGE as error:
        raise ImageFault(_guess(start) or f"no image can be recognised ({type(error).__name__})") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageFault(f"{width} x {height} pixels, expected at most {MAX_PIXELS // 10**6} million")
    if width * height == 0:
        raise ImageFault(f"{width} x {height} pixels, expected at least one")
    return image


def _guess(start: bytes) -> str:
    """What a file that is no image may be, by its first bytes."""
    if not start:
        return "the file is empty (0 bytes)"
    if start.startswith(b"version https://git-lfs"):
        return "the file is a git-lfs pointer; run git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "the file is an HTML page, not an image"
    return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB.

    Turned as EXIF says. Of an animation, the first frame. 16-bit grey keeps its upper 8 bits. Palettes are looked
    up. Transparency is laid over white. CMYK by Pillow's plain formula, without colour profiles.
    """
    image.seek(0)
    image.load()
    try:
        turn = _TURN.get(image.getexif().get(ORIENTATION, 1))
    except DAMAGE:
        turn = None  # broken metadata beside whole pixels
    if image.mode.startswith("I"):  # I;16, I;16B, and I where Pillow widens 16-bit grey
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.transpose(turn) if turn is not None else rgb


def decode(content: "bytes | np.ndarray") -> Image.Image:
    """The RGB image in an encoded file, or in an array uint8 (H, W), (H, W, 1) or (H, W, 3).

    Raises:
      ImageFault: damaged, cut off, too large, empty, or no image.
    """
    if isinstance(content, np.ndarray):
        pixels = content[:, :, 0] if content.ndim == 3 and content.shape[2] == 1 else content
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
            raise ImageFault(f"an array of {content.dtype} {content.shape}, expected uint8 (H, W) or (H, W, 3)")
        return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    with _open(io.BytesIO(content)) as image:
        try:
            return to_rgb(image)
        except DAMAGE as error:
            raise ImageFault(f"damaged or cut off ({error})") from None


def probe(ref: ImageRef, whole: bool) -> str:
    """Why an image cannot be used, '' if it can: by its header alone, or by decoding all of it."""
    try:
        if whole:
            decode(ref.read())
            return ""
        content = ref.open()
        if isinstance(content, np.ndarray):
            decode(content)
            return ""
        with content as file, _open(file):
            return ""
    except ImageFault as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
