"""The gallery of the report: which images to show, and the pictures that go with each."""

from __future__ import annotations

import base64
import io
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from amiss.data.geometry import Geometry, ResizeMode, fit_frame, restore_map
from amiss.data.images import read_image, read_mask
from amiss.errors import AmissError
from amiss.report.overlay import heat_map, outline, overlay
from amiss.report.phrasing import decision, truth
from amiss.types import ANOMALOUS, NORMAL, Bool, Region, UInt8

if TYPE_CHECKING:  # evaluation loads the network's libraries; a page needs only its outcome
    from amiss.outcome import Judged, Report

SIDE_PX = 320
PATCH_PX = 104
PICTURE_BYTES = 3_400_000
"""Base64 characters of all pictures together; keeps the page under 5 MB."""
MAX_REGIONS = 5
TRUTH_COLOUR = (0, 229, 255)
_PATCH_CONTEXT = 3
_TINY_PX = 160
_JPEG_QUALITY = 82
_WHERE_DECLARED = ("options", "config", "training", "preprocessing")

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, the last two exclusive."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image for the page: a data URI and its size in CSS pixels."""

    source: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Nearest:
    """The patch that scored highest beside the normal training patch it was compared with."""

    query: Picture | None
    normal: Picture | None
    name: str
    distance: float | None


@dataclass(slots=True)
class Case:
    """One image of the gallery. Pictures are None where a file or a map is missing."""

    judged: Judged
    name: str
    truth: str
    decision: str
    image: Picture | None = None
    heat: Picture | None = None
    made: Picture | None = None
    has_truth: bool = False
    regions: list[Region] = field(default_factory=list)
    more_regions: int = 0
    nearest: Nearest | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    """Images under one heading: all that belong there, and the cases of those with pictures."""

    title: str
    note: str
    members: list[int]
    room: int
    compact: bool = False
    cases: list[Case] = field(default_factory=list)

    @property
    def left_out(self) -> int:
        """How many members have no picture on the page."""
        return len(self.members) - len(self.cases)


@dataclass(frozen=True, slots=True)
class Scale:
    """The one colour scale of all heat maps on the page, and where it comes from."""

    low: float
    high: float
    origin: str


class Names:
    """Short, unambiguous, printable names for files."""

    def __init__(self, report: Report) -> None:
        folders = [os.path.dirname(os.path.abspath(row.path)) for row in report.judged]
        try:
            self._root = os.path.commonpath(folders) if folders else ""
        except ValueError:  # different drives have no common path
            self._root = ""

    def of(self, path: Path | str, crop: Box | None = None) -> str:
        """The path below the folder that all judged files share; elsewhere its last three parts."""
        full = os.path.abspath(path)
        if self._root and full.startswith(self._root.rstrip(os.sep) + os.sep):
            name = os.path.relpath(full, self._root)
        else:
            name = os.sep.join(Path(full).parts[-3:])
        # A file name is bytes; those that are no UTF-8 could not be written into the page.
        name = os.fsencode(name).decode("utf-8", "replace")
        return name if crop is None else f"{name} [{crop[0]}, {crop[1]}]"


def choose(report: Report) -> list[Group]:
    """The groups of the gallery, mistakes first, each with its most telling member first.

    Without a threshold the groups go by rank alone. No image stands in two groups.
    """
    rows = report.judged
    by_score = sorted(range(len(rows)), key=lambda index: rows[index].result.score)
    normal = [index for index in by_score if rows[index].label == NORMAL]
    anomalous = [index for index in by_score if rows[index].label == ANOMALOUS]
    alarms = [index for index in normal[::-1] if rows[index].result.is_anomalous]
    misses = [index for index in anomalous if rows[index].result.is_anomalous is False]
    undecided = report.operating_point.get("threshold") is None
    if undecided:
        # Halves at most, so that a small set still has something for the two groups below.
        high = normal[::-1][: min(4, len(normal) // 2)]
        low = anomalous[: min(4, len(anomalous) // 2)]
        groups = [
            Group("Normal images that scored highest", "", high, 4),
            Group("Anomalous images that scored lowest", "", low, 4),
        ]
    elif alarms or misses:
        groups = [
            Group(
                "False alarms", "Normal images called anomalous, highest score first.", alarms, 8
            ),
            Group("Misses", "Anomalous images called normal, lowest score first.", misses, 8),
        ]
    else:
        close = normal[::-1][: min(2, len(normal))] + anomalous[: min(2, len(anomalous))]
        note = "There are no mistakes at this threshold; these came closest to one."
        groups = [Group("Closest calls", note, close, 4)]
    taken = {index for group in groups for index in group.members}
    top = [index for index in anomalous[::-1] if index not in taken]
    typical = [index for index in normal if index not in taken]
    note = "" if undecided else "Caught, highest score first."
    groups += [
        Group("Highest-scoring anomalies", note, top, 6, compact=True),
        Group(
            "Most typical normals", "Normal images that scored lowest.", typical, 4, compact=True
        ),
    ]
    return [group for group in groups if group.members]


def pictured(report: Report) -> list[Judged]:
    """The images that the page shows, for what is worth computing for them alone (`nearest`)."""
    return [report.judged[i] for group in choose(report) for i in group.members[: group.room]]


def display_scale(report: Report) -> Scale | None:
    """The scale of the heat maps: the detector's own, or else one made from the judged maps."""
    if report.display is not None and report.display[0] < report.display[1]:
        low, high = report.display
        return Scale(low, high, "fixed with the detector's calibration")
    maps = [row.map[np.isfinite(row.map)] for row in report.judged if row.map is not None]
    maps = [values for values in maps if values.size]
    if not maps:
        return None
    low = min(float(np.median(values)) for values in maps)
    high = max(float(values.max()) for values in maps)
    return Scale(low, max(high, low + 1e-6 + 1e-6 * abs(low)), "taken from these images' own maps")


def build(report: Report, names: Names, scale: Scale | None) -> list[Group]:
    """The groups with their pictures, as many as the page has room for."""
    groups = choose(report)
    spent = 0
    for group in groups:
        for index in group.members[: group.room]:
            if spent > PICTURE_BYTES:
                break
            case = _case(report, report.judged[index], names, scale)
            group.cases.append(case)
            nearest = case.nearest
            pictures = [case.image, case.heat, case.made]
            pictures += [nearest.query, nearest.normal] if nearest is not None else []
            spent += sum(len(picture.source) for picture in pictures if picture is not None)
    return groups


def _case(report: Report, row: Judged, names: Names, scale: Scale | None) -> Case:
    case = Case(row, names.of(row.path, row.crop), truth(row), decision(row))
    window = _declared(report, "window", "percentile")
    image = _read(row.path, row.crop, window)
    if image is None:
        case.problems.append("The file could not be read when this page was written.")
    regions = sorted(row.result.regions, key=lambda region: -region.peak)
    case.regions, case.more_regions = regions[:MAX_REGIONS], max(0, len(regions) - MAX_REGIONS)
    original = image.shape[:2] if image is not None else _original_size(row)
    size = _thumbnail_size(original)
    thumbnail = None if image is None else _resized(image, size)
    if thumbnail is not None:
        mask = _mask(row, size, case)
        case.has_truth = mask is not None
        marked = thumbnail if mask is None else outline(thumbnail, mask, TRUTH_COLOUR)
        case.image = picture(marked)
    if row.map is not None and scale is not None:
        letterbox = _declared(report, "resize", "squash") == "letterbox"
        mode: ResizeMode = "letterbox" if letterbox else "squash"
        geometry = row.geometry or fit_frame(original, row.map.shape, mode)
        heat = restore_map(row.map.astype(np.float32), replace(geometry, original=size))
        if thumbnail is None:
            case.heat = picture(heat_map(heat, scale.low, scale.high))
        else:
            boxes = [_scaled(region, original, size) for region in case.regions]
            case.heat = picture(overlay(thumbnail, heat, scale.low, scale.high, boxes))
    if row.made is not None:
        case.made = picture(_made(row.made, row.geometry, size))
    if row.nearest is not None:
        case.nearest = _nearest(row, row.nearest, image, names, window)
    return case


def _made(made: UInt8, geometry: Geometry | None, size: tuple[int, int]) -> UInt8:
    """What networks made (h, w, 3), in the shape of the thumbnail and without what was padded."""
    if geometry is not None:
        top, left, height, width = geometry.inner
        made = made[top : top + height, left : left + width]
    return _resized(made, size)


def _read(path: Path, crop: Box | None, window: str) -> UInt8 | None:
    """The image, or None: a page about 5,000 images must not fail because one has moved."""
    try:
        return read_image(path, window=window, crop=crop)
    except AmissError:
        return None


def _mask(row: Judged, size: tuple[int, int], case: Case) -> Bool | None:
    """The truth mask at the thumbnail's size (h, w), or None."""
    if row.mask is None:
        return None
    try:
        mask = read_mask(row.mask, crop=row.crop)
    except AmissError:
        case.problems.append("The truth mask could not be read when this page was written.")
        return None
    h, w = size
    gray = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    # Any coverage counts, or the smallest defects would vanish from the thumbnail.
    covered: Bool = np.asarray(gray.resize((w, h), Image.Resampling.BOX)) > 0
    return covered if covered.any() else None


def _original_size(row: Judged) -> tuple[int, int]:
    """(height, width) of an image that is gone, as far as is known."""
    if row.geometry is not None:
        return row.geometry.original
    return (SIDE_PX, SIDE_PX) if row.map is None else (row.map.shape[0], row.map.shape[1])


def _thumbnail_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) with no side over SIDE_PX; tiny images grow by a whole factor."""
    H, W = shape
    longest = max(H, W)
    if longest <= _TINY_PX:
        factor = SIDE_PX // longest
        return H * factor, W * factor
    ratio = min(1.0, SIDE_PX / longest)
    return max(1, round(H * ratio)), max(1, round(W * ratio))


def _resized(image: UInt8, size: tuple[int, int]) -> UInt8:
    h, w = size
    H = image.shape[0]
    # Whole factors keep the pixels of a tiny image visible as what they are.
    method = Image.Resampling.NEAREST if h > H else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(image).resize((w, h), method))


def _declared(report: Report, name: str, default: str) -> str:
    """How the detector's images were read or resized, from wherever its description says so."""
    for place in (report.detector, *(report.detector.get(key) for key in _WHERE_DECLARED)):
        if isinstance(place, dict) and isinstance(place.get(name), str):
            return str(place[name])
    return default


def _scaled(region: Region, shape: tuple[int, ...], size: tuple[int, int]) -> Region:
    """A region in pixels of the image, in pixels of the thumbnail; never narrower than one."""
    down, across = size[0] / shape[0], size[1] / shape[1]
    top, left, bottom, right = region.box
    y, x = int(top * down), int(left * across)
    box = (y, x, max(y + 1, math.ceil(bottom * down)), max(x + 1, math.ceil(right * across)))
    return replace(region, box=box)


def _nearest(
    row: Judged, nearest: dict[str, Any], image: UInt8 | None, names: Names, window: str
) -> Nearest | None:
    """Both patches with their surroundings, at the same magnification relative to the images."""
    path = nearest.get("path")
    if path is None:
        return None
    box: Box | None = nearest.get("box")
    query_box: Box | None = nearest.get("query_box")
    # Without a box the normal image is gone; what was compared with it can still be shown.
    normal = None if box is None else _read(Path(path), nearest.get("crop"), window)
    if query_box is None and normal is not None and box is not None and image is not None:
        query_box = _query_box(row, box, normal.shape, image.shape)
    return Nearest(
        query=None if image is None or query_box is None else _patch(image, query_box),
        normal=None if normal is None or box is None else _patch(normal, box),
        name=names.of(path, nearest.get("crop")),
        distance=nearest.get("distance"),
    )


def _query_box(row: Judged, box: Box, normal: tuple[int, ...], image: tuple[int, ...]) -> Box:
    """Where the compared patch lies in the query if nothing says so: around the peak of its map.

    Both images reach the network at one size, so a patch is the same share of either.
    """
    tall = max(1, round((box[2] - box[0]) * image[0] / normal[0]))
    wide = max(1, round((box[3] - box[1]) * image[1] / normal[1]))
    if row.result.regions:
        y, x = max(row.result.regions, key=lambda region: region.peak).peak_at
    elif row.map is not None:
        h, w = row.map.shape
        peak = int(np.where(np.isfinite(row.map), row.map, -np.inf).argmax())
        y, x = int((peak // w + 0.5) * image[0] / h), int((peak % w + 0.5) * image[1] / w)
    else:  # nothing tells the place: the same one as in the normal image
        y = (box[0] + box[2]) * image[0] // (2 * normal[0])
        x = (box[1] + box[3]) * image[1] // (2 * normal[1])
    top = min(max(0, y - tall // 2), max(0, image[0] - tall))
    left = min(max(0, x - wide // 2), max(0, image[1] - wide))
    return top, left, top + tall, left + wide


def _patch(image: UInt8, box: Box) -> Picture:
    """A square cut around `box`, _PATCH_CONTEXT times its size, with the patch itself framed."""
    H, W, _ = image.shape
    top, left, bottom, right = box
    side = max(1, min(_PATCH_CONTEXT * max(bottom - top, right - left), H, W))
    y = min(max(0, (top + bottom - side) // 2), H - side)
    x = min(max(0, (left + right - side) // 2), W - side)
    cut = Image.fromarray(image[y : y + side, x : x + side])
    pixels = np.array(cut.resize((2 * PATCH_PX, 2 * PATCH_PX), Image.Resampling.BICUBIC))
    zoom = 2 * PATCH_PX / side
    rows = slice(max(0, round((top - y) * zoom)), max(1, round((bottom - y) * zoom)))
    columns = slice(max(0, round((left - x) * zoom)), max(1, round((right - x) * zoom)))
    frame = np.zeros(pixels.shape[:2], dtype=np.bool_)
    frame[rows, columns] = True
    framed = outline(pixels, frame, (255, 255, 255), width_px=2)
    return replace(picture(framed), width=PATCH_PX, height=PATCH_PX)


def picture(pixels: UInt8) -> Picture:
    """(H, W, 3) uint8 as a JPEG data URI; every browser of the last 20 years shows it."""
    buffer = io.BytesIO()
    # Full colour resolution: thin coloured outlines would otherwise turn gray.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    H, W, _ = pixels.shape
    return Picture(f"data:image/jpeg;base64,{code}", W, H)
