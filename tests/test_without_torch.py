"""The base install: what `pip install amiss` brings runs exported detectors, and nothing more is
needed. The environment is made of links to the packages that the base names, and to theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import amiss
from amiss.export import export
from commands import amiss as in_process

SOURCES = Path(amiss.__file__).parents[1]
LARGEST_MIB = 200


def closure(name: str) -> dict[str, metadata.Distribution]:
    """The distributions that `name` needs without any extra, itself left out."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [name]
    while waiting:
        for line in metadata.requires(waiting.pop()) or []:
            need = Requirement(line)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            if need.name not in found:
                found[need.name] = metadata.distribution(need.name)
                waiting.append(need.name)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from, which holds the base install and amiss itself."""
    folder = tmp_path_factory.mktemp("base")
    for distribution in closure("amiss").values():
        for file in distribution.files or []:
            top = file.parts[0]
            if top != ".." and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    (folder / "amiss").symlink_to(SOURCES / "amiss")
    return folder


def run(base: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the base alone; the last line on stderr names the heavy modules it loaded."""
    heavy = "torch", "torchvision", "timm", "faiss", "scipy", "sklearn", "onnx", "openvino"
    watch = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('loaded', sorted(set({heavy!r}) & set(sys.modules)),"
        " file=sys.stderr))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", watch + "from amiss.cli import main; sys.exit(main())",
         *arguments],
        env=environment | {"PYTHONPATH": str(base)}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "loaded []", done.stderr
    return done


@pytest.fixture(scope="module")
def part(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(amiss.load(artifact), tmp_path_factory.mktemp("exported") / "part.onnx").path


def test_there_is_no_torch_in_the_base(base: Path) -> None:
    assert not list(base.glob("torch*")) and not list(base.glob("scipy*"))


def test_the_base_is_small() -> None:
    files = {
        Path(str(distribution.locate_file(file)))
        for distribution in closure("amiss").values()
        for file in distribution.files or []
    }
    size = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
    assert size / 2**20 < LARGEST_MIB


def test_the_same_command_gives_the_same_output(
    base: Path, part: Path, artifact: Path, labelled: Path, tmp_path: Path
) -> None:
    photos = labelled / "test" / "scratch"
    done = run(base, "predict", str(part), str(photos), "--json", "--heatmaps", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = amiss.load(artifact).predict(sorted(photos.iterdir()))
    for row, one in zip(found["results"], expected, strict=True):
        assert row["score"] == pytest.approx(one.score, rel=1e-4)
        assert row["is_anomalous"] == one.is_anomalous and row["p_value"] == one.p_value
        assert len(row["regions"]) == len(one.regions)
    assert len(list(tmp_path.glob("*.heat.png"))) == len(expected)


def test_the_same_report(
    base: Path, part: Path, artifact: Path, labelled: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    page = tmp_path / "report.html"
    done = run(base, "evaluate", str(part), str(labelled), "--report", str(page), "--json")
    assert done.returncode == 0, done.stderr
    here = in_process(capsys, "evaluate", artifact, labelled, "--json").json
    found = json.loads(done.stdout)
    assert found["metrics"] == pytest.approx(here["metrics"], abs=1e-6)
    assert "<html" in page.read_text()


@pytest.mark.parametrize(
    "arguments", [["inspect", "PART", "--json"], ["methods", "--json"], ["--help"],
                  ["check", "DATA", "--json", "--max-false-alarm", "0.2", "--detector", "PART"],
                  ["calibrate", "PART", "--max-false-alarm", "0.3", "-o", "OUT"]],
)  # fmt: skip
def test_other_commands_need_no_torch(
    arguments: list[str], base: Path, part: Path, labelled: Path, tmp_path: Path
) -> None:
    places = {"PART": str(part), "DATA": str(labelled), "OUT": str(tmp_path / "out.onnx")}
    done = run(base, *(places.get(a, a) for a in arguments))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() and '"error"' not in done.stdout


@pytest.mark.parametrize(
    "arguments", [["fit", "patchcore", "DATA", "-o", "OUT"], ["predict", "ARTIFACT", "DATA"],
                  ["export", "ARTIFACT"]],
)  # fmt: skip
def test_what_needs_torch_says_which_extra_brings_it(
    arguments: list[str], base: Path, artifact: Path, normals: Path, tmp_path: Path
) -> None:
    places = {"ARTIFACT": str(artifact), "DATA": str(normals), "OUT": str(tmp_path / "o.amiss")}
    done = run(base, *(places.get(a, a) for a in arguments), "--json")
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 1 and told["error"] == "MissingDependencyError"
    assert "amiss[train]" in told["hint"]
    assert not list(tmp_path.iterdir())
