"""CSV and JSONL tables of images: the columns path, label, mask, split, kind and roi."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from amiss.data.layouts import ANOMALOUS_WORDS, NORMAL_WORDS, Found
from amiss.errors import DataError
from amiss.types import ANOMALOUS, NORMAL, Record

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
COLUMNS = ("path", "label", "mask", "split", "kind", "roi")
LABELS = {
    **dict.fromkeys(sorted(NORMAL_WORDS | {"0", "no", "false"}), NORMAL),
    **dict.fromkeys(sorted(ANOMALOUS_WORDS | {"1", "true"}), ANOMALOUS),
}
SPLITS = ("train", "test")
_SHOWN = 5

Row = tuple[int, dict[str, str]]
"""(line number in the file, column -> text)"""


def read_table(table: Path) -> Found:
    """The records of a table. Paths are relative to the folder of the table.

    Labels are 0 or 1, or a word such as normal, good, ok, anomalous, defect, ko. Without a label
    column all images are normal. Without a split column, or where it is empty, `index` splits.

    Raises DataError that names the line for an unknown column, label or split, for a file that
    does not exist, and for an image that is listed twice.
    """
    rows = _jsonl_rows(table) if table.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows(table)
    found = Found("table", [])
    problems: list[str] = []
    lines: dict[Path, int] = {}
    columns: set[str] = set()
    outside = 0
    for line, row in rows:
        columns |= row.keys()
        _check_columns(table, line, row)
        try:
            record = _record(table.parent, row)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        first = lines.setdefault(record.path, line)
        if first != line:
            problems.append(f"line {line}: the image of line {first} again")
        outside += not record.path.is_relative_to(_absolute(table.parent))
        found.records.append(record)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{table}: {'; '.join(problems[:_SHOWN])}{more}.",
            hint="Paths are relative to the folder of the table.",
        )
    if not found.records:
        raise DataError(f"{table}: the table has no rows.")
    if "label" not in columns:
        found.notes.append("The table has no label column: all images are taken as normal.")
    if outside:
        found.notes.append(f"{outside} images lie outside the folder of the table.")
    return found


def _check_columns(table: Path, line: int, row: dict[str, str]) -> None:
    unknown = [name for name in row if name not in COLUMNS]
    if unknown or "path" not in row:
        came = f'unknown column "{unknown[0]}"' if unknown else "there is no column path"
        raise DataError(
            f"{table}, line {line}: {came}; allowed are {', '.join(COLUMNS)}.",
            hint="Only path must be there. The first line of a CSV names the columns.",
        )


def _record(folder: Path, row: dict[str, str]) -> Record:
    """Raises ValueError that says what is wrong with the row."""
    label = NORMAL
    if "label" in row:
        word = row["label"].lower()
        if word not in LABELS:
            raise ValueError(f'unknown label "{row["label"]}" (0, 1, normal, anomalous, good, ...)')
        label = LABELS[word]
    split = row.get("split", "").lower() or None
    if split is not None and split not in SPLITS:
        raise ValueError(f'unknown split "{row["split"]}" (train or test)')
    path = _file(folder, row, "path")
    if path is None:
        raise ValueError("path is empty")
    mask, roi = _file(folder, row, "mask"), _file(folder, row, "roi")
    return Record(path, label, mask, split, row.get("kind") or None, roi)


def _file(folder: Path, row: dict[str, str], column: str) -> Path | None:
    text = row.get(column, "")
    if not text:
        return None
    path = _absolute(folder / text)
    if not path.is_file():
        raise ValueError(f"{column} {text} does not exist")
    return path


def _absolute(path: Path) -> Path:
    # Not `resolve`: a link to an image keeps its own name.
    return Path(os.path.abspath(path))


def _csv_rows(table: Path) -> Iterator[Row]:
    """Comma, semicolon (as spreadsheets write it in Europe) or tab, told by the first line."""
    text = read_text(table)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        for row in rows:
            values = [value.strip() for value in row]
            if not any(values):
                continue
            if len(values) != len(names):
                raise DataError(
                    f"{table}, line {rows.line_num}: {len(values)} fields, and the first line "
                    f"names {len(names)} columns."
                )
            yield rows.line_num, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{table}, line {rows.line_num}: no CSV ({error}).") from error


def _jsonl_rows(table: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(table).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise DataError(f"{table}, line {number}: no JSON ({error}).") from error
        if not isinstance(row, dict):
            raise DataError(f"{table}, line {number}: is no JSON object.")
        yield number, {name: _text(table, number, row[name]) for name in row}


def _text(table: Path, line: int, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value).strip()
    raise DataError(f"{table}, line {line}: {value!r} is neither text nor 0 or 1.")


def read_text(table: Path) -> str:
    """A table's text. Raises DataError where it is no UTF-8 or cannot be read."""
    try:
        return table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: is no UTF-8 text.", hint="Save it as CSV UTF-8.") from error
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror}).") from error
