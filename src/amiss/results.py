"""What `amiss predict` leaves behind: lines, a table, JSON lines, heat maps, a summary."""

from __future__ import annotations

import csv as csv_module
import io
import json
import math
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from amiss.console import plain_text, require_writable, say
from amiss.data.images import read_image, write_bytes_atomic, write_png
from amiss.errors import DataError, ImageError, OptionError
from amiss.report.overlay import overlay
from amiss.runtime import Runtime
from amiss.types import ImageResult, Record

_COLUMNS = (
    "time", "path", "score", "p_value", "is_anomalous", "regions", "threshold", "heat_map",
    "error",
)  # fmt: skip
_LAST = 100  # messages that an endless run keeps
_REPORT_EVERY_S = 600.0


class Latencies:
    """Milliseconds in a histogram of fixed size, whose bins grow by 2 %: percentiles of any number
    of them to within 1 %. What lies outside 0.01 ms to 10,000 s counts in the first or last bin.
    """

    _LOWEST, _GROWTH, _BINS = 0.01, math.log(1.02), 1048

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._least, self._most = math.inf, 0.0

    def add(self, milliseconds: float) -> None:
        """Count one."""
        place = math.log(max(milliseconds, self._LOWEST) / self._LOWEST) / self._GROWTH
        self._counts[min(int(place), self._BINS - 1)] += 1
        self._least = min(self._least, milliseconds)
        self._most = max(self._most, milliseconds)

    def percentile(self, share: float) -> float:
        """The least value that is not exceeded by `share`, in (0, 1], of all; nan without any."""
        wanted, seen = math.ceil(share * self._counts.total()), 0
        for place in sorted(self._counts):
            seen += self._counts[place]
            if seen >= wanted:
                middle = self._LOWEST * math.exp((place + 0.5) * self._GROWTH)
                return min(max(middle, self._least), self._most)
        return math.nan

    def as_dict(self) -> dict[str, float]:
        """p50, p95 and p99 in ms; empty without any."""
        if not self._counts:
            return {}
        return {f"p{p}": round(self.percentile(p / 100), 2) for p in (50, 95, 99)}


class LineFile:
    """A text file that grows by whole lines, each on the disk before the next image is judged.

    Lines are added to what the file holds; a line that a power cut tore apart is ended first.
    `header` is the first line of a new file.

    Raises:
        OptionError: it cannot be written to, or begins with another header.
        DataError: from `write`, when the disk is full or gone.
    """

    def __init__(self, path: Path, *, header: str = "") -> None:
        self.path = path
        try:
            # Without a buffer: what was written cannot be written a second time by closing it.
            self._file = path.open("ab", buffering=0)
            regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
            begins, ends = _first_line_and_last_byte(path) if regular else ("", b"")
        except OSError as error:
            raise OptionError(
                f"{path} cannot be written to: {error.strerror}.", hint="Name another file."
            ) from error
        self._on_disk = regular
        if header and ends and begins != header.strip():
            self.close()
            raise OptionError(
                f"{path} holds another table: it begins with {begins[:80]!r}.",
                hint=f"Name a new file, or one that begins with {header.strip()!r}.",
            )
        if ends not in (b"", b"\n"):
            self.write("\n")
        if header and not ends:
            self.write(header)

    def write(self, line: str) -> None:
        """Add a line, which ends in a newline."""
        # Names that are no Unicode become \\udcXX, which is also how JSON writes them.
        data = line.encode(errors="backslashreplace")
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
            if self._on_disk:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}).",
                hint="Is there room, and is the disk still there?",
            ) from error

    def close(self) -> None:
        """End with what was written."""
        self._file.close()


def _first_line_and_last_byte(path: Path) -> tuple[str, bytes]:
    """Of a file; ("", b"") of an empty one."""
    with path.open("rb") as file:
        first = file.readline(1 << 16).decode(errors="replace").strip()
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return first, file.read(1)


class Results:
    """Collects results and writes them where asked.

    With `endless` nothing grows with the number of images: tables are added to line by line, only
    counts and the last messages are kept, and how it stands is said every ten minutes. Without it
    all rows are kept, and tables appear complete, at the end.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        heatmaps: Path | None,
        jsonl: Path | None,
        csv: Path | None,
        quiet: bool,
        endless: bool = False,
    ) -> None:
        for path in (jsonl, csv):
            if path is not None:
                require_writable(path)
        calibration = runtime.calibration
        if heatmaps is not None and calibration is None:
            raise OptionError(
                "This detector has no calibration, and so no scale for heat maps.",
                hint="Calibrate it with `amiss calibrate FILE --normals FOLDER`.",
            )
        if heatmaps is not None and calibration is not None and calibration.display is None:
            raise OptionError(
                "This detector makes no maps: it scores whole images.", hint="Leave heatmaps out."
            )
        if heatmaps is not None:
            _make_folder(heatmaps)
        self.runtime, self.heatmaps, self.jsonl, self.csv = runtime, heatmaps, jsonl, csv
        self.quiet, self.endless = quiet, endless
        self.judged = self.anomalous = self.skipped = 0
        self.rows: list[dict[str, Any]] = []
        self.left_out: deque[dict[str, str]] = deque(maxlen=_LAST if endless else None)
        self.notes: deque[str] = deque(maxlen=_LAST)
        self.latencies = Latencies()
        self._heat_map_names: set[str] = set()
        self._lines: list[tuple[LineFile, Callable[[dict[str, Any]], str]]] = []
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self.endless and self.jsonl is not None:
            self._lines.append((LineFile(self.jsonl), _json_line))
        if self.endless and self.csv is not None:
            self._lines.append((LineFile(self.csv, header=_csv_line(_COLUMNS)), _csv_row))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file, _ in self._lines:
            file.close()
        if kind is not None or self.endless:
            return
        if self.jsonl is not None:
            _write_whole(self.jsonl, map(_json_line, self.rows))
        if self.csv is not None:
            _write_whole(self.csv, [_csv_line(_COLUMNS), *map(_csv_row, self.rows)])

    def add(self, found: ImageResult, milliseconds: float) -> None:
        """Take one result in: a line on stdout and in each table, its heat map in a file.

        Raises:
            DataError: a file cannot be written.
        """
        self.latencies.add(milliseconds)
        self.judged += 1
        self.anomalous += bool(found.is_anomalous)
        row = {"time": _now(), **found.as_dict(), "threshold": self._threshold(),
               "heat_map": None, "error": None}  # fmt: skip
        try:
            if self.heatmaps is not None:
                row["heat_map"] = self._write_heat_map(self.heatmaps, found)
        finally:  # a decision is on the disk also where its picture could not be written
            self._write_row(row)
        if not self.quiet:
            print(_line(found), flush=True)
        self._report_now_and_then()

    def skip(self, record: Record, error: ImageError) -> None:
        """An image that could not be read: named, here and in the tables, and without a score."""
        self.skipped += 1
        self.left_out.append({"path": str(record.path), "message": error.message})
        unjudged = ImageResult(record.path, math.nan, None, None).as_dict()
        self._write_row(
            {"time": _now(), **unjudged, "score": None, "threshold": self._threshold(),
             "heat_map": None, "error": error.message}
        )  # fmt: skip
        if not self.quiet:
            say(f"skipped: {error.message}")

    def _write_row(self, row: dict[str, Any]) -> None:
        if not self.endless:
            self.rows.append(row)
        for file, line in self._lines:
            file.write(line(row))

    def _threshold(self) -> float | None:
        calibration = self.runtime.calibration
        return None if calibration is None else calibration.threshold

    def _report_now_and_then(self) -> None:
        now = time.monotonic()
        if self.endless and not self.quiet and now - self._said >= _REPORT_EVERY_S:
            self._said = now
            say(f"so far: {self.summary()}")

    def _write_heat_map(self, folder: Path, found: ImageResult) -> str | None:
        """The name of the file in `folder`, or None where there could be none."""
        calibration = self.runtime.calibration
        assert found.anomaly_map is not None and found.path is not None
        assert calibration is not None and calibration.display is not None
        low, high = calibration.display
        try:
            image = read_image(found.path, window=self.runtime.window)
        except ImageError as error:
            self._note(f"no heat map: {error.message}")
            return None
        if image.shape[:2] != found.anomaly_map.shape:
            self._note(f"no heat map: {found.path} has another size than when it was judged.")
            return None
        picture = overlay(image, found.anomaly_map, low, high, found.regions)
        name = self._free_name(folder, found.path)
        write_png(picture, folder / name)
        return name

    def _note(self, sentence: str) -> None:
        """The image was judged, and then it was moved away or written again."""
        self.notes.append(sentence)
        if not self.quiet:
            say(sentence)

    def _free_name(self, folder: Path, path: Path) -> str:
        """STEM.heat.png, or with a number that no image has: of this run, or in an endless one, of
        all that the folder holds."""
        if self.endless:
            return numbered_name(path.stem, lambda name: (folder / name).exists())
        name = numbered_name(path.stem, self._heat_map_names.__contains__)
        self._heat_map_names.add(name)
        return name

    def as_dict(self) -> dict[str, Any]:
        """Everything, for --json; of an endless run no results, and the last ones skipped."""
        return {
            **({} if self.endless else {"results": [r for r in self.rows if not r["error"]]}),
            "skipped": list(self.left_out),
            "n_images": self.judged,
            "n_anomalous": self.anomalous,
            "n_skipped": self.skipped,
            "threshold": self._threshold(),
            "latency_ms": self.latencies.as_dict(),
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """One sentence."""
        latency = ", ".join(f"{k} {v:.1f} ms" for k, v in self.latencies.as_dict().items())
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.judged} images, {self.anomalous} anomalous{skipped}" + (
            f" ({latency})" if latency else ""
        )


def numbered_name(stem: str, taken: Callable[[str], bool]) -> str:
    """STEM.heat.png, else STEM.2.heat.png and so on: one that is not taken.

    Asks about twice the logarithm of the names in use, since one camera may write the same name a
    million times.
    """

    def name(number: int) -> str:
        return f"{stem}.heat.png" if number == 1 else f"{stem}.{number}.heat.png"

    if not taken(name(1)):
        return name(1)
    low, high = 1, 2  # low is taken
    while taken(name(high)):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(name(middle)) else (low, middle)
    return name(high)


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _csv_row(row: dict[str, Any]) -> str:
    regions = len(row["regions"]) if row["error"] is None else None
    return _csv_line([regions if c == "regions" else row[c] for c in _COLUMNS])


def _now() -> str:
    """The time of day in UTC, to the millisecond, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _csv_line(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv_module.writer(text).writerow(cells)
    return text.getvalue()


def _write_whole(path: Path, lines: Any) -> None:
    write_bytes_atomic(path, "".join(lines).encode(errors="backslashreplace"))


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
    count = len(found.regions)
    regions = f"  {count} region{'s' * (count > 1)}" if count else ""
    return plain_text(f"{verdict:<10}score {found.score:<9.4g}{p}  {found.path}{regions}")
