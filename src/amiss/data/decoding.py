"""Pillow, kept at a distance: whatever it raises on a file becomes an `ImageError`."""

from __future__ import annotations

import re
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from amiss.data.array_files import bytes_in_array
from amiss.errors import ImageError

MAX_PIXELS = 100_000_000
_PILLOW = re.compile(r"PIL\.")  # the modules whose warnings are silenced


def read_bytes(path: str | Path) -> bytes:
    """The content of an image file, which may lie in an array of many.

    Raises ImageError when it is missing, empty or unreadable.
    """
    try:
        in_array = bytes_in_array(Path(path))
        data = Path(path).read_bytes() if in_array is None else in_array
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file.", reason="missing") from None
    except IsADirectoryError:
        raise ImageError(
            f"{path} is a folder, not an image.", reason="unreadable",
            hint="Give its files; on the command line, `amiss predict` takes folders too.",
        ) from None  # fmt: skip
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"{path}: cannot be read ({reason})."
        raise ImageError(message, reason="unreadable") from None
    if not data:
        message = f"{path}: the file is empty (0 bytes)."
        raise ImageError(message, reason="empty", hint="Copy it again.")
    return data


def load_pixels(data: bytes, path: str | Path, max_pixels: int) -> ImageFile:
    """Open and decode with Pillow; everything it may raise becomes an ImageError."""
    image = read_header(data, path, max_pixels)
    try:
        frames = getattr(image, "n_frames", 1)
        if frames == 1:
            image.load()
    except Exception as error:  # Pillow raises some ten different types on damaged files
        raise _damaged(path, error) from error
    if frames > 1:
        raise ImageError(
            reason="animated",
            message=f"{path}: holds {frames} frames or pages.",
            hint="Save each frame that matters as a file of its own.",
        )
    return image


def read_header(data: bytes, path: str | Path, max_pixels: int) -> ImageFile:
    """An image of a known format and an allowed size, not yet decoded."""
    _silence_pillow()
    _check_size(_webp_size(data), path, max_pixels)
    try:
        image = _open(data)
    except Exception as error:
        raise _damaged(path, error) from error
    if image is None:
        is_gif = data[:4] == b"GIF8"
        raise ImageError(
            reason="animated" if is_gif else "not-an-image",
            message=f"{path}: this is no image that amiss reads (PNG, JPEG, BMP, TIFF, WebP, PNM).",
            hint="It is a GIF: save the frames that matter as PNG." if is_gif else "",
        )
    _check_size(image.size, path, max_pixels)
    return image


def _damaged(path: str | Path, error: Exception) -> ImageError:
    reason = str(error).rstrip(".") or type(error).__name__
    return ImageError(
        reason="truncated" if "truncated" in reason.lower() else "damaged",
        message=f"{path}: the image cannot be decoded ({reason}).",
        hint="The file is damaged or cut off; copy it again.",
    )


def _open(data: bytes) -> ImageFile | None:
    """Read the header. The format's class is called directly, not through `Image.open`: that
    warns and raises at a pixel limit that is one global of the process and not ours to change."""
    file = BytesIO(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(file)
    if data.startswith(b"\xff\xd8\xff"):
        # The first picture of an MPO (stereo cameras, phones) is the photograph itself.
        return JpegImageFile(file)
    if data.startswith(b"BM"):
        return BmpImageFile(file)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffImageFile(file)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile(file)
    if data[:1] == b"P" and data[1:2] in b"123456f":
        return PpmImageFile(file)
    return None


def _check_size(size: tuple[int, int] | None, path: str | Path, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        width, height = size
        raise ImageError(
            reason="too-large",
            message=f"{path}: its header announces {height} x {width} "
            f"pixels, more than the limit of {max_pixels:,}.",
            hint="If the size is right, cut the image into tiles or raise the limit.",
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP file: its decoder takes memory for them as soon as it is opened."""
    if not (data.startswith(b"RIFF") and data[8:12] == b"WEBP") or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = data[26:28], data[28:30]
    return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF


def _silence_pillow() -> None:
    """Keep Pillow's remarks on odd metadata out of the user's terminal.

    `warnings.catch_warnings` is not safe in threads, so the filter stays; it is put back when
    someone else's `catch_warnings` has dropped it. It concerns nothing but code inside Pillow.
    """
    for category in (UserWarning, Image.DecompressionBombWarning):
        if ("ignore", None, category, _PILLOW, 0) not in warnings.filters:
            warnings.filterwarnings("ignore", category=category, module=_PILLOW.pattern)
