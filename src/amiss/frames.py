"""`predict_frames`: an endless row of camera frames, taken in by one thread and judged by another.

A bounded queue lies between them, so that neither a burst nor a slow network costs memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy as np

from amiss.data.geometry import inner_roi, resize_image
from amiss.data.images import load_array
from amiss.data.stream import Batch, ImageStream
from amiss.errors import DataError, ImageError, OptionError
from amiss.predict import frame_rois, result
from amiss.runtime import Runtime, as_runtime, image_stream
from amiss.types import ImageResult, Record, UInt8

WhenFull = Literal["wait", "drop_oldest"]
FrameSource = UInt8 | str | Path

QUEUE = 4
_WAKE_S = 0.5  # at the latest, where no frame comes
_JOIN_S = 2.0  # how long closing waits for a camera that hands over nothing


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that was taken in: `batch` of this one image, or the `error` why there is none.

    `number` counts from 0 what the source handed over. `taken` is `time.perf_counter()`, in
    seconds, when it did. `path` is None for an array.
    """

    number: int
    path: Path | None
    taken: float
    batch: Batch | None = None
    error: ImageError | None = None


Judged = tuple[Frame, ImageResult]
Retry = Callable[[Path, ImageError], bool]


class FrameQueue:
    """At most `size` frames between two threads. When it is full, `put` waits ("wait") or lets go
    of the frame that has waited longest ("drop_oldest") and counts it in `dropped`.

    Raises:
        OptionError: `size` below 1, or another `when_full`.
    """

    def __init__(self, size: int = QUEUE, when_full: str = "wait") -> None:
        if size < 1:
            raise OptionError(f"queue={size} holds no frame.", hint="Use 1 or more.")
        if when_full not in get_args(WhenFull):
            raise OptionError(
                f"when_full={when_full!r} is not known.",
                hint='Choose "wait" (nothing is lost) or "drop_oldest" (never behind a camera).',
            )
        self.size, self.when_full = size, when_full
        self.dropped = 0
        self.closed = False
        self._frames: deque[Frame] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, frame: Frame) -> bool:
        """Hand a frame over; False when nobody wants it any more."""
        with self._changed:
            while len(self._frames) >= self.size and not self.closed:
                if self.when_full == "wait":
                    self._changed.wait()
                else:
                    self._frames.popleft()
                    self.dropped += 1
            if not self.closed:
                self._frames.append(frame)
                self._changed.notify_all()
            return not self.closed

    def end(self, error: BaseException | None = None) -> None:
        """No frame will follow, because the source has ended or because of `error`."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def get(self) -> Frame | None:
        """The next frame, waited for; None at the end, or the error that ended the source."""
        with self._changed:
            while not self._frames and not self._ended:
                # A signal that comes to another thread, or just before this wait, does not end it:
                # its handler, which may be what ends the source, runs when this thread wakes up.
                self._changed.wait(_WAKE_S)
            if self._frames:
                self._changed.notify_all()
                return self._frames.popleft()
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """No frame is wanted any more."""
        with self._changed:
            self.closed = True
            self._frames.clear()
            self._changed.notify_all()


class JudgedFrames(Iterator[tuple[int, ImageResult]]):
    """What `predict_frames` returns: an iterator of (number, result), with the count `dropped`.

    Its thread begins with the first frame that is asked for. It ends with the frames, with
    `close()`, at the end of a `with` block, or when a loop was left and nothing refers to it.
    """

    def __init__(self, judged: Generator[Judged, None, None], queue: FrameQueue) -> None:
        self._judged, self._queue = judged, queue

    @property
    def dropped(self) -> int:
        """How many frames were let go of unjudged so far; always 0 with "wait"."""
        return self._queue.dropped

    def __next__(self) -> tuple[int, ImageResult]:
        frame, found = next(self._judged)
        return frame.number, found

    def close(self) -> None:
        """Take in no more frames."""
        self._judged.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def predict_frames(
    detector: Any,
    frames: Iterable[FrameSource],
    *,
    queue: int = QUEUE,
    when_full: WhenFull = "wait",
    on_error: Callable[[int, ImageError], None] | None = None,
) -> JudgedFrames:
    """Judge the frames of a camera, or any other images, one after the other and without end.

    A thread takes the frames in and resizes them while the one before is judged. A frame's array
    may be written to again as soon as the next one is asked for.

    Args:
        frames: uint8 arrays (H, W, 3) RGB or (H, W) gray, or paths of images.
        queue: frames that may wait to be judged.
        when_full: "wait" takes in no frame until there is room, so that all are judged;
            "drop_oldest" lets go of the one that has waited longest, so that the result is
            never more than `queue` frames behind a live camera.
        on_error: called with (number, ImageError) for a frame that cannot be read, which is then
            left out; without it the error is raised.

    Returns:
        an iterator of (number, ImageResult). Numbers count from 0 the frames that the camera
        handed over, those that were dropped or broken among them; `dropped` counts the former.

    Raises:
        OptionError: an option out of range, or one frame in place of several.
        NotFittedError: the detector has learned nothing yet.
        ImageError: while iterating and without `on_error`, a frame that cannot be read. What the
            camera raises comes through as it is, after the frames that were taken in before.
    """
    one = isinstance(frames, str | Path) or (isinstance(frames, np.ndarray) and frames.ndim < 4)
    if one or not isinstance(frames, Iterable):
        raise OptionError(
            f"frames is one {type(frames).__name__}, not a row of frames.",
            hint="Give a list or an iterator of them, or use predict for one image.",
        )
    line = FrameQueue(queue, when_full)
    runtime = as_runtime(detector)

    def tell(frame: Frame, error: ImageError) -> None:
        assert on_error is not None
        on_error(frame.number, error)

    judged = judge_frames(runtime, frames, line, on_error=None if on_error is None else tell)
    return JudgedFrames(judged, line)


def judge_frames(
    runtime: Runtime,
    frames: Iterable[FrameSource],
    queue: FrameQueue,
    *,
    roi: Path | None = None,
    retry: Retry | None = None,
    on_error: Callable[[Frame, ImageError], None] | None = None,
) -> Generator[Judged, None, None]:
    """Judge frames in the order in which they come through `queue`.

    Args:
        roi: one mask for all frames that are files.
        retry: asked in the thread that takes frames in, about a file that cannot be read; where it
            answers True, `frames` will bring the file again and nothing is reported yet.
        on_error: called in the consumer's thread, in order; without it the error is raised.
    """
    stream = image_stream(runtime, [], roi=roi)
    # A daemon, so that a camera which never hands over another frame cannot keep a program alive.
    thread = threading.Thread(
        target=_take_in, args=(frames, stream, queue, retry), name="amiss-frames", daemon=True
    )
    thread.start()
    try:
        while (frame := queue.get()) is not None:
            if frame.batch is not None:
                yield frame, _judge(runtime, frame.path, frame.batch)
            elif frame.error is not None:
                if on_error is None:
                    raise frame.error
                on_error(frame, frame.error)
    finally:
        queue.close()
        thread.join(_JOIN_S)


def _judge(runtime: Runtime, path: Path | None, batch: Batch) -> ImageResult:
    """The decision on a batch of one."""
    prediction = runtime(batch.images, frame_rois(runtime, batch))
    maps = prediction.anomaly_map
    return result(runtime, path, float(prediction.score[0]), None if maps is None else maps[0],
                  batch.geometries[0])  # fmt: skip


def _take_in(
    frames: Iterable[FrameSource], stream: ImageStream, queue: FrameQueue, retry: Retry | None
) -> None:
    """The thread's work: from the source into the queue, until one of them ends."""
    try:
        for number, source in enumerate(frames):
            frame = _read(number, source, stream)
            if not _comes_again(frame, retry) and not queue.put(frame):
                return
    except BaseException as error:  # whatever it is, it belongs to whoever waits for frames
        queue.end(error)
    else:
        queue.end()


def _comes_again(frame: Frame, retry: Retry | None) -> bool:
    """Whether the source will bring this broken file once more."""
    if retry is None or frame.path is None or frame.error is None:
        return False
    return retry(frame.path, frame.error)


def _read(number: int, source: FrameSource, stream: ImageStream) -> Frame:
    """Decode and resize one frame; what is wrong with it becomes its error."""
    taken = time.perf_counter()
    path = Path(source) if isinstance(source, str | Path) else None
    try:
        if path is None:
            return Frame(number, None, taken, _from_array(source, stream))
        return Frame(number, path, taken, stream.read(Record(path)))
    except ImageError as error:
        return Frame(number, path, taken, error=error)
    except DataError as error:  # a region of interest that does not fit this one image
        return Frame(number, path, taken, error=ImageError(error.message, hint=error.hint))


def _from_array(array: object, stream: ImageStream) -> Batch:
    """A batch of one from an array, of which it is a copy: cameras write into the same one."""
    frame, geometry = resize_image(load_array(array), stream.size, stream.mode)
    if np.may_share_memory(frame, array):
        frame = frame.copy()
    roi = inner_roi(geometry)
    return Batch(
        images=frame[None],
        rois=None if roi is None else roi[None],
        indices=np.zeros(1, np.int64),
        geometries=[geometry],
        digests=[],
    )
