"""How a report was made: every option, hash, version and note that its figures rest on, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from amiss.metrics import min_max
from amiss.report.phrasing import duration, number
from amiss.types import ANOMALOUS, NORMAL

if TYPE_CHECKING:  # evaluation loads the network's libraries; a page needs only its outcome
    from amiss.outcome import Report

Rows = list[tuple[str, str]]

_PHI = 0.2  # of GANomaly's code
_EXACT_NAMES = ("config", "options")
_LONGEST_LIST = 12


def sections(report: Report) -> list[tuple[str, Rows]]:
    """(heading, [(name, value)]) of "How this was made"; warnings stand with the notes instead."""
    point = report.operating_point
    seconds = {name: duration(took) for name, took in report.seconds.items()}
    threshold = {name: value for name, value in point.items() if name != "recall_by_kind"}
    found = [
        ("Judged", [("at", report.judged_at)] if report.judged_at else []),
        *_sections("Detector", report.detector),
        *_sections("Data", report.dataset),
        *_sections("Threshold", threshold),
        *_sections("Time of judging", seconds),
        *_sections("Versions", report.versions),
    ]
    return [(heading, rows) for heading, rows in found if rows]


def notes(report: Report) -> list[str]:
    """What the figures have to be read with: warnings first."""
    warnings = [
        warning
        for source in (report.detector, report.dataset)
        for warning in source.get("warnings") or []
    ]
    return [_plain(note) for note in [*warnings, *report.notes, *_papers_scale(report)]]


def _papers_scale(report: Report) -> list[str]:
    """What GANomaly's authors would show: scores scaled over the finished test set, cut at 0.2."""
    if report.detector.get("method") != "ganomaly" or not report.judged:
        return []
    above = min_max(report.scores) > _PHI
    normal, anomalous = (int((above & (report.labels == k)).sum()) for k in (NORMAL, ANOMALOUS))
    return [
        "As the authors show it: scaled by the least and the largest score of these test images, "
        f"to 0 and 1, {normal:,} normal and {anomalous:,} anomalous images lie above {_PHI}. Such "
        "a scale needs the whole test set first; no decision and no other figure here rests on it."
    ]


def _sections(heading: str, values: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """The plain values under `heading`, and each group of values under a heading of its own."""
    groups = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    own = {k: v for k, v in values.items() if k not in groups and k != "warnings"}
    found = [(heading, _rows(own, exact=False))]
    for name, group in groups.items():
        listed = {k: v for k, v in group.items() if k != "losses"}  # they are drawn
        rows = _rows(listed, exact=name in _EXACT_NAMES)
        found.append((f"{heading}: {str(name).replace('_', ' ')}", rows))
    return found


def _rows(values: Mapping[str, Any], *, exact: bool) -> Rows:
    """Names and values as text; `exact` keeps the names that commands and code use."""
    return [
        (_plain(name) if exact else _plain(name).replace("_", " "), _plain(value))
        for name, value in values.items()
    ]


def _plain(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return number(value, 6)
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(name)} {_plain(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item) for item in value]
        between = "; " if any(isinstance(item, Mapping) for item in value) else ", "
        more = len(items) - _LONGEST_LIST
        rest = f"{between}and {more:,} more" if more > 0 else ""
        return between.join(items[:_LONGEST_LIST]) + rest
    # Lone surrogates of file names that are no UTF-8 could not be written into the page.
    return str(value).encode("utf-8", "replace").decode("utf-8")
