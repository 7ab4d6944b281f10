"""New images of a folder: each content handed on once, and only when it is complete."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amiss.errors import DataError, ImageError
from amiss.watch import FolderWatch, Stopper, image_files

DAMAGED = ImageError("cut off", reason="truncated")


class Script:
    """Stands for the clock: each look at the folder is followed by the next action."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        self.actions = list(actions)
        self.idle = 4  # looks after the last action, for what has not settled yet

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        if self.actions:
            self.actions.pop(0)()
        else:
            self.idle -= 1

    def stop(self) -> bool:
        return self.idle <= 0


def nothing() -> None:
    """One more look."""


def watched(folder: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(time, "sleep", script.sleep)
    return [path.name for path in FolderWatch(folder).images(script.stop)]


def test_only_what_appears_from_now_on_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    script = Script(
        lambda: (tmp_path / "b.png").write_bytes(b"b"),
        lambda: (tmp_path / "a.JPG").write_bytes(b"a"),
    )
    assert watched(tmp_path, script, monkeypatch) == ["b.png", "a.JPG"]


def test_what_appears_before_the_first_look_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, script = FolderWatch(tmp_path), Script()
    (tmp_path / "early.png").write_bytes(b"x")  # while the network is loaded, for instance
    monkeypatch.setattr(time, "sleep", script.sleep)
    assert [path.name for path in watch.images(script.stop)] == ["early.png"]


def test_the_oldest_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        for age, name in ((1, "a.png"), (3, "b.png"), (2, "c.png")):
            (tmp_path / name).write_bytes(b"x")
            os.utime(tmp_path / name, (1e9 - age, 1e9 - age))

    assert watched(tmp_path, Script(write), monkeypatch) == ["b.png", "c.png", "a.png"]


def test_a_file_that_grows_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    path = tmp_path / "slow.png"
    script = Script(*[lambda n=n: path.write_bytes(b"x" * n) for n in (0, 0, 10, 20, 30)])
    monkeypatch.setattr(time, "sleep", script.sleep)
    for found in FolderWatch(tmp_path).images(script.stop):
        sizes.append(found.stat().st_size)
    assert sizes == [30]


def test_a_file_that_is_written_in_place_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, handed = tmp_path / "x.png", []

    def change(second: int) -> None:  # its full size from the beginning, filled bit by bit
        path.write_bytes(bytes([second]) * 9)
        os.utime(path, (second, second))

    script = Script(*[lambda n=n: change(n) for n in (1, 2, 3)])
    monkeypatch.setattr(time, "sleep", script.sleep)
    for found in FolderWatch(tmp_path).images(script.stop):
        handed.append(found.read_bytes()[0])
    assert handed == [3]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_file_that_is_written_again_is_handed_over_again(
    there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    if there_before:
        path.write_bytes(b"0")
    script = Script(
        lambda: path.write_bytes(b"1"), nothing, nothing,
        lambda: path.write_bytes(b"22"), nothing, nothing,  # another size
        lambda: os.utime(path, (5, 5)),  # the same size, another time
    )  # fmt: skip
    if there_before:
        os.utime(path, (1, 1))
    assert watched(tmp_path, script, monkeypatch) == ["x.png"] * 3


def test_other_files_and_hidden_ones_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        for name in ("notes.txt", ".hidden.png", "x.png.part", "x.bmp"):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "deeper.png").mkdir()

    assert watched(tmp_path, Script(write), monkeypatch) == ["x.bmp"]


def test_a_file_that_vanishes_before_it_settles_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    script = Script(lambda: path.write_bytes(b"1"), path.unlink)
    assert watched(tmp_path, script, monkeypatch) == []


def test_files_that_vanish_are_forgotten_and_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"

    def write() -> None:
        path.write_bytes(b"1")
        os.utime(path, (7, 7))

    script = Script(write, nothing, nothing, path.unlink, nothing, write, nothing, nothing,
                    path.unlink)  # fmt: skip
    monkeypatch.setattr(time, "sleep", script.sleep)
    watch = FolderWatch(tmp_path)
    assert [found.name for found in watch.images(script.stop)] == ["x.png", "x.png"]
    assert not watch._known and not watch._pending and not watch._retried


def test_a_file_that_could_not_be_read_comes_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, answers = tmp_path / "x.png", []
    script = Script(lambda: path.write_bytes(b"1"))
    script.idle = 9
    monkeypatch.setattr(time, "sleep", script.sleep)
    watch = FolderWatch(tmp_path)
    for found in watch.images(script.stop):
        answers.append(watch.again(found, DAMAGED))
    assert answers == [True, False]
    assert not watch.again(tmp_path / "other.png", DAMAGED)


@pytest.mark.parametrize("reason", ["missing", "animated", "too-large"])
def test_what_no_second_look_can_change_is_not_tried_again(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(lambda: (tmp_path / "x.png").write_bytes(b"1"))
    monkeypatch.setattr(time, "sleep", script.sleep)
    watch, answers = FolderWatch(tmp_path), []
    for found in watch.images(script.stop):
        answers.append(watch.again(found, ImageError("", reason=reason)))
    assert answers == [False]


@pytest.mark.parametrize("vanishes", [False, True])
def test_a_second_reading_that_is_owed_is_not_forgotten(
    vanishes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, answers = tmp_path / "x.png", []
    path_written = Script(lambda: path.write_bytes(b"1"))
    monkeypatch.setattr(time, "sleep", path_written.sleep)
    watch = FolderWatch(tmp_path)
    for found in watch.images(lambda: len(answers) >= 1 + vanishes):
        answers.append(watch.again(found, DAMAGED))
        if vanishes:
            path.unlink(missing_ok=True)
    assert answers == [True, False]


def test_a_stop_ends_a_burst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, handed = FolderWatch(tmp_path), []
    for i in range(50):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for path in watch.images(lambda: len(handed) >= 3):
        handed.append(path)
    assert len(handed) == 3


def test_a_place_that_is_no_folder_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be watched"):
        FolderWatch(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be watched"):
        FolderWatch(tmp_path / "file")


def test_a_folder_that_vanishes_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    script = Script(lambda: shutil.rmtree(inbox))
    with pytest.raises(DataError, match="cannot be watched"):
        watched(inbox, script, monkeypatch)


def test_signals_ask_to_stop_and_their_handlers_come_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        with Stopper() as stopper:
            assert not stopper()
            signal.raise_signal(number)
            assert stopper()
        assert [signal.getsignal(n) for n in numbers] == before


def test_a_second_signal_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Stopper():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_image_files_are_sorted_and_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.TIF", ".x.png", "t.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = [p.relative_to(tmp_path).as_posix() for p in image_files(tmp_path)]
    assert found == ["a/c.TIF", "b.png"]
    with pytest.raises(DataError, match="no image"):
        image_files(tmp_path / "nowhere")


def test_a_file_that_stays_empty_is_handed_on_to_be_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))  # a second a call
    script = Script(lambda: (tmp_path / "empty.png").write_bytes(b""), *[nothing] * 6)
    assert watched(tmp_path, script, monkeypatch) == ["empty.png"]


def test_a_file_that_is_empty_at_the_end_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(lambda: (tmp_path / "empty.png").write_bytes(b""))
    script.idle = 2
    assert watched(tmp_path, script, monkeypatch) == ["empty.png"]


def test_an_empty_file_is_not_tried_twice(tmp_path: Path) -> None:
    watch = FolderWatch(tmp_path)
    watch._known["a.png"] = (1, 0)
    assert not watch.again(tmp_path / "a.png", ImageError("no bytes", reason="empty"))
