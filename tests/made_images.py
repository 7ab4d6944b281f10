"""Pictures made for the tests: a gray texture, with a white square where a defect is wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = (60, 80)
DEFECT_PX = 14


def texture(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8: fine waves and noise about a middle gray."""
    H, W = size
    y, x = np.mgrid[:H, :W]
    waves = 12 * np.sin(y / 3 + rng.uniform(0, 6)) * np.sin(x / 4 + rng.uniform(0, 6))
    gray = 110 + waves[:, :, None] + rng.normal(0, 4, (H, W, 3))
    return gray.round().clip(0, 255).astype(np.uint8)


def spoil(image: npt.NDArray[np.uint8], top: int, left: int) -> npt.NDArray[np.bool_]:
    """Paint the defect into (H, W, 3) and return its mask (H, W)."""
    mask = np.zeros(image.shape[:2], dtype=np.bool_)
    mask[top : top + DEFECT_PX, left : left + DEFECT_PX] = True
    image[mask] = 250
    return mask


def write(array: npt.NDArray[np.generic], path: Path) -> Path:
    """Save an array as an image, the folder made where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def textures(
    folder: Path,
    count: int,
    *,
    seed: int,
    size: tuple[int, int] = SIZE,
    defects: bool = False,
    masks: Path | None = None,
) -> Path:
    """Write `count` textures as NNN.png, with defects and their masks where asked for."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        image = texture(rng, size)
        if defects:
            top = int(rng.integers(4, size[0] - DEFECT_PX - 4))
            left = int(rng.integers(4, size[1] - DEFECT_PX - 4))
            mask = spoil(image, top, left)
            if masks is not None:
                white = mask.astype(np.uint8) * 255
                write(white, masks / folder.name / f"{i:03}_mask.png")
        write(image, folder / f"{i:03}.png")
    return folder
