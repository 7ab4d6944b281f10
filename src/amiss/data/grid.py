"""`grid`: many small pictures side by side in one."""

from __future__ import annotations

import math

import numpy as np

from amiss.types import UInt8


def grid(pictures: UInt8, *, columns: int | None = None, gap: int = 2) -> UInt8:
    """Pictures (n, h, w, 3) in rows of `columns`, or about as many as there are rows, on white with
    `gap` pixels between them: (H, W, 3)."""
    n, h, w, _ = pictures.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = row * (h + gap), column * (w + gap)
        sheet[top : top + h, left : left + w] = picture
    return sheet
