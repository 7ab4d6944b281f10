"""How much memory a bank of patch embeddings will take, said before any of it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amiss.errors import MemoryLimitError
from amiss.run import peak_mib

_MIB = 1 << 20
_SEARCH_MIB = 96  # blocks and pool of the greedy search, decoded images under way, slack
_CHUNK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The predicted peak of the process and how the embeddings will be held.

    `chunk_rows` is None when all embeddings are held at once; otherwise they stream through chunks
    of that many rows, of which the share `keep` stays.
    """

    need_mib: int
    limit_mib: int | None
    chunk_rows: int | None
    keep: float

    def describe(self) -> str:
        """One sentence for the user."""
        limit = "no limit set" if self.limit_mib is None else f"limit {self.limit_mib} MiB"
        how = (
            "all patch embeddings at once"
            if self.chunk_rows is None
            else f"embeddings in chunks of {self.chunk_rows}, {self.keep:.1%} of each kept"
        )
        return f"memory: about {self.need_mib} MiB at the peak ({limit}), {how}"


def plan_memory(rows: int, dim: int, size: int, *, limit_mib: int | None) -> MemoryPlan:
    """Decide how to hold `rows` embeddings of `dim` float32 for a coreset of `size`.

    Without a limit, nine tenths of what the machine has free are taken as one.

    Raises:
        MemoryLimitError: not even the stream fits; names the options that help.
    """
    used = resident_mib()
    ceiling = ceiling_mib(limit_mib)
    per_row = (4 * dim + 72) / _MIB  # the row, its bound, stamp, two nearest picks, sorting
    bank = size * 12 * dim / _MIB  # centres during the search, the chosen rows, the bank
    need = used + _SEARCH_MIB + rows * per_row + bank
    if ceiling is None or need <= ceiling:
        return MemoryPlan(round(need), limit_mib, None, 1.0)
    chunk = min(_CHUNK_ROWS, rows)
    room = ceiling - used - _SEARCH_MIB - chunk * per_row - bank
    capacity = int(room / (2 * per_row))  # kept rows are held twice while they are put together
    wanted = min(rows, 4 * size)
    if capacity < min(rows, 1.5 * size):
        least = round(used + _SEARCH_MIB + chunk * per_row + bank + 3 * size * per_row) + 1
        raise MemoryLimitError(
            f"A coreset of {size} of {rows} embeddings does not fit {round(ceiling)} MiB; "
            f"it takes about {least} MiB.",
            hint="Lower coreset_ratio or image_size, or raise max_memory.",
        )
    kept = min(wanted, capacity)
    need = used + _SEARCH_MIB + chunk * per_row + bank + 2 * kept * per_row
    return MemoryPlan(round(need), limit_mib, chunk, kept / rows)


def resident_mib() -> float:
    """What the process holds now; its peak so far where the system does not say."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        import resource

        return int(statm.read_text().split()[1]) * resource.getpagesize() / _MIB
    return peak_mib()


def ceiling_mib(limit_mib: int | None) -> float | None:
    """The limit, or without one nine tenths of what the machine has free; None where neither is
    known."""
    return limit_mib if limit_mib is not None else _free_mib(resident_mib())


def _free_mib(used: float) -> float | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return used + 0.9 * int(line.split()[1]) / 1024
    return None
