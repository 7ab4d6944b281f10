"""Reading and writing images, resizing, and the stream of batches."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from amiss.data import (
    ImageStream,
    Window,
    inner_roi,
    load_array,
    parse_window,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
    restore_map,
    write_bytes_atomic,
    write_png,
)
from amiss.data.decoding import UnreadableImageError
from amiss.data.images import stored_size
from amiss.errors import DataError, ImageError, OptionError
from amiss.types import Record

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


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces(tmp_path, mode):
    Image.new("RGB", (W, H), (200, 30, 60)).convert(mode).save(tmp_path / "x.tif")
    assert np.abs(read_image(tmp_path / "x.tif").astype(int) - [200, 30, 60]).max() <= 2


# --- 16-bit and float


def deep_files(folder: Path, values: npt.NDArray[np.uint16]) -> list[Path]:
    big_endian = BytesIO()
    height, width = values.shape
    # A minimal big-endian TIFF: Pillow opens it in mode I;16B.
    tags = [(256, 4, width), (257, 4, height), (258, 3, 16 << 16), (259, 3, 1 << 16)]
    tags += [(262, 3, 1 << 16), (273, 4, 8 + 2 + 9 * 12 + 4), (277, 3, 1 << 16)]
    tags += [(278, 4, height), (279, 4, height * width * 2)]
    big_endian.write(b"MM\0*" + struct.pack(">IH", 8, len(tags)))
    for tag, kind, value in tags:
        big_endian.write(struct.pack(">HHII", tag, kind, 1, value))
    big_endian.write(struct.pack(">I", 0) + values.astype(">u2").tobytes())
    (folder / "big.tif").write_bytes(big_endian.getvalue())
    return [
        save(values, folder / "u16.png"),
        save(values, folder / "u16.tif"),
        save(values.astype(np.int32), folder / "i32.tif"),
        save(values.astype(np.float32), folder / "f32.tif"),
        folder / "big.tif",
    ]


def test_sixteen_bits_go_through_the_window(tmp_path):
    values = np.linspace(1000, 5000, H * W).astype(np.uint16).reshape(H, W)
    expected = np.rint((values.astype(float).clip(1000, 3000) - 1000) * 255 / 2000)
    for path in deep_files(tmp_path, values):
        image = read_image(path, window=Window(1000, 3000))
        assert image.shape == (H, W, 3), path
        assert np.abs(image[:, :, 0] - expected).max() <= 1, path
        assert np.array_equal(image, read_image(path, window="1000:3000")), path
        spread = read_image(path)
        assert spread.min() == 0 and spread.max() == 255, path
    full = read_image(tmp_path / "u16.png", window="full")
    assert np.abs(full[:, :, 0] - values / 257).max() <= 0.51


def test_the_percentile_window_ignores_a_few_hot_pixels(tmp_path):
    values = np.random.default_rng(1).integers(1000, 2000, (100, 100)).astype(np.uint16)
    values[0, 0], values[5, 5] = 65535, 0
    images = [read_image(path)[:, :, 0] for path in deep_files(tmp_path, values)]
    assert np.percentile(images[0], 50) > 100
    assert images[0][0, 0] == 255 and images[0][5, 5] == 0
    assert all(np.array_equal(image, images[0]) for image in images[1:])


def test_constant_deep_images_are_black_and_nan_is_allowed(tmp_path):
    assert not read_image(save(np.full((H, W), 900, np.uint16), tmp_path / "c.png")).any()
    depth = np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)
    depth[0, 5], depth[1, 5] = np.nan, np.inf
    image = read_image(save(depth, tmp_path / "d.tif"))
    assert image[0, 5, 0] == 0 and image[1, 5, 0] == 255
    save(np.full((H, W), np.nan, np.float32), tmp_path / "n.tif")
    with pytest.raises(ImageError, match="no finite value"):
        read_image(tmp_path / "n.tif")


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 65536, (H, W, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    (tmp_path / "rgb16.png").write_bytes(png(header, zlib.compress(rows)))
    assert np.array_equal(read_image(tmp_path / "rgb16.png"), (pixels >> 8).astype(np.uint8))


def test_parse_window():
    assert parse_window("percentile") is None
    assert parse_window("full") == Window(0, 65535)
    assert parse_window("-0.5:1e3") == Window(-0.5, 1000)
    for text in ("", "5", "9:3", "3:3", "a:b", "nan:1", "0:inf", "1:2:3"):
        with pytest.raises(OptionError, match="LOW:HIGH"):
            parse_window(text)


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
    assert isinstance(caught.value, UnreadableImageError)
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


@pytest.mark.parametrize("largest", [2, 43, 127])
def test_ambiguous_masks_are_errors(tmp_path, largest):
    path = save(np.full((H, W), largest, np.uint8), tmp_path / "m.png")
    with pytest.raises(ImageError, match=f"largest value is {largest}"):
        read_mask(path)


# --- geometry


def test_squash_and_identity(rgb):
    image, geometry = resize_image(rgb, (H, W))
    assert image is rgb and geometry.original == geometry.size == (H, W)
    image, geometry = resize_image(rgb, (8, 16))
    expected = Image.fromarray(rgb).resize((16, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(image, np.asarray(expected))
    assert geometry.inner == (0, 0, 8, 16) and inner_roi(geometry) is None


def test_letterbox_round_trip():
    image = np.full((40, 80, 3), 200, np.uint8)
    frame, geometry = resize_image(image, (64, 64), "letterbox")
    assert geometry.inner == (16, 0, 32, 64)
    assert not frame[:16].any() and not frame[48:].any() and (frame[16:48] == 200).all()
    roi = inner_roi(geometry)
    assert roi is not None and roi.sum() == 32 * 64 and roi[16:48].all()
    row, column = np.mgrid[:64, :64].astype(np.float32)
    restored = restore_map(column, geometry)
    assert restored.shape == (40, 80) and restored.dtype == np.float32
    # The left half of the image is the left half of the frame.
    assert np.allclose(restored[:, 1:-1], (np.arange(1, 79) + 0.5) * 64 / 80 - 0.5, atol=1e-4)
    rows = restore_map(row, geometry)
    assert np.allclose(rows[1:-1, 0], (np.arange(1, 39) + 0.5) * 32 / 40 - 0.5 + 16, atol=1e-4)


def test_letterbox_without_padding_and_tall_images():
    image = np.full((90, 30, 3), 9, np.uint8)
    _, geometry = resize_image(image, (30, 10), "letterbox")
    assert geometry.inner == (0, 0, 30, 10) and inner_roi(geometry) is None
    _, geometry = resize_image(image, (30, 30), "letterbox")
    assert geometry.inner == (0, 10, 30, 10)
    _, geometry = resize_image(np.zeros((1, 500, 3), np.uint8), (20, 20), "letterbox")
    assert geometry.inner[2:] == (1, 20)


def test_masks_follow_their_image():
    mask = np.zeros((40, 80), bool)
    mask[10:20, 20:60] = True
    for mode in ("squash", "letterbox"):
        _, geometry = resize_image(np.zeros((40, 80, 3), np.uint8), (32, 48), mode)
        small = resize_mask(mask, geometry)
        assert small.shape == (32, 48) and small.dtype == np.bool_
        _, _, height, width = geometry.inner
        assert small.mean() == pytest.approx(mask.mean() * height * width / (32 * 48), rel=0.05)
        back = restore_map(small.astype(np.float32), geometry) > 0.5
        assert (back ^ mask).mean() < 0.02
    with pytest.raises(OptionError, match="must agree"):
        resize_mask(mask.T, geometry)
    with pytest.raises(OptionError, match="must agree"):
        restore_map(np.zeros((3, 3), np.float32), geometry)


def test_nearest_takes_the_pixel_under_the_centre():
    mask = np.eye(6, dtype=bool)
    _, geometry = resize_image(np.zeros((6, 6, 3), np.uint8), (2, 3))
    # Rows 1 and 4, columns 1, 3 and 5.
    assert resize_mask(mask, geometry).tolist() == [[True, False, False], [False] * 3]
    _, geometry = resize_image(np.zeros((6, 6, 3), np.uint8), (12, 12))
    assert np.array_equal(resize_mask(mask, geometry), np.kron(mask, np.ones((2, 2), bool)))


def test_bad_sizes_and_modes(rgb):
    with pytest.raises(OptionError, match='"stretch"'):
        resize_image(rgb, (8, 8), "stretch")
    with pytest.raises(OptionError, match="begin at 1"):
        resize_image(rgb, (0, 8))


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


# --- the stream


def make_set(folder: Path, count: int = 7) -> list[Record]:
    rng = np.random.default_rng(4)
    records = []
    for i in range(count):
        shape = (30 + i, 40, 3) if i % 3 else (30 + i, 40)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        records.append(Record(save(image, folder / f"{i}.png"), 0))
    return records


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
@pytest.mark.parametrize("mode", ["squash", "letterbox"])
def test_stream_equals_reading_and_resizing_by_hand(tmp_path, batch_size, mode):
    records = make_set(tmp_path)
    stream = ImageStream(records, size=(16, 24), mode=mode)
    assert len(stream) == 7
    seen = []
    for batch in stream.batches(batch_size):
        B = len(batch.indices)
        assert batch.images.shape == (B, 16, 24, 3) and batch.images.dtype == np.uint8
        assert batch.images.flags["C_CONTIGUOUS"] and batch.images.flags["WRITEABLE"]
        assert B == len(batch.geometries) == len(batch.digests) <= batch_size
        assert (batch.rois is None) == (mode == "squash")
        for row, i in enumerate(batch.indices):
            image, geometry = resize_image(read_image(records[i].path), (16, 24), mode)
            assert np.array_equal(batch.images[row], image)
            assert batch.geometries[row] == geometry
            if batch.rois is not None:
                inside = inner_roi(geometry)
                assert np.array_equal(batch.rois[row], inside if inside is not None else True)
        seen += batch.indices.tolist()
    assert seen == list(range(7))


def test_digests_tell_content_and_crop(tmp_path, rgb):
    a = save(rgb, tmp_path / "a.png")
    b = tmp_path / "b.png"
    b.write_bytes(a.read_bytes())
    c = save(rgb[::-1], tmp_path / "c.png")
    records = [Record(a), Record(b), Record(c), Record(a, crop=(0, 0, 9, 9))]
    records.append(Record(a, crop=(0, 9, 9, 9)))
    (batch,) = ImageStream(records, size=(8, 8)).batches(8)
    assert all(len(digest) == 8 for digest in batch.digests)
    assert batch.digests[0] == batch.digests[1]
    assert len(set(batch.digests)) == 4
    assert np.array_equal(batch.images[4], resize_image(rgb[:9, 9:18], (8, 8))[0])


def test_unreadable_images_raise_or_are_reported_in_order(tmp_path):
    records = make_set(tmp_path)
    records[2].path.write_bytes(b"")
    records[5].path.write_bytes(b"nonsense")
    with pytest.raises(ImageError, match=r"2\.png"):
        list(ImageStream(records, size=(8, 8)).batches(3))
    reported = []
    stream = ImageStream(records, size=(8, 8), on_error=lambda r, e: reported.append((r, e)))
    batches = list(stream.batches(3))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 3], [4, 6]]
    assert [record for record, _ in reported] == [records[2], records[5]]
    assert all(isinstance(error, ImageError) for _, error in reported)


def decoding_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("amiss-decode")]


def test_an_early_stop_ends_the_threads_and_reads_little(tmp_path, monkeypatch):
    records = make_set(tmp_path, 1) * 1
    records = [Record(save(np.zeros((9, 9), np.uint8), tmp_path / f"n{i}.png")) for i in range(200)]
    decoded = []
    original = ImageStream._decode
    monkeypatch.setattr(
        ImageStream, "_decode", lambda self, task: (decoded.append(task), original(self, task))[1]
    )
    batches = ImageStream(records, size=(8, 8), workers=2).batches(4)
    next(batches)
    batches.close()
    assert not decoding_threads()
    assert len(decoded) < 40
    with pytest.raises(ImageError):
        list(ImageStream([*records[:5], Record(tmp_path / "gone.png")], size=(8, 8)).batches(2))
    assert not decoding_threads()


def test_region_of_interest(tmp_path):
    records = make_set(tmp_path)[:3]
    roi = np.zeros((30, 40), np.uint8)
    roi[:, :20] = 255
    save(roi, tmp_path / "roi.png")
    own = np.zeros((31, 40), np.uint8)
    own[10:] = 1
    save(own, tmp_path / "own.png")
    records[1] = Record(records[1].path, 0, roi=tmp_path / "own.png")
    stream = ImageStream(records[:2], size=(16, 16), roi=tmp_path / "roi.png")
    (batch,) = stream.batches(2)
    assert batch.rois is not None and batch.rois.dtype == np.bool_
    assert batch.rois[0, :, :8].all() and not batch.rois[0, :, 8:].any()
    assert not batch.rois[1, :5].any() and batch.rois[1, 6:].all()
    # The third image is 32 x 40: the mask's aspect is more than 1 % off.
    with pytest.raises(DataError, match=r"30 x 40 pixels, and .*2\.png is 32 x 40"):
        list(ImageStream(records, size=(16, 16), roi=tmp_path / "roi.png").batches(2))


def test_region_of_interest_is_scaled_cropped_and_joined_with_the_letterbox(tmp_path):
    path = save(np.full((100, 200), 50, np.uint8), tmp_path / "x.png")
    roi = np.zeros((50, 100), bool)
    roi[:, 50:] = True
    write_png(roi, tmp_path / "roi.png")
    records = [Record(path), Record(path, crop=(0, 80, 100, 100))]
    stream = ImageStream(records, size=(20, 20), mode="letterbox", roi=tmp_path / "roi.png")
    (batch,) = stream.batches(2)
    assert batch.rois is not None
    expected = np.zeros((20, 20), bool)
    expected[5:15, 10:] = True
    assert np.array_equal(batch.rois[0], expected)
    expected[:] = False
    expected[:, 4:] = True
    assert np.array_equal(batch.rois[1], expected)
    with pytest.raises(DataError, match="nothing of"):
        records = [Record(path, crop=(0, 0, 50, 50))]
        list(ImageStream(records, size=(20, 20), roi=tmp_path / "roi.png").batches(1))


def test_a_region_that_covers_everything_is_none_and_an_empty_one_an_error(tmp_path, rgb):
    records = [Record(save(rgb, tmp_path / "x.png"))]
    write_png(np.ones((H, W), bool), tmp_path / "all.png")
    (batch,) = ImageStream(records, size=(8, 8), roi=tmp_path / "all.png").batches(1)
    assert batch.rois is None
    write_png(np.zeros((H, W), bool), tmp_path / "none.png")
    with pytest.raises(DataError, match="no positive pixel"):
        ImageStream(records, size=(8, 8), roi=tmp_path / "none.png")
    with pytest.raises(ImageError, match="no such file"):
        ImageStream(records, size=(8, 8), roi=tmp_path / "gone.png")


def test_stream_options_are_checked_at_once(tmp_path):
    for options in ({"size": (0, 8)}, {"size": (8, 8), "workers": 0}):
        with pytest.raises(OptionError):
            ImageStream([], **options)
    with pytest.raises(OptionError, match="LOW:HIGH"):
        ImageStream([], size=(8, 8), window="wide")
    with pytest.raises(OptionError, match="batch_size is 0"):
        ImageStream([], size=(8, 8)).batches(0)
    assert list(ImageStream([], size=(8, 8)).batches(2)) == []
