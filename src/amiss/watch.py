"""New images of a folder, as they appear, for weeks on end."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from amiss.data.tree import IMAGE_SUFFIXES
from amiss.errors import DataError, ImageError

EMPTY_S = 3.0
"""How long content is waited for."""

State = tuple[int, int]
"""A file's time of the last change in ns and its size in bytes: other numbers, another content."""

_FINAL = frozenset(
    {"missing", "empty", "animated", "too-large"}
)  # reasons that no second look can change


def image_files(folder: Path) -> list[Path]:
    """The image files under a folder, by suffix, sorted; hidden ones left out.

    Raises:
        DataError: no image below it.
    """
    found = sorted(
        path for path in folder.rglob("*") if _named_like_an_image(path.name) and path.is_file()
    )
    if not found:
        raise DataError(
            f"{folder} holds no image.", hint=f"Images end in {' '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return found


class FolderWatch:
    """The images that appear in a folder after this was made, each when its content has settled.

    A file that is still being written is waited for: it is handed on when two looks, `interval`
    seconds apart, find the same size above 0 and the same time of the last change; one that stays
    empty, after `EMPTY_S` seconds, since a part whose picture is lost was not judged. What is
    written again is handed on again. What vanishes is forgotten, so that memory grows with the
    files that lie in the folder and not with those that ever did.

    Raises:
        DataError: `folder` is no folder, or cannot be listed.
    """

    def __init__(self, folder: Path, *, interval: float = 0.2) -> None:
        self.folder, self.interval = folder, interval
        self._pending: dict[str, State] = {}  # as the last look found it, not settled yet
        self._retried: dict[str, State] = {}  # could not be read once
        self._empty: dict[str, float] = {}  # without content, since when
        self._known: dict[str, State] = {}  # handed on, or there from the beginning
        self._known = self._look()

    def images(self, stop: Callable[[], bool]) -> Iterator[Path]:
        """New images, the oldest first, until `stop` says so.

        Raises:
            DataError: the folder has vanished or cannot be listed any more.
        """
        while not stop():
            started = time.monotonic()
            now = self._look()
            took = time.monotonic() - started
            for name in self._settled(now):
                if stop():
                    break
                yield self._hand_on(name, now)
            # At most half of the time goes into looking, however full the folder is.
            time.sleep(max(self.interval, took))
        for name in [*self._owed(), *self._empty]:  # nobody is to believe that these were judged
            yield self._hand_on(name, {})

    def again(self, path: Path, error: ImageError) -> bool:
        """Whether a file that could not be read is handed on once more, after another two looks.

        Network shares show a file's size before all of its content has arrived.
        """
        name = path.name
        state = self._known.get(name)
        if state is None or error.reason in _FINAL or self._retried.get(name) == state:
            return False
        self._retried[name] = self._known.pop(name)
        return True

    def _look(self) -> dict[str, State]:
        """The state of every image in the folder."""
        now: dict[str, State] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if _named_like_an_image(entry.name):
                        state = self._state(entry.name, entry.path)
                        if state is not None:
                            now[entry.name] = state
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be watched: {error.strerror}.",
                hint="Is it a folder that exists, and is its disk or share connected?",
            ) from error
        return now

    def _state(self, name: str, path: str) -> State | None:
        try:
            found = os.stat(path)
        except FileNotFoundError:  # moved away since the folder was listed
            return None
        except OSError:  # for the moment: it has not changed as far as anyone can tell
            return self._known.get(name)
        return (found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None

    def _settled(self, now: dict[str, State]) -> list[str]:
        """The names to hand on after this look, the oldest first; those that vanished forgotten."""
        vanished = [name for name in self._owed() if name not in now]
        for names in (self._known, self._pending, self._retried, self._empty):
            for name in [name for name in names if name not in now and name not in vanished]:
                del names[name]
        settled = []
        for name, state in now.items():
            if self._known.get(name) == state:
                continue
            if self._pending.get(name) == state and (state[1] > 0 or self._stays_empty(name)):
                settled.append(name)
            if state[1] > 0:
                self._empty.pop(name, None)
            self._pending[name] = state
        return vanished + sorted(settled, key=lambda name: (now[name], name))

    def _stays_empty(self, name: str) -> bool:
        """Whether a file has had no content for so long that none is on its way."""
        return time.monotonic() - self._empty.setdefault(name, time.monotonic()) >= EMPTY_S

    def _owed(self) -> list[str]:
        """Files that wait for their second reading."""
        return [name for name in self._retried if name not in self._known]

    def _hand_on(self, name: str, now: dict[str, State]) -> Path:
        pending = self._pending.pop(name, None)
        self._empty.pop(name, None)
        # One that is gone or not looked at again counts as retried: its next failure is the last.
        self._known[name] = now.get(name) or self._retried.get(name) or pending or (0, 0)
        return self.folder / name


def _named_like_an_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


class Stopper:
    """Within `with`, SIGTERM and SIGINT ask to stop: what is under way is finished first.

    A second signal interrupts at once. The handlers that were there before come back at the end.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: it was set by other than Python code, which Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def __call__(self) -> bool:
        return self.stopped
