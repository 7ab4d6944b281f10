"""What an interrupted fit keeps, and for whom."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from amiss.learning.partial import Partial
from amiss.types import Record

OPTIONS = {"seed": 0, "layers": ["4", "8"]}
TENSORS = {"patches": torch.arange(6.0).view(2, 3), "picks": torch.tensor([4, 1])}


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.png"
        path.write_bytes(name.encode())
        made.append(Record(path))
    return made


def test_the_same_job_finds_what_it_left(tmp_path: Path, records: list[Record]) -> None:
    path = tmp_path / "part.amiss.partial"
    first = Partial(path, OPTIONS, records, print)
    assert first.load() == {}
    first.save(TENSORS)
    again = Partial(path, dict(reversed(OPTIONS.items())), records, print).load()
    assert again.keys() == TENSORS.keys()
    assert all(torch.equal(again[name], TENSORS[name]) for name in TENSORS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", path.name]


def test_another_job_finds_nothing_says_so_and_overwrites(
    tmp_path: Path, records: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "part.amiss.partial"
    Partial(path, OPTIONS, records, print).save(TENSORS)
    others = [
        Partial(path, OPTIONS | {"seed": 1}, records, print),
        Partial(path, OPTIONS, records[:1], print),
        Partial(path, OPTIONS, records[::-1], print),
        Partial(path, OPTIONS, [Record(r.path, crop=(0, 0, 4, 4)) for r in records], print),
        Partial(path, OPTIONS, [Record(r.path, roi=tmp_path / "roi.png") for r in records], print),
    ]
    assert all(other.load() == {} for other in others)
    told = capsys.readouterr().out.splitlines()
    assert "was left by a fit with other seed, so this one" in told[0]
    assert len(told) == len(others) and all("with other images, so" in line for line in told[1:])
    others[0].save({"picks": torch.tensor([9])})
    assert others[0].load()["picks"].tolist() == [9]
    assert Partial(path, OPTIONS, records, print).load() == {}


def test_a_file_that_changed_makes_another_job(tmp_path: Path, records: list[Record]) -> None:
    path = tmp_path / "part.amiss.partial"
    Partial(path, OPTIONS, records, print).save(TENSORS)
    stat = records[0].path.stat()
    os.utime(records[0].path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert Partial(path, OPTIONS, records, print).load() == {}
    os.utime(records[0].path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Partial(path, OPTIONS, records, print).load().keys() == TENSORS.keys()
    records[0].path.write_bytes(b"longer")
    os.utime(records[0].path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Partial(path, OPTIONS, records, print).load() == {}


def test_what_was_cut_short_is_as_good_as_nothing(tmp_path: Path, records: list[Record]) -> None:
    path = tmp_path / "part.amiss.partial"
    job = Partial(path, OPTIONS, records, print)
    job.save(TENSORS)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert job.load() == {}


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    job = Partial(None, OPTIONS, [Record(tmp_path / "never read.png")], print)
    job.save(TENSORS)
    assert job.load() == {} and list(tmp_path.iterdir()) == []
