"""The report that most tests of the page start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_report import (
    H,
    W,
    judged_row,
    report_of,
    write_image,
)
from PIL import Image

from amiss.outcome import Report


@pytest.fixture
def full(tmp_path: Path) -> Report:
    """Normals and anomalies with masks, one false alarm, one miss, one nearest normal patch."""
    data = tmp_path / "data"
    rows = [
        judged_row(write_image(data / "good" / f"{k}.png", seed=k), 0, score)
        for k, score in enumerate((0.5, 0.7, 2.2, 0.9))
    ]
    for k, score in enumerate((3.0, 1.4, 2.8)):
        row = judged_row(write_image(data / "scratch" / f"{k}.png", seed=9 + k), 1, score)
        mask = np.zeros((H, W), np.uint8)
        mask[15:30, 20:40] = 255
        row.mask = tmp_path / "truth" / f"{k}.png"
        row.mask.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(row.mask)
        rows.append(row)
    train = write_image(tmp_path / "train" / "good" / "007.png", seed=77)
    rows[4].nearest = {"path": str(train), "box": (10, 20, 22, 32), "distance": 2.75}
    return report_of(rows, notes=["Only 4 normal test images."])
