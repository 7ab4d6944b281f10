"""Another threshold for a fitted detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amiss.errors import CalibrationError, DataError, ImageError, LeakageError, OptionError
from amiss.evaluation import evaluate
from amiss.methods.patchcore import PatchCore
from amiss.predict import predict_records
from amiss.recalibrate import recalibrate
from amiss.runtime import as_runtime
from amiss.types import Record
from made_images import textures, write


def scores_of(detector: PatchCore, folder: Path) -> list[float]:
    found = detector.predict(sorted(folder.rglob("*.png")))
    assert isinstance(found, list)
    return [r.score for r in found]


def test_another_rate_needs_no_images(detector: PatchCore) -> None:
    before = detector.calibration
    assert before is not None
    changed = recalibrate(detector, max_false_alarm=0.4)
    assert detector.calibration is changed
    assert changed.threshold == before.scores[-5]  # floor(0.4 * 13) = 5
    assert changed.threshold < before.threshold
    assert np.array_equal(changed.scores, before.scores)


def test_a_threshold_by_hand(detector: PatchCore) -> None:
    changed = recalibrate(detector, threshold=0.0)
    assert changed.threshold == 0 and changed.policy == "manual"
    assert changed.alpha == pytest.approx(13 / 13)


def test_full_recall_catches_every_labelled_anomaly(detector: PatchCore, labelled: Path) -> None:
    changed = recalibrate(detector, policy="recall=1", labelled=str(labelled / "test"))
    bad = scores_of(detector, labelled / "test" / "scratch")
    bad += scores_of(detector, labelled / "test" / "hole")
    assert min(bad) > changed.threshold
    assert changed.policy == "recall"


@pytest.mark.parametrize(
    ("policy", "name"),
    [("f1", "f1"), ("F1", "f1"), ("cost 1:10", "cost 1:10"), ("cost=2:0.5", "cost 2:0.5")],
)
def test_policies_are_read_and_named(
    detector: PatchCore, labelled: Path, policy: str, name: str
) -> None:
    changed = recalibrate(detector, policy=policy, labelled=str(labelled / "test"))
    assert changed.policy == name and "6 labelled anomalous" in changed.notes[0]


def test_labelled_images_are_remembered_as_seen(detector: PatchCore, labelled: Path) -> None:
    recalibrate(detector, policy="f1", labelled=str(labelled / "test"))
    assert len(detector.labelled_digests) == 12 and len(detector.training_digests) == 12


def test_the_policy_may_be_changed_on_the_same_images(detector: PatchCore, labelled: Path) -> None:
    recalibrate(detector, policy="f1", labelled=str(labelled / "test"))
    changed = recalibrate(detector, policy="recall", labelled=str(labelled / "test"))
    assert changed.policy == "recall"


def test_images_of_the_fit_may_not_choose_the_threshold(
    detector: PatchCore, labelled: Path
) -> None:
    before = detector.calibration
    with pytest.raises(LeakageError, match="12 of these images"):
        recalibrate(detector, policy="f1", labelled=str(labelled))
    assert detector.calibration is before and len(detector.training_digests) == 12


@pytest.mark.parametrize("policy", ["best", "recall=2", "cost", "cost 1", "cost 1:x", ""])
def test_a_policy_nobody_knows_is_refused(detector: PatchCore, labelled: Path, policy: str) -> None:
    with pytest.raises(OptionError, match="not known"):
        recalibrate(detector, policy=policy, labelled=str(labelled / "test"))


def test_the_labelled_images_may_have_a_region_of_interest(
    detector: PatchCore, labelled: Path, tmp_path: Path
) -> None:
    roi = np.zeros((60, 80), np.uint8)
    roi[:, :20] = 255
    path = write(roi, tmp_path / "roi.png")
    changed = recalibrate(detector, policy="recall", labelled=str(labelled / "test"), roi=path)
    records = [Record(p) for p in (labelled / "test").rglob("*/*.png") if "good" not in p.parts]
    found = [r.score for _, r in predict_records(as_runtime(detector), records, roi=path)]
    everywhere = [r.score for _, r in predict_records(as_runtime(detector), records)]
    assert changed.threshold < min(found) < min(everywhere)
    with pytest.raises(ImageError, match=r"gone\.png"):
        recalibrate(
            detector, policy="f1", labelled=str(labelled / "test"), roi=tmp_path / "gone.png"
        )


def test_the_layout_of_the_labelled_images_may_be_named(
    detector: PatchCore, labelled: Path
) -> None:
    folder = str(labelled / "test")
    changed = recalibrate(detector, policy="f1", labelled=folder, layout="two_folder")
    assert changed.policy == "f1"
    with pytest.raises(CalibrationError, match="anomalous"):  # all are normal in that layout
        recalibrate(detector, policy="f1", labelled=folder, layout="nested")
    with pytest.raises(OptionError, match="no layout"):
        recalibrate(detector, policy="f1", labelled=folder, layout="heap")


def test_what_is_about_labelled_images_is_refused_without_a_policy(detector: PatchCore) -> None:
    before = detector.calibration
    for name in ("labelled", "roi", "layout"):
        with pytest.raises(OptionError, match=f"{name} is for labelled"):
            recalibrate(detector, threshold=1.0, **{name: "flat"})  # type: ignore[arg-type]
    assert detector.calibration is before


def test_exactly_one_way_is_taken(detector: PatchCore) -> None:
    for ways in ({}, {"threshold": 1.0, "max_false_alarm": 0.1}, {"policy": "f1", "threshold": 1}):
        with pytest.raises(OptionError, match="one of"):
            recalibrate(detector, **ways)  # type: ignore[arg-type]


def test_a_policy_needs_images_with_labels_and_anomalies(
    detector: PatchCore, normals: Path, labelled: Path
) -> None:
    with pytest.raises(OptionError, match="needs labelled"):
        recalibrate(detector, policy="f1")
    with pytest.raises(CalibrationError, match="anomalous"):
        recalibrate(detector, policy="f1", labelled=str(labelled / "test" / "good"))
    with pytest.raises(DataError):
        recalibrate(detector, policy="f1", labelled=str(normals / "nowhere"))


def test_without_a_calibration_there_is_nothing_to_change(detector: PatchCore) -> None:
    detector.calibration = None
    with pytest.raises(CalibrationError, match="no calibration"):
        recalibrate(detector, threshold=1.0)


# --- new normals -----------------------------------------------------------------------------


def test_new_normals_take_the_place_of_the_held_out_ones(
    detector: PatchCore, tmp_path: Path
) -> None:
    folder = textures(tmp_path / "camera_2", 9, seed=80)
    before = detector.calibration
    changed = recalibrate(detector, normals=str(folder))
    assert before is not None and changed.max_false_alarm == before.max_false_alarm == 0.1
    np.testing.assert_allclose(changed.scores, sorted(scores_of(detector, folder)), rtol=1e-6)
    maps = detector.predict(sorted(folder.iterdir()))
    assert isinstance(maps, list) and changed.map_maxima is not None and len(maps) == 9
    assert len(detector.labelled_digests) == 9 and "camera_2" in changed.how
    with pytest.raises(LeakageError, match="threshold was chosen"):
        evaluate(detector, folder)


def test_normals_of_the_fit_cannot_set_the_threshold_again(
    detector: PatchCore, normals: Path
) -> None:
    before = detector.calibration
    with pytest.raises(LeakageError, match="12 of these images"):
        recalibrate(detector, normals=str(normals), max_false_alarm=0.2)
    assert detector.calibration is before


def test_normals_go_with_a_rate_alone(detector: PatchCore, normals: Path) -> None:
    with pytest.raises(OptionError, match="false-alarm rate alone"):
        recalibrate(detector, normals=str(normals), threshold=1.0)
