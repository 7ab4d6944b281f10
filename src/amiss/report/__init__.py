"""The report: one self-contained page. The heat maps beside it are in `amiss.report.overlay`.

Lazy, so that a prediction that only wants a heat map does not load the template engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amiss.report.html import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from amiss.report.html import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
