"""What the benchmarks share: facts on the machine, and processes of their own to measure in.

Imports nothing but the standard library, since the peer's Python loads it as well and a process
that starts others must stay small: a child may inherit its parent's peak of memory.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def describe(threads: int) -> dict[str, Any]:
    """The machine before a run, without anything that names its owner or its folders."""
    return {
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "memory_mib": memory_mib(),
        "system": platform.system(),
        "load_average": load_average(),
    }


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_mib() -> int:
    """The memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def load_average() -> list[float]:
    """Processes that wanted a core, over the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def thread_environment(threads: int) -> dict[str, str]:
    """The variables that bound every numeric library to `threads`; torch reads them on import.

    amiss lets waiting threads sleep early, which costs nothing on a quiet machine and saves much
    on a busy one. Everyone gets the same here, or a benchmark would measure the neighbours.
    """
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | {"GOMP_SPINCOUNT": "10000"}


def use_cores(threads: int) -> None:
    """Bind this process to `threads` cores, so that decoding threads and loader processes are
    bounded as well, and not only the numeric libraries."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(allowed[:threads]))


def child(python: str, script: str, task: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run `script --task FILE` in a fresh process and return what it answered.

    The task and the answer are JSON files, so that nothing which a library prints gets between.
    `started` tells the child when it was asked, on the clock of `time.time`.
    """
    environment = os.environ | thread_environment(threads)
    # No network, no progress bars that are redrawn while something is timed.
    environment |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "task.json"), Path(folder, "answer.json")
        asked = {"threads": threads, "answer": str(answer), "started": time.time()}
        question.write_text(json.dumps(task | asked))
        done = subprocess.run(
            [python, script, "--task", str(question)], env=environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode or not answer.exists():
            tail = "\n".join(done.stdout.splitlines()[-40:])
            raise SystemExit(f"The part {task.get('part', script)} failed:\n{tail}")
        found: dict[str, Any] = json.loads(answer.read_text())
    return found


def read_task(argv: Sequence[str]) -> dict[str, Any] | None:
    """The task of a child process, with its cores bound; None in the parent."""
    if len(argv) != 3 or argv[1] != "--task":
        return None
    task: dict[str, Any] = json.loads(Path(argv[2]).read_text())
    use_cores(task["threads"])
    return task


def answer(task: dict[str, Any], found: dict[str, Any]) -> None:
    """What a child leaves for its parent."""
    Path(task["answer"]).write_text(json.dumps(found))


def write_json(path: Path, report: dict[str, Any]) -> None:
    """A report for people and programs, its folder made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
