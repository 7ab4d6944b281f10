"""Reading and writing images: every mode, every kind of damage."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter

from amiss.data import (
    load_array,
    read_image,
    read_mask,
    write_bytes_atomic,
    write_png,
)
from amiss.data.images import stored_size
from amiss.errors import DataError, ImageError

H, W = 20, 30


@pytest.fixture
def rgb() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def save(array: npt.NDArray[np.generic], path: Path, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


# --- modes


def test_rgb_gray_and_one_bit_are_exact(tmp_path, rgb):
    assert np.array_equal(read_image(save(rgb, tmp_path / "rgb.png")), rgb)
    gray = read_image(save(rgb[:, :, 0], tmp_path / "gray.png"))
    assert gray.shape == (H, W, 3) and gray.dtype == np.uint8
    assert all(np.array_equal(gray[:, :, c], rgb[:, :, 0]) for c in range(3))
    bits = rgb[:, :, 0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[:, :, 0], bits * np.uint8(255))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_formats_agree(tmp_path, rgb, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    assert np.array_equal(read_image(save(rgb, tmp_path / f"x.{suffix}", **options)), rgb)


def test_the_content_counts_and_not_the_suffix(tmp_path, rgb):
    save(rgb, tmp_path / "x.jpg", format="PNG")
    assert np.array_equal(read_image(tmp_path / "x.jpg"), rgb)


def test_alpha_is_drawn_over_black(tmp_path, rgb):
    alpha = np.zeros((H, W), np.uint8)
    alpha[:10] = 255
    alpha[10] = 128
    rgba = np.dstack([rgb, alpha])
    image = read_image(save(rgba, tmp_path / "rgba.png"))
    assert np.array_equal(image[:10], rgb[:10])
    assert not image[11:].any()
    assert np.abs(image[10].astype(float) - rgb[10] * (128 / 255)).max() <= 1
    la = Image.merge("LA", [Image.fromarray(rgb[:, :, 0]), Image.fromarray(alpha)])
    la.save(tmp_path / "la.png")
    assert np.array_equal(read_image(tmp_path / "la.png")[:10, :, 1], rgb[:10, :, 0])
    assert not read_image(tmp_path / "la.png")[11:].any()
    opaque = np.dstack([rgb, np.full((H, W), 255, np.uint8)])
    assert np.array_equal(read_image(save(opaque, tmp_path / "opaque.png")), rgb)


def test_palette_with_and_without_transparency(tmp_path, rgb):
    image = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    image.save(tmp_path / "p.png")
    colours = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "p.png"), colours)
    index = np.asarray(image)
    for transparency in (3, bytes([255, 255, 255, 0])):
        image.save(tmp_path / "t.png", transparency=transparency)
        expected = np.where((index == 3)[:, :, None], 0, colours)
        assert np.array_equal(read_image(tmp_path / "t.png"), expected)


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_four_colour_print(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (W, H), (200, 30, 60)).convert("CMYK").save(path)
    assert np.abs(read_image(path).astype(int) - [200, 30, 60]).max() <= 4


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 65536, (H, W, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    (tmp_path / "rgb16.png").write_bytes(png(header, zlib.compress(rows)))
    assert np.array_equal(read_image(tmp_path / "rgb16.png"), (pixels >> 8).astype(np.uint8))


# --- orientation


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, rgb, suffix, orientation):
    # What the stored pixels must be turned by, from the EXIF standard.
    upright = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(rgb),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(rgb, tmp_path / f"x.{suffix}", exif=exif, **options)
    assert np.array_equal(read_image(path), upright)
    assert stored_size(path) == upright.shape[:2]


def test_exif_orientation_of_jpeg_deep_images_and_masks(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = read_image(save(rgb, tmp_path / "a.jpg", quality=95))
    turned = read_image(save(rgb, tmp_path / "b.jpg", quality=95, exif=exif))
    assert np.array_equal(turned, np.rot90(plain, -1))
    values = rgb[:, :, 0].astype(np.uint16) * 200
    for suffix in ("png", "tif"):
        deep = read_image(save(values, tmp_path / f"d.{suffix}", exif=exif), window="0:65535")
        assert deep.shape == (W, H, 3)
    mask = rgb[:, :, 0] > 127
    save(mask * np.uint8(255), tmp_path / "m.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "m.png"), np.rot90(mask, -1))


def test_damaged_exif_does_not_cost_the_pixels(tmp_path, rgb):
    path = save(rgb, tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0garbage", quality=95)
    assert read_image(path).shape == (H, W, 3)


# --- files that are no images


def png(header: bytes, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def reason_of(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_missing_empty_and_foreign_files(tmp_path):
    assert reason_of(tmp_path / "missing.png") == "missing"
    (tmp_path / "empty.png").touch()
    assert reason_of(tmp_path / "empty.png") == "empty"
    (tmp_path / "text.png").write_text("not an image")
    assert reason_of(tmp_path / "text.png") == "not-an-image"
    (tmp_path / "folder.png").mkdir()
    assert reason_of(tmp_path / "folder.png") == "unreadable"
    with pytest.raises(ImageError):
        read_image("nul\0byte.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_truncated_files(tmp_path, rgb, suffix):
    data = save(np.kron(rgb, np.ones((8, 8, 1), np.uint8)), tmp_path / f"x.{suffix}").read_bytes()
    for part in (0.1, 0.5, 0.9):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(data[: int(len(data) * part)])
        assert reason_of(path) in ("truncated", "damaged")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animations_and_pages(tmp_path, rgb, suffix):
    frames = [Image.fromarray(np.roll(rgb, 5 * i, axis=0)) for i in range(3)]
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert reason_of(path) == "animated"


def test_decompression_bombs_are_refused_from_the_header(tmp_path):
    huge = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(png(huge, zlib.compress(b"\0" * 100)))
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\x00" * 2
    lossless = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + b"\xff\xff\xff\x0f" + bytes(8)
    for name, chunk in (("x", extended), ("l", lossless)):
        riff = b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
        (tmp_path / f"bomb_{name}.webp").write_bytes(riff)
    bitmap = b"BM" + struct.pack("<IHHI", 200, 0, 0, 54)
    bitmap += struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "bomb.bmp").write_bytes(bitmap + bytes(100))
    for path in sorted(tmp_path.iterdir()):
        start = time.perf_counter()
        assert reason_of(path) == "too-large", path
        assert time.perf_counter() - start < 0.5


def test_max_pixels_is_the_only_limit(tmp_path, rgb, monkeypatch):
    path = save(rgb, tmp_path / "x.png")
    # Pillow's own limit would raise here; it is a global of the process and not ours.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert np.array_equal(read_image(path, max_pixels=H * W), rgb)
    assert read_image(path, crop=(0, 0, 10, 10)).shape == (10, 10, 3)
    with pytest.raises(ImageError, match="20 x 30 pixels, more than the limit of 599"):
        read_image(path, max_pixels=H * W - 1)


def test_random_damage_never_escapes_as_another_error(tmp_path, rgb):
    rng = np.random.default_rng(3)
    for suffix in ("png", "jpg", "tif", "webp", "bmp", "ppm"):
        data = save(rgb, tmp_path / f"x.{suffix}").read_bytes()
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, min(len(data), 400), 4):
                damaged[place] = rng.integers(256)
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                read_image(tmp_path / "damaged", max_pixels=1_000_000)
            except ImageError as error:
                assert "damaged" in str(error)


def test_crop(tmp_path, rgb):
    path = save(rgb, tmp_path / "x.png")
    assert np.array_equal(read_image(path, crop=(2, 3, 5, 7)), rgb[2:7, 3:10])
    assert stored_size(path) == (H, W)
    for crop in ((0, 0, 21, 5), (0, 26, 5, 5), (-1, 0, 5, 5), (0, 0, 0, 5)):
        with pytest.raises(ImageError, match="20 x 30 pixels, and the crop"):
            read_image(path, crop=crop)


# --- masks


def test_the_mask_rule(tmp_path):
    truth = np.zeros((H, W), bool)
    truth[3:9, 4:20] = True
    for factor, dtype in ((1, np.uint8), (255, np.uint8), (255, np.uint16), (65535, np.uint16)):
        path = save(truth.astype(dtype) * dtype(factor), tmp_path / "m.png")
        assert np.array_equal(read_mask(path), truth), (factor, dtype)
    save(truth.astype(np.float32), tmp_path / "m.tif")
    assert np.array_equal(read_mask(tmp_path / "m.tif"), truth)
    Image.fromarray(truth).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), truth)
    red = np.dstack([truth * np.uint8(255), *[np.zeros((H, W), np.uint8)] * 2])
    assert np.array_equal(read_mask(save(red, tmp_path / "m.png")), truth)
    assert np.array_equal(read_mask(tmp_path / "m.png", crop=(2, 2, 9, 9)), truth[2:11, 2:11])


def test_blurred_and_empty_masks(tmp_path):
    values = np.array([[0, 40, 127, 128, 200, 255]], np.uint8)
    path = save(values, tmp_path / "m.png")
    assert read_mask(path).tolist() == [[False, False, False, True, True, True]]
    assert not read_mask(save(np.zeros((H, W), np.uint8), tmp_path / "e.png")).any()


def test_photographs_are_no_masks(tmp_path, rgb):
    """Nor are smooth maps; masks that were compressed, blurred or of a few classes are."""
    Image.fromarray(rgb).save(tmp_path / "photograph.png")
    slope = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(slope).save(tmp_path / "map.png")
    for name in ("photograph.png", "map.png"):
        with pytest.raises(ImageError, match=f"{name}: this is no mask"):
            read_mask(tmp_path / name)
    disk = np.zeros((64, 64), np.uint8)
    disk[16:48, 16:48] = 255
    Image.fromarray(disk).filter(ImageFilter.GaussianBlur(3)).save(tmp_path / "m.jpg", quality=50)
    assert read_mask(tmp_path / "m.jpg")[20:44, 20:44].all()
    Image.fromarray(slope // 32 * 36).save(tmp_path / "classes.png")
    assert read_mask(tmp_path / "classes.png").any()


@pytest.mark.parametrize("largest", [2, 43, 127])
def test_ambiguous_masks_are_errors(tmp_path, largest):
    path = save(np.full((H, W), largest, np.uint8), tmp_path / "m.png")
    with pytest.raises(ImageError, match=f"largest value is {largest}"):
        read_mask(path)


# --- arrays given to predict


def test_load_array_accepts(rgb):
    assert np.array_equal(load_array(rgb), rgb)
    gray = rgb[:, :, 0]
    for array in (gray, gray[:, :, None]):
        assert np.array_equal(load_array(array), np.dstack([gray] * 3))
    opaque = np.dstack([rgb, np.full((H, W), 255, np.uint8)])
    assert np.array_equal(load_array(opaque), rgb)
    assert load_array(rgb[::2, ::-1]).flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((H, W, 3), np.float32), ["float32", "uint8", "255"]),
        (np.zeros((H, W), np.uint16), ["uint16"]),
        (np.zeros((3, H, W), np.uint8), ["(3, 20, 30)", "transpose(1, 2, 0)"]),
        (np.zeros((H, W, 2), np.uint8), ["(20, 30, 2)"]),
        (np.zeros((2, H, W, 3), np.uint8), ["list of images"]),
        (np.zeros((0, W, 3), np.uint8), ["no pixels"]),
        ([[1, 2]], ["list", "numpy"]),
    ],
)
def test_load_array_says_what_is_wrong(array, words):
    with pytest.raises(ImageError) as caught:
        load_array(array)
    assert all(word in str(caught.value) for word in words)


# --- writing


def test_write_png_round_trip(tmp_path, rgb):
    write_png(rgb, tmp_path / "rgb.png")
    assert np.array_equal(read_image(tmp_path / "rgb.png"), rgb)
    write_png(rgb[:, :, 0] > 127, tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), rgb[:, :, 0] > 127)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.png", "rgb.png"]


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    write_bytes_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amiss.data.images.os.replace", fail)
    with pytest.raises(DataError, match="No space left"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(DataError, match="No such file"):
        write_bytes_atomic(tmp_path / "missing" / "x.bin", b"new")
