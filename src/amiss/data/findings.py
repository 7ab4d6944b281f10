"""`Finding` and `Findings`: what the data doctor hands over."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amiss.data.index import Dataset

Severity = Literal["error", "warning", "info"]
_SHOWN = 3  # findings of one code, and paths of one finding, in the text


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a person should know.

    "error": do not fit or trust an evaluation before this is mended. "warning": look at it.
    "info": good to know. `code` is stable, for programs; `paths` are the files concerned.
    """

    severity: Severity
    code: str
    message: str
    paths: tuple[Path, ...] = ()
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The finding of plain Python types."""
        return {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "paths": [str(path) for path in self.paths],
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True)
class Findings:
    """What `check` found, errors first. `smallest_false_alarm` is the least rate that the normal
    training images can support, 1 / (n + 1)."""

    dataset: Dataset
    findings: tuple[Finding, ...]
    smallest_false_alarm: float

    @property
    def ok(self) -> bool:
        """No error: a fit is advisable."""
        return not any(f.severity == "error" for f in self.findings)

    @property
    def exit_status(self) -> int:
        """0 when a fit is advisable, else 1."""
        return 0 if self.ok else 1

    def as_dict(self) -> dict[str, Any]:
        """Everything, of plain Python types, for JSON."""
        return {
            "ok": self.ok,
            "name": self.dataset.name,
            "layout": self.dataset.layout,
            "root": None if self.dataset.root is None else str(self.dataset.root),
            "counts": self.dataset.counts(),
            "notes": list(self.dataset.notes),
            "smallest_false_alarm": self.smallest_false_alarm,
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def describe(self) -> str:
        """The set and the findings, for a person. Many findings of one code are cut short."""
        lines = [self.dataset.describe(), ""]
        by_code: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            by_code[finding.severity, finding.code].append(finding)
        for (severity, code), some in by_code.items():
            for finding in some[:_SHOWN]:
                lines.append(f"{severity:<8}{finding.message}")
                lines += [f"          {self._short(path)}" for path in finding.paths[:_SHOWN]]
                if len(finding.paths) > _SHOWN:
                    lines.append(f"          and {len(finding.paths) - _SHOWN} more")
            if len(some) > _SHOWN:
                lines.append(f"{severity:<8}and {len(some) - _SHOWN} more of the kind {code}.")
            if some[0].hint:
                lines.append(f"        → {some[0].hint}")
        counts = Counter(finding.severity for finding in self.findings)
        tally = f"{number(counts['error'], 'error')}, {number(counts['warning'], 'warning')}"
        advice = "Ready to fit" if self.ok else "Mend the errors before a fit"
        return "\n".join([*lines, f"{advice}: {tally}."])

    def _short(self, path: Path) -> str:
        root = self.dataset.root
        inside = root is not None and path.is_relative_to(root)
        return str(path.relative_to(root) if inside and root is not None else path)


def about(
    paths: Sequence[Path],
    kind: tuple[Severity, str],
    message: str,
    hint: str,
    noun: str = "image",
) -> list[Finding]:
    """One finding on files, none when there are no files. `kind` is (severity, code); "{}" in the
    message becomes the number of files and what they are."""
    paths = tuple(dict.fromkeys(paths))
    if not paths:
        return []
    return [Finding(*kind, message.format(number(len(paths), noun)), paths, hint)]


def number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
