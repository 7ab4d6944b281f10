"""The checks themselves: a sound detector passes them all, and each catches a broken one."""

from __future__ import annotations

from pathlib import Path

import broken
import pytest
from broken import BROKEN, Sound
from conformance_checks import CHECKS, Scene, Subject

from amiss.errors import AmissError
from amiss.methods import ABOUT, METHODS, About

CAUGHT = (AssertionError, AmissError, IndexError, TypeError)
"""How a broken detector may show: most often in an assertion of the check, sometimes earlier."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.build(tmp_path_factory.mktemp("broken"))


def _subject(name: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    place = f"broken:{name}"
    monkeypatch.setitem(METHODS, "sound", place)
    monkeypatch.setitem(ABOUT, "sound", About(Sound.paper, True, True, False))
    return Subject("sound", place, {"image_size": (48, 64)}, docs=docs)


@pytest.mark.parametrize("name", CHECKS)
def test_a_sound_detector_passes(
    name: str, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sound.md").write_text("A page.")
    CHECKS[name](_subject("Sound", tmp_path, monkeypatch), scene)


@pytest.mark.parametrize(("name", "kind"), BROKEN)
def test_a_broken_detector_is_caught(
    name: str, kind: str, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = _subject(kind, tmp_path, monkeypatch)
    with pytest.raises(CAUGHT):
        CHECKS[name](subject, scene)


def test_there_is_a_broken_detector_for_every_check() -> None:
    assert {name for name, _ in BROKEN} == set(CHECKS)


def test_every_broken_detector_is_used() -> None:
    kinds = {name for name, kind in vars(broken).items() if _is_variant(kind)}
    assert {kind for _, kind in BROKEN} == kinds


def _is_variant(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Sound) and kind is not Sound
