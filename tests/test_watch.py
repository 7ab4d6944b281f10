"""New images of a folder, each handed on once and only when it is complete."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amiss.errors import DataError
from amiss.watch import Stopper, image_files, watch_folder


class Script:
    """Stands for the clock: each look at the folder is followed by the next action."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        self.actions = list(actions)
        self.idle = 4  # looks after the last action, for what has not settled yet

    def sleep(self, seconds: float) -> None:
        if self.actions:
            self.actions.pop(0)()
        else:
            self.idle -= 1

    def stop(self) -> bool:
        return self.idle <= 0


def watched(folder: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(time, "sleep", script.sleep)
    return [path.name for path in watch_folder(folder, stop=script.stop)]


def test_only_what_appears_from_now_on_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    script = Script(
        lambda: (tmp_path / "b.png").write_bytes(b"b"),
        lambda: (tmp_path / "a.JPG").write_bytes(b"a"),
    )
    assert watched(tmp_path, script, monkeypatch) == ["b.png", "a.JPG"]


def test_a_file_that_grows_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    path = tmp_path / "slow.png"
    script = Script(*[lambda n=n: path.write_bytes(b"x" * n) for n in (0, 0, 10, 20, 30)])
    monkeypatch.setattr(time, "sleep", script.sleep)
    for found in watch_folder(tmp_path, stop=script.stop):
        sizes.append(found.stat().st_size)
    assert sizes == [30]


def test_a_file_is_handed_over_once_also_when_it_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    script = Script(
        lambda: path.write_bytes(b"1"), lambda: None, lambda: None, lambda: path.write_bytes(b"22")
    )
    assert watched(tmp_path, script, monkeypatch) == ["x.png"]


def test_other_files_and_hidden_ones_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        for name in ("notes.txt", ".hidden.png", "x.png.part", "x.bmp"):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "deeper.png").mkdir()

    assert watched(tmp_path, Script(write), monkeypatch) == ["x.bmp"]


def test_a_file_that_vanishes_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    script = Script(lambda: path.write_bytes(b"1"), path.unlink)
    assert watched(tmp_path, script, monkeypatch) == []


def test_a_place_that_is_no_folder_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        next(watch_folder(tmp_path / "nowhere"))


def test_signals_ask_to_stop() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        stopper = Stopper()
        assert not stopper()
        signal.raise_signal(signal.SIGTERM)
        assert stopper()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_image_files_are_sorted_and_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.TIF", ".x.png", "t.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = [p.relative_to(tmp_path).as_posix() for p in image_files(tmp_path)]
    assert found == ["a/c.TIF", "b.png"]
    with pytest.raises(DataError, match="no image"):
        image_files(tmp_path / "nowhere")
