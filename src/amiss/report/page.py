"""`write_page`: the report of an evaluation, with the evidence for the images it shows."""

from __future__ import annotations

from pathlib import Path

from amiss.evaluation import add_evidence
from amiss.outcome import Report
from amiss.report.gallery import pictured
from amiss.report.html import write_report
from amiss.runtime import Fitted


def write_page(detector: Fitted, report: Report, path: str | Path) -> Path:
    """Write the HTML page; nearest normal patches are looked up for the pictured images only."""
    add_evidence(detector, pictured(report))
    return write_report(report, path)
