"""How a detector's networks learned: losses as curves, and what a generator made meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from amiss.data.grid import grid
from amiss.report import figures
from amiss.report.gallery import Picture, picture
from amiss.report.phrasing import count, percent
from amiss.types import MODE_COLLAPSE

if TYPE_CHECKING:  # evaluation loads the network's libraries; a page needs only its outcome
    from amiss.outcome import Report

_MOST = 16  # curves
_COLUMNS = 8
_SIDE = 64  # of a picture of a sheet, about, in pixels


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a generator made of the same codes after some steps."""

    title: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class Training:
    """Curves and sheets, and a sentence on how much samples differ, where there are some."""

    curves: list[tuple[str, Markup]]
    epochs: int
    sheets: list[Sheet]
    diversity: str | None


def training(report: Report) -> Training | None:
    """What the page shows of the training; None where nothing learned by gradients."""
    losses = {name: values for found in _losses(report.detector) for name, values in found.items()}
    drawn = [
        (name.replace("_", " "), figures.loss_curve(np.array(values, dtype=np.float64), name))
        for name, values in list(losses.items())[:_MOST]
        if len(values) > 1
    ]
    sheets = []
    for step, pictures in report.pictures:
        factor = max(1, _SIDE // pictures.shape[1])
        sheet = Image.fromarray(grid(pictures, columns=_COLUMNS))
        large = sheet.resize(
            (sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST
        )
        sheets.append(Sheet(f"after {count(step, 'batch', 'batches')}", picture(np.array(large))))
    if not drawn and not sheets:
        return None
    epochs = max((len(values) for values in losses.values()), default=0)
    return Training(drawn, epochs, sheets, _diversity(report.detector))


def _losses(values: Mapping[str, Any]) -> Iterator[Mapping[str, list[float]]]:
    """The losses that a detector's description holds, wherever a method put them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name == "losses" and all(isinstance(v, list) for v in value.values()):
                yield value
            else:
                yield from _losses(value)


def _diversity(detector: Mapping[str, Any]) -> str | None:
    learned = detector.get("learned")
    share = learned.get("sample_diversity") if isinstance(learned, Mapping) else None
    if share is None:
        return None
    said = f"Samples of the finished generator differ from one another by {percent(share)} of what "
    said += "images do, which does not say whether they look like images."
    if share < MODE_COLLAPSE:
        said += " So little means that it makes nearly the same of every code (mode collapse)."
    return said
