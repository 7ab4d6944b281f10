"""Camera frames through a bounded queue: order, numbers, back-pressure, broken ones, the end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import amiss
from amiss.errors import ImageError, NotFittedError, OptionError
from amiss.frames import Frame, FrameQueue, judge_frames
from amiss.methods.patchcore import PatchCore
from amiss.runtime import as_runtime
from amiss.types import Record, UInt8
from made_images import texture


def pictures(count: int, size: tuple[int, int] = (60, 80)) -> list[UInt8]:
    rng = np.random.default_rng(5)
    return [texture(rng, size) for _ in range(count)]


def threads() -> int:
    return sum(thread.name == "amiss-frames" for thread in threading.enumerate())


def wait_for(holds: Callable[[], bool]) -> None:
    """Until another thread has done its part."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.002)


def test_arrays_and_files_are_judged_as_predict_does(detector: PatchCore, normals: Path) -> None:
    gray = pictures(1, (48, 64))[0][:, :, 0]
    frames: list[Any] = [*pictures(2), gray, normals / "000.png", str(normals / "001.png")]
    found = list(amiss.predict_frames(detector, frames))
    assert [number for number, _ in found] == [0, 1, 2, 3, 4]
    for (_, result), frame in zip(found, frames, strict=True):
        expected = detector.predict(frame)
        assert isinstance(expected, amiss.ImageResult)
        assert result.score == expected.score and result.p_value == expected.p_value
        assert result.path == expected.path and result.is_anomalous == expected.is_anomalous
        np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)
    assert threads() == 0


def test_frames_keep_the_padding_of_a_letterbox_out(tiny: dict[str, Any], normals: Path) -> None:
    detector = PatchCore(**tiny | {"resize": "letterbox"}).fit(normals, max_false_alarm=0.1)
    (frame,) = pictures(1, (90, 40))
    ((_, found),) = amiss.predict_frames(detector, [frame])
    expected = detector.predict(frame)
    assert isinstance(expected, amiss.ImageResult) and found.score == expected.score


def test_a_camera_may_write_into_the_same_array_again(detector: PatchCore) -> None:
    shown = pictures(4, (48, 64))  # the size of the network's input: nothing is resized

    def camera() -> Iterator[UInt8]:
        buffer = np.empty_like(shown[0])
        for picture in shown:
            buffer[:] = picture
            yield buffer
        buffer[:] = 0

    scores = [found.score for _, found in amiss.predict_frames(detector, camera())]
    assert scores == [found.score for found in map(detector.predict, shown)]


def test_a_full_queue_holds_the_camera_back(detector: PatchCore) -> None:
    taken = 0
    (picture,) = pictures(1)

    def burst() -> Iterator[UInt8]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield picture

    with amiss.predict_frames(detector, burst(), queue=3) as judged:
        next(judged)
        wait_for(lambda: taken == 5)  # one judged, three that wait, one in the thread's hands
        time.sleep(0.05)
        assert taken == 5 and judged.dropped == 0
        next(judged)
        wait_for(lambda: taken == 6)
    assert threads() == 0


def test_a_live_camera_is_never_lagged_behind(detector: PatchCore) -> None:
    (picture,) = pictures(1)
    first_judged, all_shown = threading.Event(), threading.Event()

    def camera() -> Iterator[UInt8]:
        yield picture
        first_judged.wait(10)
        for _ in range(20):
            yield picture
        all_shown.set()

    judged = amiss.predict_frames(detector, camera(), queue=2, when_full="drop_oldest")
    numbers = [next(judged)[0]]
    first_judged.set()
    assert all_shown.wait(10)
    numbers += [number for number, _ in judged]
    assert numbers == [0, 19, 20] and judged.dropped == 18


def test_broken_frames_are_handed_over_in_order(detector: PatchCore, tmp_path: Path) -> None:
    (picture,) = pictures(1)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    frames: list[Any] = [
        picture, tmp_path / "no.png", picture.astype(np.float32), picture,
        tmp_path / "broken.png", None,
    ]  # fmt: skip
    events: list[tuple[int, str]] = []

    def tell(number: int, error: ImageError) -> None:
        assert threading.current_thread() is threading.main_thread()
        events.append((number, error.message))

    for number, _ in amiss.predict_frames(detector, frames, on_error=tell):
        events.append((number, "judged"))
    assert [number for number, _ in events] == [0, 1, 2, 3, 4, 5]
    said = ["judged", "no such file", "float32", "judged", "broken.png", "NoneType"]
    for (_, message), words in zip(events, said, strict=True):
        assert words in message


def test_a_broken_frame_is_raised_where_nobody_takes_it(detector: PatchCore) -> None:
    (picture,) = pictures(1)
    numbers = []
    with pytest.raises(ImageError, match="float64"):
        for number, _ in amiss.predict_frames(detector, [picture, np.zeros((4, 4)), picture]):
            numbers.append(number)
    assert numbers == [0] and threads() == 0


def test_what_the_camera_raises_comes_after_what_it_showed(detector: PatchCore) -> None:
    (picture,) = pictures(1)

    def camera() -> Iterator[UInt8]:
        yield picture
        yield picture
        raise TimeoutError("unplugged")

    judged = amiss.predict_frames(detector, camera())
    assert [next(judged)[0], next(judged)[0]] == [0, 1]
    with pytest.raises(TimeoutError, match="unplugged"):
        next(judged)
    assert threads() == 0


@pytest.mark.parametrize("when_full", ["wait", "drop_oldest"])
def test_the_thread_ends_when_the_loop_is_left(when_full: Any, detector: PatchCore) -> None:
    def camera() -> Iterator[UInt8]:
        (picture,) = pictures(1)
        while True:
            yield picture

    for number, _ in amiss.predict_frames(detector, camera(), when_full=when_full):
        assert threads() == 1
        if number >= 2:
            break
    wait_for(lambda: threads() == 0)
    judged = amiss.predict_frames(detector, camera(), when_full=when_full)
    next(judged)
    judged.close()
    assert threads() == 0 and list(judged) == []


def test_nothing_is_taken_in_before_the_first_result_is_asked_for(detector: PatchCore) -> None:
    source = iter(pictures(2))
    judged = amiss.predict_frames(detector, source)
    assert threads() == 0
    judged.close()
    assert len(list(source)) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [({"queue": 0}, "queue=0"), ({"when_full": "drop_newest"}, "drop_newest")],
)
def test_options_out_of_range_are_refused(
    options: dict[str, Any], words: str, detector: PatchCore
) -> None:
    with pytest.raises(OptionError, match=words):
        amiss.predict_frames(detector, [], **options)


def test_one_frame_is_no_row_of_frames(detector: PatchCore, normals: Path) -> None:
    wrong: list[Any] = [str(normals / "000.png"), normals, pictures(1)[0], 7, None]
    for frames in wrong:
        with pytest.raises(OptionError, match="not a row of frames"):
            amiss.predict_frames(detector, frames)
    assert len(list(amiss.predict_frames(detector, np.stack(pictures(2))))) == 2
    assert list(amiss.predict_frames(detector, [])) == []


def test_a_detector_that_has_learned_nothing_is_refused_at_once(tiny: dict[str, Any]) -> None:
    with pytest.raises(NotFittedError):
        amiss.predict_frames(PatchCore(**tiny), [])


# --- what the watched folder uses ------------------------------------------------------------


def test_a_region_of_interest_is_read_once_and_misfits_are_left_out(
    detector: PatchCore, normals: Path, tmp_path: Path
) -> None:
    roi = tmp_path / "roi.png"
    left = np.zeros((60, 80), np.uint8)
    left[:, :40] = 255
    Image.fromarray(left).save(roi)
    Image.fromarray(pictures(1, (60, 60))[0]).save(tmp_path / "square.png")
    frames = [normals / "000.png", tmp_path / "square.png", normals / "001.png"]
    broken: list[tuple[Path | None, str]] = []
    runtime = as_runtime(detector)

    def source() -> Iterator[Path]:
        for path in frames:
            yield path
            roi.unlink(missing_ok=True)

    found = [
        result.score
        for _, result in judge_frames(
            runtime, source(), FrameQueue(), roi=roi,
            on_error=lambda frame, error: broken.append((frame.path, error.message)),
        )
    ]  # fmt: skip
    Image.fromarray(left).save(roi)
    records = [Record(frames[0]), Record(frames[2])]
    from amiss.predict import predict_records

    expected = [r.score for _, r in predict_records(runtime, records, batch_size=1, roi=roi)]
    assert found == expected
    assert [path for path, _ in broken] == [frames[1]] and "aspect" in broken[0][1]


def test_a_file_that_will_come_again_is_not_reported_yet(
    detector: PatchCore, normals: Path, tmp_path: Path
) -> None:
    late, asked = tmp_path / "late.png", []

    def retry(path: Path, error: ImageError) -> bool:
        asked.append(error.reason)
        late.write_bytes((normals / "000.png").read_bytes())
        return True

    found = list(judge_frames(as_runtime(detector), [late, late], FrameQueue(), retry=retry))
    assert asked == ["missing"] and [frame.number for frame, _ in found] == [1]


def test_the_queue_takes_nothing_after_it_was_closed() -> None:
    queue = FrameQueue(1)
    assert queue.put(Frame(0, None, 0.0))
    queue.close()
    assert not queue.put(Frame(1, None, 0.0)) and queue.closed


def test_a_signal_that_interrupts_no_wait_ends_the_queue_all_the_same() -> None:
    """As one that comes just before the wait, or to another thread: the latter is made here."""
    queue = FrameQueue()
    stopped = threading.Event()
    late = threading.Timer(20, queue.end, [TimeoutError("the handler never ran")])

    def send() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        time.sleep(0.1)  # until the main thread waits
        os.kill(os.getpid(), signal.SIGUSR1)
        if stopped.wait(30):
            queue.end()

    before = signal.signal(signal.SIGUSR1, lambda *_: stopped.set())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        late.start()
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        assert queue.get() is None
        thread.join()
    finally:
        late.cancel()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)
