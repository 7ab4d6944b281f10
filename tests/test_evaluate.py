"""The judgement of a detector: what is counted, what is left out, and what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import amiss
from amiss.calibration import with_threshold
from amiss.data.index import index
from amiss.errors import DataError, LeakageError
from amiss.evaluation import Report, add_evidence, evaluate
from amiss.methods.patchcore import PatchCore
from amiss.recalibrate import recalibrate
from amiss.types import ANOMALOUS, NORMAL, Record
from made_images import textures, write


@pytest.fixture(scope="module")
def report(artifact: Path, labelled: Path) -> Report:
    return evaluate(amiss.load(artifact), labelled)


# --- metrics ---------------------------------------------------------------------------------


def test_the_image_metrics_are_those_of_scikit_learn(report: Report) -> None:
    assert report.labels.tolist().count(NORMAL) == 6
    assert report.labels.tolist().count(ANOMALOUS) == 6
    expected = roc_auc_score(report.labels, report.scores)
    assert report.metrics["image_auroc"] == pytest.approx(expected)
    expected = average_precision_score(report.labels, report.scores)
    assert report.metrics["image_ap"] == pytest.approx(expected)
    for name in ("image_auroc", "image_ap", "image_f1_max"):
        low, high = report.intervals[name]
        assert 0 <= low <= report.metrics[name] <= high <= 1


def test_the_pixel_metrics_are_computed_at_the_input_size(report: Report) -> None:
    assert {"pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"} <= report.metrics.keys()
    scores, truth = [], []
    for row in report.judged:
        assert row.map is not None and row.map.shape == (48, 64)
        mask = np.zeros((48, 64), dtype=bool)
        if row.mask is not None:
            rows = (2 * np.arange(48) + 1) * 60 // 96
            columns = (2 * np.arange(64) + 1) * 80 // 128
            mask = np.array(Image.open(row.mask))[rows[:, None], columns] > 127
        scores.append(row.map.ravel())
        truth.append(mask.ravel())
    expected = roc_auc_score(np.concatenate(truth), np.concatenate(scores))
    assert report.metrics["pixel_auroc"] == pytest.approx(expected)
    assert report.metrics["pixel_auroc"] > 0.8


def test_without_masks_there_are_no_pixel_metrics(
    detector: PatchCore, labelled: Path, tmp_path: Path
) -> None:
    shutil.copytree(labelled / "test", tmp_path / "test")
    textures(tmp_path / "train" / "good", 1, seed=77)
    found = evaluate(detector, tmp_path)
    assert set(found.metrics) == {"image_auroc", "image_ap", "image_f1_max"}
    assert "pro" not in found.curves


def test_anomalies_without_a_mask_count_in_image_metrics_only(
    detector: PatchCore, labelled: Path, tmp_path: Path, report: Report
) -> None:
    root = tmp_path / "some"
    shutil.copytree(labelled, root)
    shutil.rmtree(root / "ground_truth" / "hole")
    found = evaluate(detector, root)
    assert found.metrics["image_auroc"] == pytest.approx(report.metrics["image_auroc"])
    assert found.metrics["pixel_auroc"] != report.metrics["pixel_auroc"]
    assert any(note.startswith("2 anomalous images have no mask") for note in found.notes)


def test_masks_that_are_all_black_are_noted(
    detector: PatchCore, labelled: Path, tmp_path: Path
) -> None:
    root = tmp_path / "black"
    shutil.copytree(labelled, root)
    for path in (root / "ground_truth").rglob("*.png"):
        write(np.zeros((60, 80), np.uint8), path)
    found = evaluate(detector, root)
    assert "pixel_auroc" not in found.metrics
    assert any("masks are empty" in note for note in found.notes)


@pytest.mark.parametrize(("label", "word"), [(0, "normal"), (1, "anomalous")])
def test_of_one_label_alone_no_metric_exists_and_a_note_says_so(
    detector: PatchCore, labelled: Path, label: int, word: str
) -> None:
    records = [r for r in index(labelled).test if r.label == label]
    found = evaluate(detector, records)
    assert not any(name.startswith("image_") for name in found.metrics)
    assert any(f"are {word}" in note for note in found.notes)
    assert len(found.judged) == 6
    point = found.operating_point
    assert (point["recall"] is None) == (label == 0)
    assert (point["false_alarm_rate"] is None) == (label == 1)


# --- the operating point ---------------------------------------------------------------------


def test_the_operating_point_counts_by_hand(detector: PatchCore, labelled: Path) -> None:
    scores = {row.path: row.result.score for row in evaluate(detector, labelled).judged}
    normal = sorted(s for p, s in scores.items() if p.parent.name == "good")
    threshold = (normal[-2] + normal[-1]) / 2  # one normal image above
    assert detector.calibration is not None
    detector.calibration = with_threshold(detector.calibration, threshold)
    point = evaluate(detector, labelled).operating_point
    assert point["threshold"] == threshold and point["policy"] == "manual"
    assert (point["false_alarms"], point["n_normal"]) == (1, 6)
    assert point["false_alarm_rate"] == pytest.approx(1 / 6)
    caught = {
        kind: sum(s > threshold for p, s in scores.items() if p.parent.name == kind)
        for kind in ("scratch", "hole")
    }
    assert point["recall_by_kind"] == {
        "scratch": [caught["scratch"], 4],
        "hole": [caught["hole"], 2],
    }
    assert point["detected"] == sum(caught.values()) and point["n_anomalous"] == 6
    assert point["recall"] == pytest.approx(sum(caught.values()) / 6)
    assert point["n_calibration"] == 12
    assert point["false_alarm_interval"] is None  # nothing is promised for a manual threshold


def test_decisions_do_not_depend_on_the_labels(report: Report) -> None:
    for row in report.judged:
        threshold = report.operating_point["threshold"]
        assert row.result.is_anomalous == (row.result.score > threshold)


def test_without_a_calibration_nothing_is_decided(
    normals: Path, labelled: Path, tiny: dict[str, Any]
) -> None:
    found = evaluate(PatchCore(**tiny).fit([normals / "000.png"]), labelled)
    assert found.operating_point["threshold"] is None
    assert found.metrics["image_auroc"] > 0 and found.display is None
    assert found.describe()


# --- leakage ---------------------------------------------------------------------------------


def test_training_images_in_the_test_set_are_left_out(
    detector: PatchCore, labelled: Path, tmp_path: Path, report: Report
) -> None:
    root = tmp_path / "leaky"
    shutil.copytree(labelled, root)
    for i in range(3):  # under other names: the content counts
        shutil.copy(labelled / "train" / "good" / f"{i:03}.png", root / "test/good" / f"z{i}.png")
    found = evaluate(detector, root)
    assert found.dataset["left_out_as_seen"] == 3 and found.dataset["judged"] == 12
    assert any(note.startswith("3 test images were left out") for note in found.notes)
    assert found.metrics == pytest.approx(report.metrics)


def test_a_test_set_that_was_all_seen_is_refused(detector: PatchCore, labelled: Path) -> None:
    records = [Record(r.path, NORMAL, split="test") for r in index(labelled).train]
    with pytest.raises(LeakageError, match="All 12"):
        evaluate(detector, records)


def test_images_that_chose_the_threshold_are_left_out_afterwards(
    detector: PatchCore, labelled: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    for kind, names in (("good", ("000", "001")), ("scratch", ("000", "001"))):
        for name in names:
            (mine / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(labelled / "test" / kind / f"{name}.png", mine / kind)
    recalibrate(detector, policy="recall", labelled=str(mine))
    again = amiss.load(detector.save(tmp_path / "tuned.amiss"))
    for model in (detector, again):
        found = evaluate(model, labelled)
        assert found.dataset["left_out_as_seen"] == 4 and len(found.judged) == 8
        left = {(row.path.parent.name, row.path.stem) for row in found.judged}
        assert ("good", "000") not in left and ("scratch", "001") not in left
        assert any("labelled anomalous images" in note for note in found.notes)


def test_another_crop_of_a_training_file_is_another_image(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    textures(tmp_path, 3, seed=5, size=(60, 160))
    crops = [(0, 0, 60, 80), (0, 80, 60, 80)]
    paths = sorted(tmp_path.iterdir())
    fitted = PatchCore(**tiny).fit([Record(p, NORMAL, split="train", crop=crops[0]) for p in paths])
    test = [Record(p, NORMAL, split="test", crop=crop) for p in paths for crop in crops]
    found = evaluate(fitted, test)
    assert found.dataset["left_out_as_seen"] == 3
    assert {row.crop for row in found.judged} == {crops[1]}


# --- errors, regions of interest, and what is handed over ------------------------------------


def test_nothing_labelled_is_a_named_error(detector: PatchCore, normals: Path) -> None:
    with pytest.raises(DataError, match="no labelled test image"):
        evaluate(detector, normals)


def test_a_mask_of_another_size_is_a_named_error(
    detector: PatchCore, labelled: Path, tmp_path: Path
) -> None:
    root = tmp_path / "sizes"
    shutil.copytree(labelled, root)
    write(np.full((30, 40), 255, np.uint8), root / "ground_truth" / "hole" / "000_mask.png")
    with pytest.raises(DataError, match="30 x 40"):
        evaluate(detector, root)


def test_pixels_outside_the_roi_count_in_no_metric(
    detector: PatchCore, labelled: Path, tmp_path: Path
) -> None:
    roi = np.zeros((60, 80), np.uint8)
    roi[:, :40] = 255
    found = evaluate(detector, labelled, roi=write(roi, tmp_path / "roi.png"))
    scores, truth = [], []
    for row in found.judged:
        assert row.map is not None and not row.map[:, 32:].any()
        mask = np.zeros((48, 64), dtype=bool)
        if row.mask is not None:
            rows = (2 * np.arange(48) + 1) * 60 // 96
            columns = (2 * np.arange(64) + 1) * 80 // 128
            mask = np.array(Image.open(row.mask))[rows[:, None], columns] > 127
        scores.append(row.map[:, :32].ravel())
        truth.append(mask[:, :32].ravel())
    expected = roc_auc_score(np.concatenate(truth), np.concatenate(scores))
    assert found.metrics["pixel_auroc"] == pytest.approx(expected)


def test_the_report_is_plain_json(report: Report) -> None:
    again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert again["metrics"] == report.metrics
    assert again["n_normal"] == 6 and again["peak_memory_mib"] > 0
    assert again["seconds"] >= again["timings"]["scoring"]
    assert again["detector"]["method"] == "patchcore"


def test_the_text_names_every_metric_and_kind(report: Report) -> None:
    text = report.describe()
    for name in (*report.metrics, "scratch", "hole", "threshold", "false alarms"):
        assert name in text


def test_evidence_names_a_training_patch_inside_its_image(artifact: Path, labelled: Path) -> None:
    model = amiss.load(artifact)
    found = evaluate(model, labelled)
    some = [row for row in found.judged if row.label == ANOMALOUS][:3]
    add_evidence(model, some)
    for row in some:
        assert row.nearest is not None
        assert Path(row.nearest["path"]).is_relative_to(labelled / "train" / "good")
        for top, left, bottom, right in (row.nearest["box"], row.nearest["query_box"]):
            assert 0 <= top < bottom <= 60 and 0 <= left < right <= 80
        assert row.nearest["distance"] > 0
