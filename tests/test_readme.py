"""What the README and the quick start show is true: their Python runs, and the tree is whole."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import amiss
from made_images import spoil, texture, textures, write

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")


def python_blocks(name: str) -> list[str]:
    """The Python in a page, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def without_comments(code: str) -> str:
    return re.sub(r" *#.*", "", code)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    textures(tmp_path / "photos" / "good", 20, seed=1, size=(96, 128))
    textures(tmp_path / "photos" / "scratch", 3, seed=2, size=(96, 128), defects=True)
    spoiled = texture(np.random.default_rng(3), (96, 128))
    spoil(spoiled, 30, 40)
    write(spoiled, tmp_path / "incoming" / "0001.png")
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks("README.md")
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["detector"], amiss.PatchCore)
    assert isinstance(names["result"], amiss.ImageResult)
    assert names["result"].is_anomalous and (tmp_path / "part.amiss").is_file()
    report = names["report"]
    assert isinstance(report, amiss.Report)
    printed = capsys.readouterr().out
    assert report.describe() in printed and report.metrics["image_auroc"] > 0.9


def test_both_readmes_show_the_same_python() -> None:
    english, chinese = map(python_blocks, READMES)
    assert [*map(without_comments, english)] == [*map(without_comments, chinese)]


def test_the_camera_loop_of_the_quick_start_runs(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "part.amiss").write_bytes(artifact.read_bytes())
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks("docs/quickstart.md")
    rng = np.random.default_rng(0)
    exec(code, {"camera": [texture(rng) for _ in range(3)]})
    *lines, last = capsys.readouterr().out.splitlines()
    dropped = int(last.split()[0])
    assert len(lines) + dropped == 3 and "were not judged" in last
    assert all(line.split()[2] in {"True", "False"} for line in lines)


@pytest.mark.parametrize("name", READMES)
def test_the_tree_has_a_line_for_every_file_and_no_other(name: str) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src" / "amiss").rglob("*.py")
        if path.name != "__init__.py"
    }
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = re.findall(r"^    (src/amiss/\S+\.py)  *(\S.*)$", text, re.MULTILINE)
    named = [path for path, _ in lines]
    assert len(named) == len(set(named))
    assert set(named) - {"src/amiss/__init__.py"} == files
