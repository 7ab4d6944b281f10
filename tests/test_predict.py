"""From images to decisions."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import amiss
from amiss.data.geometry import Geometry
from amiss.errors import ArtifactError, ImageError, NotFittedError, OptionError
from amiss.methods.patchcore import PatchCore
from amiss.predict import combine, predict, predict_records, result
from amiss.runtime import TorchRuntime, as_runtime
from amiss.types import ImageResult, Record
from made_images import DEFECT_PX, SIZE, spoil, texture, textures, write


def one(found: ImageResult | list[ImageResult]) -> ImageResult:
    assert isinstance(found, ImageResult)
    return found


def test_a_path_and_its_pixels_are_judged_alike(detector: PatchCore, labelled: Path) -> None:
    path = labelled / "test" / "good" / "000.png"
    from_path = one(detector.predict(path))
    from_text = one(detector.predict(str(path)))
    from_pixels = one(detector.predict(np.array(Image.open(path))))
    assert from_path.path == path and from_pixels.path is None
    for other in (from_text, from_pixels):
        assert other.score == pytest.approx(from_path.score, rel=1e-6)
        assert other.p_value == from_path.p_value
        np.testing.assert_allclose(other.anomaly_map, from_path.anomaly_map, rtol=1e-5)


def test_gray_pixels_of_two_axes_are_taken(detector: PatchCore) -> None:
    gray = np.full(SIZE, 110, np.uint8)
    assert one(detector.predict(gray)).score == one(detector.predict(gray[:, :, None])).score


def test_a_list_gives_a_list_in_order(detector: PatchCore, labelled: Path) -> None:
    paths = sorted((labelled / "test" / "scratch").iterdir())
    pixels = np.full((*SIZE, 3), 110, np.uint8)
    found = detector.predict([paths[1], pixels, paths[0]])
    assert isinstance(found, list)
    assert [r.path for r in found] == [paths[1], None, paths[0]]
    assert found[0].score == one(detector.predict(paths[1])).score
    assert detector.predict([]) == []


def test_the_map_has_the_size_of_the_original(detector: PatchCore) -> None:
    for size in ((60, 80), (33, 121), (48, 64), (200, 20), (1, 1)):
        found = one(detector.predict(np.full((*size, 3), 99, np.uint8)))
        assert found.anomaly_map is not None
        assert found.anomaly_map.shape == size and found.anomaly_map.dtype == np.float32


def test_a_defect_is_called_anomalous_and_boxed_where_it_is(detector: PatchCore) -> None:
    image = texture(np.random.default_rng(50))
    spoil(image, 20, 40)
    found = one(detector.predict(image))
    assert found.is_anomalous and found.p_value == pytest.approx(1 / 13)
    region = found.regions[0]
    top, left, bottom, right = region.box
    assert top < 20 + DEFECT_PX and bottom > 20 and left < 40 + DEFECT_PX and right > 40
    assert top <= region.peak_at[0] < bottom and left <= region.peak_at[1] < right
    assert region.peak == pytest.approx(float(found.anomaly_map[region.peak_at]))
    assert 0 < region.area_px <= (bottom - top) * (right - left)


def test_the_decision_follows_the_p_value(detector: PatchCore, labelled: Path) -> None:
    calibration = detector.calibration
    assert calibration is not None
    paths = sorted((labelled / "test").rglob("*.png"))
    found = detector.predict(paths)
    assert isinstance(found, list)
    for r in found:
        assert r.p_value == calibration.p_values([r.score])[0]
        assert r.is_anomalous == (r.p_value <= calibration.alpha + 1e-12)
    assert {r.is_anomalous for r in found} == {True, False}


def test_another_threshold_changes_decisions_and_not_scores(
    detector: PatchCore, labelled: Path
) -> None:
    from amiss.calibration import with_threshold

    path = labelled / "test" / "scratch" / "000.png"
    before = one(detector.predict(path))
    assert detector.calibration is not None and before.is_anomalous
    detector.calibration = with_threshold(detector.calibration, before.score)
    after = one(detector.predict(path))
    assert after.score == before.score and after.is_anomalous is False  # above, not at


def test_a_result_is_plain_json(detector: PatchCore, labelled: Path) -> None:
    found = one(detector.predict(labelled / "test" / "hole" / "000.png"))
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again["path"].endswith("hole/000.png") and again["is_anomalous"] is True
    assert again["regions"][0]["area_px"] == found.regions[0].area_px
    assert "anomaly_map" not in again


def test_the_files_of_a_list_are_judged_in_batches(detector: PatchCore, labelled: Path) -> None:
    runtime = as_runtime(detector)
    sizes: list[int] = []

    class Counting(TorchRuntime):
        def __call__(self, images: Any, rois: Any) -> Any:
            sizes.append(len(images))
            return runtime(images, rois)

    paths = sorted((labelled / "test").rglob("*.png"))
    mixed = [*paths[:5], np.full((*SIZE, 3), 110, np.uint8), *paths[5:]]
    found = predict(Counting(detector), mixed)
    assert isinstance(found, list)
    assert [r.path for r in found] == [*paths[:5], None, *paths[5:]]
    assert sorted(sizes) == [1, 4, 8]
    for r, path in zip(found[:5], paths, strict=False):
        assert r.score == pytest.approx(one(detector.predict(path)).score, rel=1e-5)


def test_a_list_with_something_unreadable_raises_and_leaves_no_thread(
    detector: PatchCore, normals: Path, tmp_path: Path
) -> None:
    paths = sorted(normals.iterdir())
    for bad in (tmp_path / "gone.png", np.zeros((4, 4, 3))):
        with pytest.raises(ImageError):
            detector.predict([*paths[:2], bad, *paths[2:]])
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("amiss-decode")]


def test_nobody_asks_for_digests_and_none_are_computed(
    detector: PatchCore, normals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(*_: object) -> bytes:
        raise AssertionError("a digest was computed")

    monkeypatch.setattr("amiss.data.stream.digest", hashed)
    assert one(detector.predict(normals / "000.png")).score > 0
    with pytest.raises(AssertionError, match="digest"):
        amiss.evaluate(detector, [Record(normals / "000.png", 0, split="test")])


# --- records ---------------------------------------------------------------------------------


def test_records_come_back_in_order_in_any_batches(detector: PatchCore, labelled: Path) -> None:
    runtime = as_runtime(detector)
    records = [Record(p) for p in sorted((labelled / "test").rglob("*.png"))]
    expected = [one(detector.predict(r.path)) for r in records]
    for batch_size in (1, 5, 64):
        found = list(predict_records(runtime, records, batch_size=batch_size))
        assert [record for record, _ in found] == records
        for (_, r), e in zip(found, expected, strict=True):
            assert r.score == pytest.approx(e.score, rel=1e-5)
            assert r.is_anomalous == e.is_anomalous


def test_an_unreadable_file_raises_or_is_handed_over(
    detector: PatchCore, normals: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    records = [Record(normals / "000.png"), Record(bad), Record(normals / "001.png")]
    runtime = as_runtime(detector)
    with pytest.raises(ImageError, match=r"bad\.png"):
        list(predict_records(runtime, records))
    skipped: list[Path] = []
    found = list(
        predict_records(runtime, records, on_error=lambda record, _: skipped.append(record.path))
    )
    assert [r.path for r, _ in found] == [records[0].path, records[2].path]
    assert skipped == [bad]


def test_a_crop_is_judged_like_the_part_cut_out(detector: PatchCore, tmp_path: Path) -> None:
    image = texture(np.random.default_rng(5), (60, 200))
    path = write(image, tmp_path / "strip.png")
    record = Record(path, crop=(0, 90, 60, 80))
    ((_, found),) = predict_records(as_runtime(detector), [record])
    expected = one(detector.predict(np.ascontiguousarray(image[:, 90:170])))
    assert found.score == pytest.approx(expected.score, rel=1e-5)
    assert found.anomaly_map is not None and found.anomaly_map.shape == (60, 80)


# --- regions of interest ---------------------------------------------------------------------


def left_half(path: Path) -> Path:
    roi = np.zeros(SIZE, np.uint8)
    roi[:, :40] = 255
    return write(roi, path)


def test_what_lies_outside_the_roi_of_a_call_is_not_judged(
    detector: PatchCore, tmp_path: Path
) -> None:
    image = texture(np.random.default_rng(8))
    spoil(image, 20, 62)
    record = Record(write(image, tmp_path / "x.png"))
    runtime = as_runtime(detector)
    ((_, whole),) = predict_records(runtime, [record])
    ((_, part),) = predict_records(runtime, [record], roi=left_half(tmp_path / "roi.png"))
    assert whole.is_anomalous and part.score < whole.score
    assert part.anomaly_map is not None and not part.anomaly_map[:, 44:].any()
    assert all(region.box[3] <= 44 for region in part.regions)


def test_the_roi_of_the_fit_and_of_the_call_hold_together(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    top = np.zeros(SIZE, np.uint8)
    top[:30] = 255
    fitted = PatchCore(**tiny).fit(labelled, roi=write(top, tmp_path / "top.png"))
    record = Record(labelled / "test" / "good" / "000.png")
    for batch in ([record], [record, record]):
        for _, found in predict_records(
            as_runtime(fitted), batch, roi=left_half(tmp_path / "left.png")
        ):
            assert found.anomaly_map is not None
            assert found.anomaly_map[5:25, 5:35].any()
            assert not found.anomaly_map[34:].any() and not found.anomaly_map[:, 44:].any()


def test_a_roi_thinner_than_a_patch_is_judged_by_the_patch_that_holds_it(
    detector: PatchCore, normals: Path, tmp_path: Path
) -> None:
    thin = np.zeros(SIZE, np.uint8)
    thin[30, 40] = 255
    path = write(thin, tmp_path / "thin.png")
    [(_, found)] = predict_records(as_runtime(detector), [Record(normals / "000.png")], roi=path)
    assert found.anomaly_map is not None
    assert found.score > 0 and found.anomaly_map.max() > 0


def test_letterbox_bars_are_not_judged(labelled: Path, tiny: dict[str, Any]) -> None:
    fitted = PatchCore(**(tiny | {"resize": "letterbox", "image_size": (64, 64)})).fit(labelled)
    found = one(fitted.predict(labelled / "test" / "scratch" / "000.png"))
    assert found.anomaly_map is not None and found.anomaly_map.shape == SIZE
    clean = one(fitted.predict(labelled / "test" / "good" / "000.png"))
    assert found.score > clean.score


def test_combined_regions_are_where_both_are() -> None:
    a, b = np.array([[True, True, False]]), np.array([[True, False, False]])
    assert combine(None, None) is None
    assert combine(a, None) is a and combine(None, b) is b
    both = combine(a, b)
    assert both is not None and both.tolist() == [[True, False, False]]


# --- errors and runtimes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "image", [None, 3, np.zeros((4, 4, 3)), np.zeros((2, 3, 4, 5), np.uint8), [[1, 2], [3, 4]]]
)
def test_what_is_no_image_is_a_named_error(detector: PatchCore, image: object) -> None:
    with pytest.raises(ImageError):
        detector.predict(image)


def test_a_folder_is_a_named_error(detector: PatchCore, normals: Path) -> None:
    with pytest.raises(ImageError):
        detector.predict(normals)


def test_an_unfitted_detector_says_so(tiny: dict[str, Any], normals: Path) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        PatchCore(**tiny).predict(normals / "000.png")


def test_a_runtime_stays_itself(detector: PatchCore, normals: Path) -> None:
    runtime = TorchRuntime(detector)
    assert as_runtime(runtime) is runtime
    assert (
        one(predict(runtime, normals / "000.png")).score
        == one(detector.predict(normals / "000.png")).score
    )


def test_what_is_no_exported_file_is_refused_by_name(tmp_path: Path) -> None:
    for suffix in (".onnx", ".xml"):
        path = tmp_path / f"part{suffix}"
        path.write_text("x")
        with pytest.raises(ArtifactError, match=suffix):
            amiss.load(path)


def test_a_result_without_calibration_decides_nothing(detector: PatchCore) -> None:
    runtime = TorchRuntime(detector)
    runtime.calibration = None
    geometry = Geometry((48, 64), (48, 64), "squash", (0, 0, 48, 64))
    found = result(runtime, None, 1.5, np.ones((48, 64), np.float32), geometry)
    assert found.score == 1.5 and found.p_value is None and found.is_anomalous is None
    assert found.regions == [] and found.anomaly_map is not None


def test_sixteen_bits_go_through_the_window_of_the_fit(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    folder = textures(tmp_path / "eight", 5, seed=3)
    deep = tmp_path / "deep"
    for path in folder.iterdir():
        gray = np.array(Image.open(path))[:, :, 0].astype(np.uint16) * 16
        write(gray, deep / path.name)
    fitted = PatchCore(**tiny).fit(deep, window="0:4080")
    path = deep / "000.png"
    eight = (np.array(Image.open(path)) // 16).astype(np.uint8)
    assert one(fitted.predict(path)).score == pytest.approx(
        one(fitted.predict(eight)).score, rel=1e-4
    )
    with pytest.raises(OptionError):
        PatchCore(**tiny).fit(deep, window="wide")
