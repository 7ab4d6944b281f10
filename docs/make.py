"""Makes the parts of the docs that come from the code: option tables and the README's picture.

Run by `make docs`. Tables stand between `<!-- options -->` marks in docs/methods/ID.md.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import typing
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw

import amiss
from amiss.methods import METHODS, method_class
from amiss.report.overlay import overlay
from amiss.types import ImageResult

DOCS = Path(__file__).parent
SIDE = 192


def main() -> None:
    """Make everything."""
    for method in METHODS:
        page = DOCS / "methods" / f"{method}.md"
        page.write_text(with_options(page.read_text(), options_table(method)))
        print(page)
    print(heat_map_picture(DOCS / "images" / "heatmap.png"))


def options_table(method: str) -> str:
    """A Markdown table of a method's options."""
    kind = method_class(method).config_type
    hints = typing.get_type_hints(kind)
    rows = ["| option | default | paper | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        meta = field.metadata
        allowed = ", ".join(meta["choices"]) if meta["choices"] else ""
        if not allowed and meta["low"] is not None:
            allowed = f"{meta['low']:g} to {meta['high']:g}"
        name = getattr(hints[field.name], "__name__", str(hints[field.name]))
        text = meta["text"] + (f" ({allowed})" if allowed else f" ({name})")
        rows.append(f"| `{field.name}` | {field.default} | {meta['paper'] or '-'} | {text} |")
    return "\n".join(rows)


def with_options(page: str, table: str) -> str:
    """The page with the table between its marks."""
    marks = re.compile(r"(<!-- options -->\n).*?(<!-- end of options -->)", re.DOTALL)
    return marks.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)


def heat_map_picture(path: Path) -> Path:
    """Brick wall (CC0, from scikit-image): fitted on clean cuts of it, asked about a marked one.

    The mark is drawn here; the heat map and its box are what the detector answers.
    """
    wall = Image.fromarray(skimage.data.brick()).convert("RGB")
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(100):  # from the upper part alone: the question is from the lower
            y, x = random.integers(0, 320 - SIDE), random.integers(0, 512 - SIDE)
            wall.crop((x, y, x + SIDE, y + SIDE)).save(Path(folder) / f"{i:02}.png")
        detector = amiss.PatchCore(image_size=(SIDE, SIDE), coreset_ratio=0.05)
        detector.fit(folder, max_false_alarm=0.05)
    question = wall.crop((160, 320, 160 + SIDE, 320 + SIDE))
    pen = ImageDraw.Draw(question)
    pen.line([(50, 120), (78, 100), (98, 110), (126, 80)], fill=(70, 62, 58), width=2)
    pixels = np.asarray(question)
    found = detector.predict(pixels)
    assert isinstance(found, ImageResult)
    assert found.anomaly_map is not None
    assert detector.calibration is not None
    assert detector.calibration.display is not None
    low, high = detector.calibration.display
    heat = overlay(pixels, found.anomaly_map, low, high, found.regions)
    gap = np.full((SIDE, 12, 3), 255, dtype=np.uint8)
    picture = Image.fromarray(np.hstack([pixels, gap, heat]))
    picture.resize((2 * picture.width, 2 * picture.height)).save(path)
    return path


if __name__ == "__main__":
    main()
