"""What `amiss predict` leaves behind: latencies, files that grow, names, bounded memory."""

from __future__ import annotations

import csv
import json
import os
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amiss.errors import DataError, ImageError, OptionError
from amiss.methods.patchcore import PatchCore
from amiss.results import Latencies, LineFile, Results, numbered_name
from amiss.runtime import as_runtime
from amiss.types import ImageResult, Record, Region

Capture = pytest.CaptureFixture[str]
NOWHERE: dict[str, Any] = {"heatmaps": None, "jsonl": None, "csv": None}


def judged(path: str, *, anomalous: bool = True) -> ImageResult:
    region = Region((1, 2, 3, 4), 4, 0.5, (1, 2))
    return ImageResult(Path(path), 0.25, 0.125, anomalous, [region] if anomalous else [])


# --- latencies -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_percentiles_are_within_one_percent(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(3, 1.5, 3000)
    latencies = Latencies()
    for value in values:
        latencies.add(float(value))
    for share in (0.01, 0.5, 0.95, 0.99, 1.0):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert latencies.percentile(share) == pytest.approx(exact, rel=0.0101)
    assert latencies.as_dict().keys() == {"p50", "p95", "p99"}


def test_percentiles_at_the_ends() -> None:
    latencies = Latencies()
    assert latencies.as_dict() == {} and np.isnan(latencies.percentile(0.5))
    latencies.add(12.5)
    assert latencies.as_dict() == {"p50": 12.5, "p95": 12.5, "p99": 12.5}
    for extreme in (0.0, 1e12):
        latencies.add(extreme)
    assert latencies.percentile(0.01) == pytest.approx(0.0101, rel=1e-3)
    assert latencies.percentile(1.0) > 9e6


# --- files that grow -------------------------------------------------------------------------


def test_lines_are_in_the_file_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = LineFile(path)
    file.write('{"a": 1}\n')
    assert path.read_text() == '{"a": 1}\n'
    file.close()
    again = LineFile(path)
    again.write("2\n")
    again.close()
    assert path.read_text() == '{"a": 1}\n2\n'


def test_a_line_that_was_torn_apart_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a"')
    file = LineFile(path)
    file.write("3\n")
    file.close()
    assert path.read_text().splitlines() == ['{"a": 1}', '{"a"', "3"]


def test_a_header_is_written_once_and_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for line in ("1,2\n", "3,4\n"):
        file = LineFile(path, header="a,b\r\n")
        file.write(line)
        file.close()
    assert path.read_text().splitlines() == ["a,b", "1,2", "3,4"]
    with pytest.raises(OptionError, match="another table"):
        LineFile(path, header="a,c\r\n")
    assert path.read_text().splitlines() == ["a,b", "1,2", "3,4"]


def test_a_file_that_cannot_be_opened_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be written to"):
        LineFile(tmp_path / "no" / "x.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_a_named_error() -> None:
    file = LineFile(Path("/dev/full"))
    with pytest.raises(DataError, match="No space left"):
        file.write("x\n")
    file.close()


# --- names of heat maps ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 17, 1000])
def test_the_next_free_name_is_found_in_few_questions(count: int) -> None:
    taken = {"x.heat.png", *(f"x.{n}.heat.png" for n in range(2, count + 1))} if count else set()
    asked = 0

    def is_taken(name: str) -> bool:
        nonlocal asked
        asked += 1
        return name in taken

    expected = "x.heat.png" if count == 0 else f"x.{count + 1}.heat.png"
    assert numbered_name("x", is_taken) == expected and asked <= 22


# --- results ---------------------------------------------------------------------------------


def test_an_endless_run_writes_each_line_at_once_and_keeps_no_rows(
    detector: PatchCore, tmp_path: Path, capsys: Capture
) -> None:
    lines, table = tmp_path / "x.jsonl", tmp_path / "x.csv"
    results = Results(as_runtime(detector), heatmaps=None, jsonl=lines, csv=table, quiet=False,
                      endless=True)  # fmt: skip
    with results:
        for count, name in enumerate(("a.png", 'b,"c".png'), 1):
            results.add(judged(name), 3.0)
            found = [json.loads(line) for line in lines.read_text().splitlines()]
            assert len(found) == count and found[-1]["path"] == name
            with table.open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert len(rows) == count and rows[-1]["path"] == name and rows[-1]["regions"] == "1"
    told = results.as_dict()
    assert "results" not in told and told["n_images"] == told["n_anomalous"] == 2
    assert "2 images, 2 anomalous (p50 3.0 ms" in results.summary()
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("endless", [True, False])
def test_a_file_that_could_not_be_read_has_a_row_with_the_reason(
    detector: PatchCore, tmp_path: Path, *, endless: bool
) -> None:
    lines, table = tmp_path / "x.jsonl", tmp_path / "x.csv"
    results = Results(as_runtime(detector), heatmaps=None, jsonl=lines, csv=table, quiet=True,
                      endless=endless)  # fmt: skip
    with results:
        results.add(judged("a.png"), 3.0)
        results.skip(Record(Path("b.png")), ImageError("b.png: it is empty."))
    good, broken = [json.loads(line) for line in lines.read_text().splitlines()]
    assert detector.calibration is not None
    assert good["error"] is None and good["threshold"] == detector.calibration.threshold
    assert datetime.now(UTC) - datetime.fromisoformat(good["time"]) < timedelta(minutes=1)
    assert broken["error"] == "b.png: it is empty." and broken["score"] is None
    with table.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["error"], first["regions"]) == ("", "1")
    assert (second["path"], second["score"], second["regions"]) == ("b.png", "", "")
    if not endless:  # --json lists them apart
        assert [row["path"] for row in results.as_dict()["results"]] == ["a.png"]


def test_lines_stay_when_a_run_breaks_off(detector: PatchCore, tmp_path: Path) -> None:
    lines = tmp_path / "x.jsonl"
    results = Results(as_runtime(detector), **NOWHERE | {"jsonl": lines}, quiet=True, endless=True)
    with pytest.raises(RuntimeError), results:
        results.add(judged("a.png"), 1.0)
        raise RuntimeError
    assert json.loads(lines.read_text())["path"] == "a.png"


def test_a_finite_run_that_breaks_off_writes_no_table(detector: PatchCore, tmp_path: Path) -> None:
    lines = tmp_path / "x.jsonl"
    results = Results(as_runtime(detector), **NOWHERE | {"jsonl": lines}, quiet=True)
    with pytest.raises(RuntimeError), results:
        results.add(judged("a.png"), 1.0)
        raise RuntimeError
    assert not lines.exists()


def test_memory_does_not_grow_with_the_images(detector: PatchCore) -> None:
    results = Results(as_runtime(detector), **NOWHERE, quiet=True, endless=True)

    def work(start: int, count: int) -> None:
        for i in range(start, start + count):
            results.add(judged(f"{i:09}.png"), 10 + i % 50)
            results.skip(Record(Path(f"{i:09}.png")), ImageError(f"{i}: broken"))

    with results:
        work(0, 500)
        tracemalloc.start()
        work(500, 1)
        before, _ = tracemalloc.get_traced_memory()
        work(501, 3000)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # Rows alone would take over a megabyte; the last messages are new ones of the same length.
    assert after - before < 100_000
    told = results.as_dict()
    assert told["n_images"] == told["n_skipped"] == 3501
    assert len(told["skipped"]) == 100 and told["skipped"][-1]["path"] == "000003500.png"


def test_how_it_stands_is_said_now_and_then(
    detector: PatchCore, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Results(as_runtime(detector), **NOWHERE, quiet=False, endless=True) as results:
        for _ in range(12):
            now += 100
            results.add(judged("a.png", anomalous=False), 2.0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith("so far: 6 images, 0 anomalous (p50 2.0 ms, p95")


def test_heat_maps_of_an_endless_run_never_replace_one_another(
    detector: PatchCore, normals: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "heat"
    found = detector.predict(normals / "000.png")
    assert isinstance(found, ImageResult)
    for _ in range(2):  # also after a new start
        with Results(as_runtime(detector), **NOWHERE | {"heatmaps": folder}, quiet=True,
                     endless=True) as results:  # fmt: skip
            results.add(found, 1.0)
            results.add(found, 1.0)
    names = {"000.heat.png", "000.2.heat.png", "000.3.heat.png", "000.4.heat.png"}
    assert {path.name for path in folder.iterdir()} == names


def test_an_image_that_moved_on_has_no_heat_map_and_ends_nothing(
    detector: PatchCore, normals: Path, tmp_path: Path, capsys: Capture
) -> None:
    image = tmp_path / "x.png"
    image.write_bytes((normals / "000.png").read_bytes())
    found = detector.predict(image)
    assert isinstance(found, ImageResult) and found.anomaly_map is not None
    folder = tmp_path / "heat"
    with Results(as_runtime(detector), **NOWHERE | {"heatmaps": folder}, quiet=False,
                 endless=True) as results:  # fmt: skip
        image.unlink()
        results.add(found, 1.0)
        found.path, found.anomaly_map = normals / "000.png", found.anomaly_map[:-1]
        results.add(found, 1.0)
    assert list(folder.iterdir()) == [] and results.judged == 2
    missing, resized = results.as_dict()["notes"]
    assert "no such file" in missing and "another size" in resized
    assert capsys.readouterr().err.splitlines() == [missing, resized]


@pytest.mark.skipif(os.name != "posix", reason="names that are no text")
@pytest.mark.parametrize("endless", [False, True])
def test_names_that_are_no_text_are_written_all_the_same(
    endless: bool, detector: PatchCore, tmp_path: Path, capsys: Capture
) -> None:
    name = os.fsdecode(b"gr\xfcn.png")
    lines, table = tmp_path / "x.jsonl", tmp_path / "x.csv"
    with Results(as_runtime(detector), heatmaps=None, jsonl=lines, csv=table, quiet=False,
                 endless=endless) as results:  # fmt: skip
        results.add(judged(name), 1.0)
    assert json.loads(lines.read_text())["path"] == name
    assert r"gr\udcfcn.png" in table.read_text() and r"gr\udcfcn.png" in capsys.readouterr().out
