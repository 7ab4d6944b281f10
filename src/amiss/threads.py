"""How many threads compute, and how they wait for each other."""

from __future__ import annotations

import os
import sys

from amiss.errors import OptionError


def spin_briefly() -> None:
    """Let OpenMP threads give up waiting after a few microseconds instead of milliseconds.

    A spinning thread wears out its share of a core that another program also wants, and every
    parallel operation then waits for it: next to one busy program a coreset took 12 s instead of
    0.7 s. With short spins it takes 2 s, and 0.75 s on a quiet machine. Has an effect only before
    torch is loaded; a value that the user has set stays.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def set_threads(count: int | None) -> None:
    """Compute on `count` threads; None leaves the libraries' choice, one per core. Whichever engine
    computes is not loaded for this: torch reads the variable when it is."""
    if count is None:
        return
    if count < 1:
        raise OptionError(f"threads={count} computes nothing.", hint="Use 1 or more.")
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def thread_count() -> int:
    """How many threads to compute on: what was set, or the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
