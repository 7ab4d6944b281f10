"""What the command line prints: results on stdout, progress and everything said on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amiss.errors import AmissError, OptionError
from amiss.run import Progress, silent

_UNITS = {"": 1 / (1 << 20), "B": 1 / (1 << 20), "K": 1 / 1024, "M": 1, "G": 1024, "T": 1 << 20}


def say(sentence: str) -> None:
    """A line for a person, on stderr."""
    print(sentence, file=sys.stderr, flush=True)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout; numbers that JSON does not know become null."""
    print(plain_text(json.dumps(_plain(value), indent=2, ensure_ascii=False)))


def plain_text(text: str) -> str:
    """What stdout takes in any case: bytes of a file's name that are no text become \\udcXX, which
    is also how JSON writes them."""
    return text.encode(errors="backslashreplace").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def print_error(error: AmissError, *, as_json: bool, flags: Collection[str] = ()) -> None:
    """A named error: to a person in two lines, to a program as one object. Options that the command
    line has, `flags`, are named to a person as they are typed there."""
    if as_json:
        print_json({"error": type(error).__name__, "message": error.message, "hint": error.hint})
        return
    say(f"{type(error).__name__}: {as_typed(error.message, flags)}")
    if error.hint:
        say(f"  {as_typed(error.hint, flags)}")


def as_typed(text: str, flags: Collection[str]) -> str:
    """ "max_memory='2x'" -> "--max-memory '2x'", for names of several words among `flags`."""

    def flag(found: re.Match[str]) -> str:
        if found[1] not in flags:
            return found[0]
        return "--" + found[1].replace("_", "-") + (" " if found[2] else "")

    return re.sub(r"(?<![\w./-])([a-z]+(?:_[a-z]+)+)(?![\w(/]|\.\w)(=)?", flag, text)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A bar with the time left on a terminal, one line per finished stage elsewhere."""
    if quiet:
        yield silent
        return
    if not sys.stderr.isatty():
        yield _line_per_stage
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    tasks: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield show


def _line_per_stage(stage: str, done: int, total: int) -> None:
    if done == total:
        say(f"{stage}: {total} done")


@contextmanager
def kept_work(partial: Path) -> Iterator[None]:
    """Say after Ctrl-C where the work so far is kept; removes it after a good end."""
    from amiss.learning.partial import left_by, remove_left

    try:
        yield
    except KeyboardInterrupt:
        left = " and ".join(str(path) for path in left_by(partial))
        if left:
            say(f"The work so far is in {left}; the same command goes on from there.")
        raise
    remove_left(partial)


def rates(calibration: Any) -> str:
    """In brackets, where this one detector's own rate should lie."""
    span = calibration.expected_rates()
    return "" if span is None else f" (its own rate: probably {span[0]:.2%} to {span[1]:.2%})"


def require_writable(path: Path) -> None:
    """Raise OptionError, before any work, where a file could not be written to `path`."""
    if path.is_dir():
        raise OptionError(f"{path} is a folder.", hint="Name a file in it.")
    if not path.parent.is_dir():
        raise OptionError(f"There is no folder {path.parent} to write to.", hint="Make it first.")
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"The folder {path.parent} cannot be written to.")


def parse_memory(text: str | None) -> int | None:
    """ "2GiB", "1500MB", "800M" -> MiB. Decimal and binary units are read alike, as binary."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    mib = float(found[1]) * _UNITS[found[2].upper()] if found else 0
    if mib < 1:
        raise OptionError(f"max_memory={text!r} is not an amount.", hint="For example 2GiB.")
    return int(mib)


def parse_size(text: str) -> tuple[int, int]:
    """ "256" -> (256, 256); "256x320" -> (256, 320), height first."""
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if found is None:
        raise OptionError(f"{text!r} is not a size.", hint="For example 256, or 256x320 (H x W).")
    return int(found[1]), int(found[2] or found[1])
