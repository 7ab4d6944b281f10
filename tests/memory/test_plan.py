"""The memory that a bank will take is said before it is taken, and a limit is kept."""

from __future__ import annotations

import pytest

from amiss.errors import MemoryLimitError
from amiss.memory import plan
from amiss.memory.plan import plan_memory, resident_mib
from amiss.run import peak_mib


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of 400 MiB on a machine where 10 GiB can be had."""
    monkeypatch.setattr(plan, "resident_mib", lambda: 400.0)
    monkeypatch.setattr(plan, "_free_mib", lambda used: 10_240.0)


def test_a_small_job_holds_everything() -> None:
    found = plan_memory(10_000, 152, 100, limit_mib=None)
    assert found.chunk_rows is None
    assert found.need_mib >= 400 + 10_000 * 152 * 4 / 2**20
    assert "all patch embeddings at once" in found.describe()
    assert "no limit" in found.describe()


def test_a_job_beyond_the_limit_is_streamed_within_it() -> None:
    found = plan_memory(5_000 * 1024, 152, 51_200, limit_mib=2048)
    assert found.chunk_rows is not None and 0 < found.keep <= 1
    assert found.need_mib <= 2048
    assert found.keep * 5_000 * 1024 >= 1.5 * 51_200
    assert "2048 MiB" in found.describe() and "chunks" in found.describe()


def test_without_a_limit_the_free_memory_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_free_mib", lambda used: 1500.0)
    assert plan_memory(5_000 * 1024, 152, 51_200, limit_mib=None).chunk_rows is not None
    monkeypatch.setattr(plan, "_free_mib", lambda used: None)  # a system that does not say
    assert plan_memory(5_000 * 1024, 152, 51_200, limit_mib=None).chunk_rows is None


def test_what_fits_in_no_way_names_the_least_that_would() -> None:
    with pytest.raises(MemoryLimitError, match=r"takes about (\d+) MiB") as caught:
        plan_memory(1_000_000, 1024, 100_000, limit_mib=1000)
    assert "coreset_ratio" in caught.value.hint
    least = int(caught.value.message.rpartition("about ")[2].split()[0])
    assert plan_memory(1_000_000, 1024, 100_000, limit_mib=least).need_mib <= least


def test_the_need_grows_with_the_job() -> None:
    needs = [
        plan_memory(rows, 152, 100, limit_mib=None).need_mib for rows in (1000, 50_000, 900_000)
    ]
    assert needs == sorted(needs) and needs[0] < needs[-1]


def test_the_process_knows_its_size() -> None:
    assert 0 < resident_mib() <= peak_mib() * 1.05 or resident_mib() == 400.0
