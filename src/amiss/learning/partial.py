"""`Partial`: what an interrupted fit has done, kept for the next call with the same arguments."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from amiss.storage import write_tensors
from amiss.types import Record


class Partial:
    """One file beside the output. Without a path it keeps nothing.

    `fingerprint` names the job: options, seed, and the files with their sizes and times. A file
    left by another job is of no use: `say` is told so, and the next interruption writes over it.
    """

    def __init__(
        self, path: Path | None, options: dict[str, Any], records: list[Record],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.path, self._say = path, say
        self.options = json.dumps(options, sort_keys=True)
        self.fingerprint = _fingerprint(self.options, records) if path is not None else ""

    def load(self) -> dict[str, Tensor]:
        """What the same job left behind; empty when there is nothing."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("job") != self.fingerprint:
                    self._say(
                        f"{self.path} was left by a fit with other {self._others(metadata)}, so "
                        "this one begins at the start and will write over it"
                    )
                    return {}
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):  # cut short: as good as nothing
            return {}

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Keep these, complete or not at all."""
        if self.path is not None:
            metadata = {"job": self.fingerprint, "options": self.options}
            write_tensors(self.path, tensors, metadata)

    def _others(self, metadata: dict[str, str]) -> str:
        """What a file of another job has otherwise: options by name, or images."""
        theirs, mine = json.loads(metadata.get("options", "{}")), json.loads(self.options)
        names = [k for k in sorted(theirs | mine) if theirs.get(k) != mine.get(k)]
        return ", ".join(names) or "images"


def left_by(path: Path) -> list[Path]:
    """The files of interrupted work under a path: its own and those of its stages."""
    stages = sorted(path.parent.glob(f"{glob.escape(path.name)}-*"))
    return [file for file in (path, *stages) if file.is_file()]


def remove_left(path: Path) -> None:
    """Remove the files of interrupted work under a path: the job is done."""
    for file in left_by(path):
        file.unlink(missing_ok=True)


def _fingerprint(options: str, records: list[Record]) -> str:
    sha = hashlib.sha256(options.encode())
    for record in records:
        # An image in an array of many has the size and time of that file.
        stat = (record.path if record.path.is_file() else record.path.parent).stat()
        line = [str(record.path), record.crop, str(record.roi), stat.st_size, stat.st_mtime_ns]
        sha.update(json.dumps(line).encode())
    return sha.hexdigest()
