"""Reading one image or mask, and writing one: every file enters and leaves amiss here.

Whatever the file holds, an image comes out as (H, W, 3) uint8 and a mask as (H, W) bool, upright
(EXIF orientation applied), or an `ImageError` names the file and says what is wrong with it. The
formats are PNG, JPEG, BMP, TIFF, WebP and PNM; they are told by content, not by suffix.
"""

from __future__ import annotations

import os
import secrets
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from amiss.data.decoding import MAX_PIXELS, load_pixels, read_bytes, read_header
from amiss.data.geometry import Geometry, resize_mask
from amiss.data.window import Window, apply_window, parse_window
from amiss.errors import DataError, ImageError
from amiss.types import Bool, UInt8

Crop = tuple[int, int, int, int]
"""(top, left, height, width) in pixels of the upright file."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class DecodedFile(NamedTuple):
    """A file's pixels as an 8-bit PIL image of mode "L" or "RGB", upright; `mode` is the file's."""

    image: Image.Image
    mode: str


def read_image(
    path: str | Path,
    *,
    window: Window | str | None = "percentile",
    crop: Crop | None = None,
    max_pixels: int = MAX_PIXELS,
) -> UInt8:
    """The image in a file, (H, W, 3) uint8, upright.

    Gray becomes three equal channels. Alpha (RGBA, LA, transparent palette entries) is drawn over
    black. 16-bit and float gray go through `window`, which looks at the whole file even when
    `crop` cuts it. Colour with 16 bits per channel loses its low 8 bits in Pillow; the window
    does not apply to it.

    Raises ImageError, naming the path, for a file that is missing, empty, truncated, no image,
    animated or of several pages, larger than `max_pixels`, or smaller than `crop`.
    """
    decoded = decode_bytes(read_bytes(path), path, window=window, max_pixels=max_pixels)
    pixels = np.array(crop_image(decoded.image, crop, path))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def read_mask(
    path: str | Path | tuple[Path, ...],
    *,
    crop: Crop | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Bool:
    """The mask in a file, (H, W) bool, upright; True is positive. Of several files, the union.

    One rule by the largest value m of the file, so that 0/1, 0/255 and 0/65535 masks all work and
    blurred or JPEG-compressed edges are cut in their middle:
    m <= 1: above 0.5; 128 <= m <= 255: above 127; 32768 <= m: above 32767. Any other m is an
    error, since it may be a map of class numbers. Of several channels the largest counts.

    Raises ImageError like `read_image`, for a file of many gray levels as most photographs are, and
    for several files of different sizes.
    """
    if isinstance(path, tuple):
        return _union(path, [read_mask(one, crop=crop, max_pixels=max_pixels) for one in path])
    values = read_mask_values(path, max_pixels=max_pixels)
    limit = mask_limit(float(values.max()))
    if limit is None:
        raise ImageError(
            f"{path}: the mask's largest value is {values.max():g}, neither 0/1 nor 0/255.",
            hint="Write defect pixels as 255 and all others as 0.",
        )
    if is_no_mask(values):
        raise ImageError(
            f"{path}: this is no mask: more than a third of it is neither black nor white, at many "
            "gray levels.",
            hint="A mask holds two values, one for defect pixels and one for all others; a "
            "photograph, a heat map or a highlighted picture is none.",
        )
    return _cut(values, crop, path) > limit


def read_framed_mask(
    path: Path | tuple[Path, ...], geometry: Geometry, crop: Crop | None = None
) -> Bool:
    """(h, w) bool: a mask, or the union of several, brought into the frame of its image.

    Raises:
        DataError: it is of another size than its image.
    """
    mask = read_mask(path, crop=crop)
    if mask.shape != geometry.original:
        names = ", ".join(map(str, path)) if isinstance(path, tuple) else str(path)
        raise DataError(
            f"The mask {names} is {mask.shape[0]} x {mask.shape[1]} pixels, and its image "
            f"{geometry.original[0]} x {geometry.original[1]}.",
            hint="A mask has the size of its image: take the one drawn for it, or leave it out.",
        )
    return resize_mask(mask, geometry)


def _union(paths: tuple[Path, ...], masks: list[Bool]) -> Bool:
    """Where any of several masks of one image is positive, (H, W) bool."""
    if not masks:
        raise ImageError("An image names an empty list of masks.", hint="Use None for no mask.")
    first = masks[0].shape
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != first:
            raise ImageError(
                f"{path}: is {mask.shape[0]} x {mask.shape[1]} pixels, and {paths[0]}, of the same "
                f"image, {first[0]} x {first[1]}.",
                hint="All masks of an image have its height and width.",
            )
    union: Bool = np.logical_or.reduce(masks)
    return union


def mask_limit(largest: float) -> float | None:
    """The value above which mask pixels are positive; None where the mask is ambiguous."""
    if 0 <= largest <= 1:
        return 0.5
    if 127 < largest <= 255:
        return 127.0
    return 32767.0 if largest > 32767 else None


def is_no_mask(values: npt.NDArray[Any]) -> bool:
    """Whether many of the values (H, W) lie between the two of a mask, at many levels, as in a
    photograph: more than blurred edges or compression leave, or numbers of a few classes have."""
    largest = float(values.max())
    between = values[(values > largest / 8) & (values < largest * 7 / 8)]
    return 3 * between.size > values.size and len(np.unique(between)) > 32


def read_mask_values(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[Any]:
    """The values of a mask file as stored, (H, W), upright; of several channels the largest."""
    image: Image.Image = load_pixels(read_bytes(path), path, max_pixels)
    if image.mode == "1":
        image = image.convert("L")
    elif not _is_deep(image.mode):
        image = _to_8_bit(image)
    values = np.asarray(_upright(image))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError(f"{path}: the mask holds values that are not finite.")
    return values if values.ndim == 2 else values.max(axis=2)


def stored_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the image that `read_image` would return, from what the header stores.

    Nothing is decoded. Raises ImageError like `read_image`.
    """
    image = read_header(read_bytes(path), path, MAX_PIXELS)
    if isinstance(image, TiffImageFile):
        # From the tags, since Pillow's own size of a turned TIFF differs between its versions.
        W, H, orientation = image.tag_v2[256], image.tag_v2[257], image.tag_v2.get(_ORIENTATION, 1)
    else:
        W, H = image.size
        # Asked only where it costs nothing: for a PNG without EXIF, Pillow would decode all of it.
        orientation = _orientation(image) if "exif" in image.info else 1
    return (W, H) if orientation in _SIDEWAYS else (H, W)


def decode_bytes(
    data: bytes,
    path: str | Path,
    *,
    window: Window | str | None = "percentile",
    max_pixels: int = MAX_PIXELS,
) -> DecodedFile:
    """Decode a file's content; `path` is only for the message. Raises like `read_image`."""
    if isinstance(window, str):
        window = parse_window(window)
    image = load_pixels(data, path, max_pixels)
    mode = image.mode
    if _is_deep(mode):
        levels = apply_window(np.asarray(image), window, path)
        # The orientation travels in the info of the image that was loaded.
        return DecodedFile(_upright(image, Image.fromarray(levels)), mode)
    return DecodedFile(_upright(image, _to_8_bit(image)), mode)


def crop_image(image: Image.Image, crop: Crop | None, path: str | Path) -> Image.Image:
    """The part of an upright image that `crop` names. Raises ImageError when it reaches outside."""
    # Through numpy, because Image.crop raises Pillow's own bomb warning on large images.
    return image if crop is None else Image.fromarray(_cut(np.asarray(image), crop, path))


def load_array(array: object) -> UInt8:
    """An image given as an array, as (H, W, 3) uint8.

    Allowed: uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the last with alpha, drawn
    over black as in `read_image`. Values are used as they are, in RGB order.

    Raises ImageError that says what came and what to do.
    """
    allowed = "Allowed is uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."
    if not isinstance(array, np.ndarray):
        raise ImageError(
            f"The image is a {type(array).__name__}, not a numpy array. {allowed}",
            hint="Convert it first: numpy.asarray(image) for PIL, tensor.cpu().numpy() for torch.",
        )
    if array.dtype != np.uint8:
        raise ImageError(
            f"The image array has dtype {array.dtype} and shape {array.shape}. {allowed}",
            hint="Scale it yourself, since the range is yours to know: for values in 0..1, "
            "(array * 255).round().astype(numpy.uint8).",
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        raise ImageError(
            f"The image array has shape {array.shape}. {allowed}",
            hint="Channels come last: array.transpose(1, 2, 0)."
            if channels_first
            else "Give a batch as a list of images.",
        )
    if array.size == 0:
        raise ImageError(f"The image array has shape {array.shape}: it holds no pixels.")
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array.shape[2] == 4:
        pixels = Image.fromarray(np.ascontiguousarray(array))
        return np.array(_to_8_bit(pixels).convert("RGB"))
    return np.ascontiguousarray(array)


def write_png(array: UInt8 | Bool, path: str | Path) -> None:
    """Write (H, W) or (H, W, 3) uint8, or (H, W) bool as 0/255, as a PNG file, all or nothing.

    Raises DataError when the file cannot be written.
    """
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    buffer = BytesIO()
    # Level 3 writes a heat map in a third of the time of the default 6 and a tenth more bytes.
    Image.fromarray(array).save(buffer, "PNG", compress_level=3)
    write_bytes_atomic(path, buffer.getvalue())


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Raises DataError when the file cannot be written; nothing is left behind then.
    """
    path = Path(path)
    # In the same folder, since a rename is atomic only inside one file system. Not made by
    # `tempfile`, whose files nobody but the owner may read.
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}).",
            hint="Does the folder exist, is there room, and may you write there?",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _upright(loaded: Image.Image, pixels: Image.Image | None = None) -> Image.Image:
    """`pixels` (by default `loaded` itself) turned as the EXIF orientation of `loaded` says."""
    pixels = loaded if pixels is None else pixels
    # Pillow turns TIFF itself and drops the tag.
    orientation = _orientation(loaded)
    return pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata does not make the pixels worthless
        return 1


def _is_deep(mode: str) -> bool:
    """More than 8 bits per pixel of gray."""
    return mode.startswith("I") or mode == "F"


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Mode "L" or "RGB", alpha drawn over black."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        gray = image.mode in ("L", "1", "LA", "La")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        colours = image.convert("RGB")
        if alpha.getextrema() != (255, 255):
            black = Image.new("RGB", image.size)
            black.paste(colours, mask=alpha)
            colours = black
        return colours.getchannel(0) if gray else colours
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _cut(values: npt.NDArray[Any], crop: Crop | None, path: str | Path) -> npt.NDArray[Any]:
    if crop is None:
        return values
    top, left, height, width = crop
    H, W = values.shape[:2]
    if min(top, left) < 0 or min(height, width) < 1 or top + height > H or left + width > W:
        raise ImageError(
            f"{path}: is {H} x {W} pixels, and the crop (top {top}, left {left}, height {height}, "
            f"width {width}) reaches outside."
        )
    return values[top : top + height, left : left + width]
