"""Running `amiss` inside the test's process."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amiss.cli import main

TINY_FLAGS = [
    "--backbone", "test_efficientnet", "--weights", "random", "--image-size", "48x64",
    "--layers", "4,8", "--coreset-ratio", "0.1", "--folds", "4",
]  # fmt: skip
"""Flags of a `fit patchcore` that takes a fraction of a second."""


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout; anything else there is an error."""
        found: dict[str, Any] = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def amiss(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """`amiss ARGUMENTS`. An exception that escapes would be a traceback, and fails the test."""
    capsys.readouterr()
    hook = sys.excepthook
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.excepthook = hook
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return Outcome(status, out, err)


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, with the content of the files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }
