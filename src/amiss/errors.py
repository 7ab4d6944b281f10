"""Everything amiss raises on purpose, in one tree.

    AmissError
    ├── DataError                a folder, list or table of images that cannot be used
    │   ├── ImageError           one image or mask file that cannot be read
    │   └── LeakageError         images meant for judging were seen by the model or its threshold
    ├── OptionError              an option, or a combination of them, outside what is allowed
    ├── WeightsError             backbone weights are missing, altered or do not fit
    ├── MemoryLimitError         the job does not fit the memory that was granted
    ├── TrainingError            a training went astray: its losses are not finite
    ├── NotFittedError           a detector was used before `fit`
    ├── CalibrationError         a threshold cannot be stated from the scores at hand
    ├── MetricError              a metric is undefined on this input
    ├── ArtifactError            a saved detector is damaged, foreign or too new
    ├── ExportError              an export is not possible, or failed the parity check
    └── MissingDependencyError   an optional part is not installed; says which extra brings it

A message says what came and what is allowed; `hint` says what to do next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CalibrationWarning(UserWarning):
    """There are too few normal images for the false-alarm rate that was asked for."""


class TrainingWarning(UserWarning):
    """A training ended, and its result is not to be relied on."""


class AmissError(Exception):
    """Base of the tree. `hint` is one sentence a person can act on, or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class DataError(AmissError):
    """A folder, list or table of images that cannot be used."""


class ImageError(DataError):
    """One image or mask file that cannot be read. `reason` is a word to sort by: missing, empty,
    unreadable, not-an-image, truncated, damaged, animated, too-large; or empty."""

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class LeakageError(DataError):
    """Images meant for judging were seen by the model or its threshold."""


class OptionError(AmissError):
    """An option, or a combination of them, outside what is allowed."""


class WeightsError(AmissError):
    """Backbone weights are missing, altered or do not fit."""


class MemoryLimitError(AmissError):
    """The job does not fit the memory that was granted."""


class TrainingError(AmissError):
    """A training went astray: its losses are not finite."""


class NotFittedError(AmissError):
    """A detector was used before `fit`."""


class CalibrationError(AmissError):
    """A threshold cannot be stated from the scores at hand."""


class MetricError(AmissError):
    """A metric is undefined on this input."""


class ArtifactError(AmissError):
    """A saved detector is damaged, foreign or too new."""


class ExportError(AmissError):
    """A detector cannot be exported, or its export failed the parity check."""


class MissingDependencyError(AmissError):
    """An optional part is not installed; says which extra brings it."""


@contextmanager
def naming_extra(what: str, extra: str) -> Iterator[None]:
    """Within `with`, a package that is not there is a MissingDependencyError: `what` needs it, and
    `extra` of amiss brings it. A missing part of amiss itself stays what it is."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "amiss":
            raise
        raise MissingDependencyError(
            f"{what} needs {error.name}, which is not installed.",
            hint=f"pip install 'amiss[{extra}]'",
        ) from error
