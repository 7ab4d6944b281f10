"""16-bit and float images through the intensity window."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from amiss.data import (
    Window,
    parse_window,
    read_image,
)
from amiss.errors import ImageError, OptionError

H, W = 20, 30


def save(array: npt.NDArray[np.generic], path: Path, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


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


def test_parse_window():
    assert parse_window("percentile") is None
    assert parse_window("full") == Window(0, 65535)
    assert parse_window("-0.5:1e3") == Window(-0.5, 1000)
    for text in ("", "5", "9:3", "3:3", "a:b", "nan:1", "0:inf", "1:2:3"):
        with pytest.raises(OptionError, match="LOW:HIGH"):
            parse_window(text)
