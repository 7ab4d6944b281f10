"""Defects that are made: the generators, by name.

Each is called as `generator(normal, rng, roi=None)` with a normal image (H, W, 3) uint8, a
`numpy.random.Generator` that all chance comes from, and where to look (H, W) bool, and returns a
`Synthetic`, the image and the mask of its defect. What a generator needs besides it is given first:

    Rpag(defects, count=3, placement="random", foreground="otsu")
    Perlin(pictures=None, foreground="all")
    CutPaste(normals, foreground="otsu")
"""

from __future__ import annotations

from amiss.data.cut_paste import CutPaste
from amiss.data.defects import Defect, Generator, Synthetic, defect_records, read_defects
from amiss.data.perlin import Perlin
from amiss.data.rpag import Rpag

__all__ = [
    "GENERATORS",
    "CutPaste",
    "Defect",
    "Generator",
    "Perlin",
    "Rpag",
    "Synthetic",
    "defect_records",
    "read_defects",
]

GENERATORS: dict[str, type[Rpag] | type[Perlin] | type[CutPaste]] = {
    "rpag": Rpag,
    "perlin": Perlin,
    "cut_paste": CutPaste,
}
