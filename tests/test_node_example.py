"""The example without Python runs an exported detector and agrees with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amiss
from amiss.export import export
from made_images import texture, write

EXAMPLE = Path(__file__).parent.parent / "examples" / "node"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="Node.js is not here"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its two packages."""
    place = tmp_path_factory.mktemp("node")
    shutil.copytree(EXAMPLE, place, dirs_exist_ok=True)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(install, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm brings no packages here: {done.stderr.strip().splitlines()[-1:]}")
    return place


def by_node(folder: Path, model: Path, image: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["node", "predict.mjs", str(model), str(image)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("size", [(60, 80), (131, 97)])
def test_node_says_the_same(
    size: tuple[int, int], folder: Path, artifact: Path, tmp_path: Path
) -> None:
    detector = amiss.load(artifact)
    done = export(detector, tmp_path / "part.onnx", input="original")
    write(texture(np.random.default_rng(9), size), tmp_path / "photo.png")
    found = by_node(folder, done.path, tmp_path / "photo.png")
    expected = detector.predict(tmp_path / "photo.png")
    raw = amiss.load(done.path)(texture(np.random.default_rng(9), size)[None], None)
    assert found["score"] == pytest.approx(expected.score, rel=1e-4)
    assert found["threshold"] == pytest.approx(detector.calibration.threshold, rel=1e-12)
    assert found["is_anomalous"] == expected.is_anomalous
    assert [found["map"]["height"], found["map"]["width"]] == [48, 64]
    assert found["map"]["peak"] == pytest.approx(float(raw.anomaly_map.max()), rel=1e-4)
