"""`Run`: how a job runs. Passed in, never global."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from amiss.errors import OptionError

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); `total` is the same for all calls of one stage."""


DEVICES = ("cpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

Say = Callable[[str], None]
"""Called with a sentence for the user, such as the memory that a job will take."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress that shows nothing."""


def mute(sentence: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, slots=True)
class Run:
    """Seed and limits of one job.

    `max_memory_mib` bounds the resident memory of the process; None means no bound.
    `partial` is where interrupted work is kept for the next call to pick up; None keeps nothing.
    `device` ("cpu", "cuda", "mps") and `precision` ("32-true", "bf16-mixed", "16-mixed") are those
    of methods that train; `log` is a folder for their losses, for TensorBoard.
    """

    seed: int = 0
    batch_size: int = 8
    max_memory_mib: int | None = None
    partial: Path | None = None
    device: str = "cpu"
    precision: str = "32-true"
    log: Path | None = None
    progress: Progress = silent
    say: Say = mute

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 32:
            raise OptionError(f"seed={self.seed} is not a seed.", hint="Use 0 to 4294967295.")
        for name, value, allowed in (
            ("device", self.device, DEVICES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in allowed:
                raise OptionError(
                    f"{name}={value!r} is not known.", hint=f"Choose from {', '.join(allowed)}."
                )
        if self.batch_size < 1:
            raise OptionError(
                f"batch_size={self.batch_size} holds no image.", hint="Use 1 or more."
            )

    def stage(self, name: str) -> Run:
        """The same job with a file of its own for the interrupted work of one of its stages."""
        if self.partial is None:
            return self
        return replace(self, partial=self.partial.with_name(f"{self.partial.name}-{name}"))


def warn(run: Run, sentence: str, category: type[Warning]) -> None:
    """Say something that must be heard: from Python, where nobody listens to `say`, as a Python
    warning."""
    if run.say is mute:
        warnings.warn(sentence, category, stacklevel=4)
    run.say(sentence)


def peak_mib() -> float:
    """The largest resident size of the process so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
