"""`write_page`: the report of an evaluation, with the evidence for the images it shows."""

from __future__ import annotations

from pathlib import Path

from amiss.evaluate import Report, add_evidence
from amiss.methods.base import Detector
from amiss.report.gallery import choose
from amiss.report.html import write_report


def write_page(detector: Detector, report: Report, path: str | Path) -> Path:
    """Write the HTML page; nearest normal patches are looked up for the pictured images only."""
    shown = [i for group in choose(report) for i in group.members[: group.room]]
    add_evidence(detector, [report.judged[i] for i in shown])
    return write_report(report, path)
