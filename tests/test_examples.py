"""Every example runs, on made images."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def _images(folder: Path, count: int, *, defect: bool, seed: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        pixels = random.normal(120, 8, (96, 96)).clip(0, 255).astype(np.uint8)
        if defect:
            pixels[30:60, 30:60] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    _images(root / "good", 24, defect=False, seed=0)
    _images(root / "spot", 4, defect=True, seed=1)
    return root


def _run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_examples_run_in_the_order_of_a_users_day(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = str(photos / "part.amiss")
    good, spot = str(photos / "good"), str(photos / "spot")
    _run("fit_and_predict.py", good, spot, part, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("anomalous") == 4
    _run("camera_loop.py", part, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("frame") == 5
    fresh = photos.parent / "fresh"
    _images(fresh / "test" / "good", 6, defect=False, seed=2)
    _images(fresh / "test" / "spot", 6, defect=True, seed=3)
    _images(fresh / "train" / "good", 1, defect=False, seed=4)
    _run("judge_and_tune.py", part, str(fresh), monkeypatch=monkeypatch)
    assert "6 of 6 caught" in capsys.readouterr().out


def test_examples_stay_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path.name
