"""What `amiss predict` leaves behind: lines, a table, JSON lines, heat maps."""

from __future__ import annotations

import csv as csv_module
import io
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from amiss.console import require_writable, say
from amiss.data.images import read_image, write_bytes_atomic, write_png
from amiss.errors import ImageError, OptionError
from amiss.report.overlay import overlay
from amiss.runtime import Runtime
from amiss.types import ImageResult, Record

_COLUMNS = ("path", "score", "p_value", "is_anomalous", "regions")


class Results:
    """Collects results and writes them where asked; tables appear complete, at the end."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        heatmaps: Path | None,
        jsonl: Path | None,
        csv: Path | None,
        quiet: bool,
    ) -> None:
        for path in (jsonl, csv):
            if path is not None:
                require_writable(path)
        calibration = runtime.calibration
        if heatmaps is not None and (calibration is None or calibration.display is None):
            raise OptionError("This detector makes no maps, or has no calibration to scale them.")
        if heatmaps is not None:
            _make_folder(heatmaps)
        self.runtime, self.heatmaps, self.jsonl, self.csv = runtime, heatmaps, jsonl, csv
        self.quiet = quiet
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self.anomalous = 0
        self.milliseconds: list[float] = []

    def __enter__(self) -> Self:
        self.last = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        if self.jsonl is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
            write_bytes_atomic(self.jsonl, lines.encode())
        if self.csv is not None:
            text = io.StringIO()
            table = csv_module.writer(text)
            table.writerow(_COLUMNS)
            for row in self.rows:
                table.writerow([*(row[c] for c in _COLUMNS[:-1]), len(row["regions"])])
            write_bytes_atomic(self.csv, text.getvalue().encode())

    def add(self, found: ImageResult) -> None:
        """Take one result in: a line on stdout, its heat map in a file."""
        now = time.perf_counter()
        self.milliseconds.append((now - self.last) * 1000)
        self.rows.append(found.as_dict())
        self.anomalous += bool(found.is_anomalous)
        if not self.quiet:
            print(_line(found), flush=True)
        if self.heatmaps is not None:
            self._write_heat_map(self.heatmaps, found)
        self.last = time.perf_counter()

    def skip(self, record: Record, error: ImageError) -> None:
        """An image that could not be read: named, and left out."""
        self.skipped.append({"path": str(record.path), "message": error.message})
        if not self.quiet:
            say(f"skipped: {error.message}")

    def _write_heat_map(self, folder: Path, found: ImageResult) -> None:
        calibration = self.runtime.calibration
        assert found.anomaly_map is not None and found.path is not None
        assert calibration is not None and calibration.display is not None
        low, high = calibration.display
        image = read_image(found.path, window=self.runtime.window)
        picture = overlay(image, found.anomaly_map, low, high, found.regions)
        write_png(picture, folder / self._free_name(found.path))

    def _free_name(self, path: Path) -> str:
        """STEM.heat.png; images of one name from several folders get a number."""
        same = sum(Path(str(row["path"])).stem == path.stem for row in self.rows)
        return f"{path.stem}.heat.png" if same <= 1 else f"{path.stem}.{same}.heat.png"

    def as_dict(self) -> dict[str, Any]:
        """Everything, for --json."""
        calibration = self.runtime.calibration
        return {
            "results": self.rows,
            "skipped": self.skipped,
            "n_anomalous": self.anomalous,
            "threshold": None if calibration is None else calibration.threshold,
            "latency_ms": self._latency(),
        }

    def _latency(self) -> dict[str, float]:
        if not self.milliseconds:
            return {}
        p50, p95, p99 = np.percentile(self.milliseconds, [50, 95, 99])
        return {"p50": round(p50, 2), "p95": round(p95, 2), "p99": round(p99, 2)}

    def summary(self) -> str:
        """One sentence."""
        latency = ", ".join(f"{k} {v:.1f} ms" for k, v in self._latency().items())
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"{len(self.rows)} images, {self.anomalous} anomalous{skipped} ({latency})"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"Heat maps cannot be written to {folder}: {error.strerror}.", hint="Name a folder."
        ) from error


def _line(found: ImageResult) -> str:
    verdict = {True: "ANOMALOUS", False: "normal", None: "-"}[found.is_anomalous]
    p = "" if found.p_value is None else f"  p {found.p_value:.4f}"
    regions = f"  {len(found.regions)} regions" if found.regions else ""
    return f"{verdict:<10}score {found.score:<9.4g}{p}  {found.path}{regions}"
