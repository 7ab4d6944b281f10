"""The judgement of a detector: what is counted, what is left out, and what is said."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import amiss
from amiss.artifact import read_manifest
from amiss.calibration import with_threshold
from amiss.data import restore_map, stream
from amiss.data.index import index
from amiss.errors import DataError, ImageError, LeakageError
from amiss.evaluation import Report, add_evidence, evaluate
from amiss.methods.patchcore import PatchCore
from amiss.metrics import region_list
from amiss.recalibrate import recalibrate
from amiss.report.gallery import pictured
from amiss.report.page import write_page
from amiss.types import ANOMALOUS, NORMAL, Record
from commands import amiss as run_amiss
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


def test_what_guessing_is_worth_is_said(report: Report) -> None:
    """Of six anomalous images among twelve: AP 1/2, F1 with all called anomalous 2/3."""
    assert any(
        "50% of the test images are anomalous" in note and "AP of about 0.50" in note
        and "F1 of 0.67" in note for note in report.notes
    )  # fmt: skip
    assert list(report.operating_point["recall_by_kind"]) == ["hole", "scratch"]


@pytest.mark.filterwarnings("ignore::amiss.errors.TrainingWarning")
def test_a_collapsed_generator_is_told_with_the_figures(labelled: Path) -> None:
    options = {"image_size": (16, 32), "width": 4, "latent_dim": 4, "epochs": 1, "batch_size": 4}
    detector = amiss.DCGAN(**options).fit(labelled, max_false_alarm=0.4)
    detector.facts["sample_diversity"] = 0.04
    assert any("(mode collapse)" in note and "4.0%" in note for note in
               evaluate(detector, labelled).notes)  # fmt: skip
    detector.facts["sample_diversity"] = 0.4
    assert not any("collapse" in note for note in evaluate(detector, labelled).notes)


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
    with pytest.raises(LeakageError, match="seen all 12"):
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
    unlabelled = [Record(path, None, split="test") for path in normals.iterdir()]
    with pytest.raises(DataError, match="no labelled test image"):
        evaluate(detector, unlabelled)


def test_what_was_fitted_on_alone_cannot_be_judged(tiny: dict[str, Any], normals: Path) -> None:
    detector = PatchCore(**tiny).fit(normals, max_false_alarm=0.1)
    with pytest.raises(LeakageError, match="learned from all images"):
        evaluate(detector, normals)


def test_normals_alone_show_the_false_alarms(detector: PatchCore, tmp_path: Path) -> None:
    found = evaluate(detector, textures(tmp_path / "held_back", 9, seed=50))
    assert found.operating_point["n_normal"] == len(found.judged) == 9
    assert found.metrics == {} and any("All test images are normal" in n for n in found.notes)


def test_a_set_without_a_split_is_judged_whole_but_for_what_was_seen(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    textures(tmp_path / "line" / "good", 20, seed=51)
    textures(tmp_path / "line" / "bad", 3, seed=52, defects=True)
    detector = PatchCore(**tiny).fit(tmp_path / "line", max_false_alarm=0.1)
    again = evaluate(detector, tmp_path / "line")
    assert again.operating_point["n_normal"] == 4 and again.dataset["left_out_as_seen"] == 0
    shutil.copytree(tmp_path / "line", tmp_path / "copy")  # other names, the same content
    textures(tmp_path / "copy" / "ok", 5, seed=53)
    copied = evaluate(detector, tmp_path / "copy")
    assert copied.operating_point["n_normal"] == 9 and copied.dataset["left_out_as_seen"] == 16
    assert {row.path.parent.name for row in copied.judged} == {"good", "ok", "bad"}


def test_an_interval_that_says_nothing_is_not_printed(detector: PatchCore, labelled: Path) -> None:
    records = [r for r in index(labelled).test if r.kind in ("good", "hole")]
    found = evaluate(detector, records)
    assert found.metrics["image_auroc"] == 1.0
    assert any("Every resample" in note for note in found.notes)
    assert "image_auroc     1.0000\n" in found.describe()


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


# --- regions, masks, and what is kept --------------------------------------------------------


def test_regions_are_listed_only_for_the_images_that_are_shown(
    artifact: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[float] = []
    original = region_list
    monkeypatch.setattr(
        "amiss.predict.region_list",
        lambda found, threshold: listed.append(threshold) or original(found, threshold),
    )
    model = amiss.load(artifact)
    found = evaluate(model, labelled)
    assert found.describe() and found.as_dict() and not listed
    found.judged = found.judged * 4  # as of a large set, of which the page shows a part
    shown = {id(row) for row in pictured(found)}
    assert 0 < len(shown) < 12
    write_page(model, found, tmp_path / "page.html")
    assert len(listed) == len(shown)
    for row in found.judged[:12]:
        whole = model.predict(row.path)
        assert not isinstance(whole, list) and row.map is not None and row.geometry is not None
        assert row.result.score == pytest.approx(whole.score, rel=1e-5)
        assert (row.result.p_value, row.result.is_anomalous) == (whole.p_value, whole.is_anomalous)
        threshold = found.operating_point["pixel_threshold"]
        assert row.result.regions == original(restore_map(row.map, row.geometry), threshold)
    assert any(row.result.regions for row in found.judged)
    assert len(listed) == 12 + 12  # each of ours once, each of predict's once


def test_regions_of_a_deferred_result_can_be_replaced_copied_and_pickled(report: Report) -> None:
    row = next(row for row in report.judged if row.result.is_anomalous)
    again = pickle.loads(pickle.dumps(row.result))
    assert again == row.result == copy.deepcopy(row.result) and again.regions
    again.regions = []
    assert again.regions == [] and again != row.result


def test_several_masks_of_an_image_are_one_truth(
    detector: PatchCore, labelled: Path, tmp_path: Path, report: Report
) -> None:
    records = []
    for record in index(labelled).test:
        parts = []
        for path in record.masks:
            whole = np.array(Image.open(path))
            for number, half in enumerate((slice(0, 40), slice(36, 80))):
                part = np.zeros_like(whole)
                part[:, half] = whole[:, half]
                name = f"{record.path.parent.name}_{record.path.stem}_{number}.png"
                parts.append(write(part, tmp_path / "masks" / name))
        records.append(replace(record, mask=tuple(parts) or None))
    found = evaluate(detector, records)
    assert found.metrics == pytest.approx(report.metrics)
    page = write_page(detector, found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "truth" in page and "could not be read" not in page
    write(np.full((30, 40), 255, np.uint8), tmp_path / "masks" / "hole_000_1.png")
    with pytest.raises(ImageError, match=r"hole_000_1\.png: is 30 x 40"):
        evaluate(detector, records)


def test_a_save_after_an_evaluation_keeps_its_metrics(
    detector: PatchCore, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detector.metrics == {}
    found = evaluate(detector, labelled)
    expected = {"dataset": labelled.name, **found.metrics}
    path = detector.save(tmp_path / "judged.amiss")
    assert detector.metrics == read_manifest(path)["metrics"] == expected
    assert amiss.load(path).metrics == expected
    assert run_amiss(capsys, "inspect", path, "--json").json["metrics"] == expected
    text = run_amiss(capsys, "inspect", path).out
    assert labelled.name in text and f"{found.metrics['aupro']:.6g}" in text
    with pytest.raises(DataError):  # what cannot be judged leaves what was
        evaluate(detector, [Record(labelled / "gone.png", split="test")])
    assert detector.metrics == expected
    assert detector.fit(labelled).metrics == {}


def test_one_roi_for_all_images_is_read_once(
    detector: PatchCore, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(np.full((60, 80), 255, np.uint8), tmp_path / "roi.png")
    reads: list[Path] = []
    original = stream.read_mask
    monkeypatch.setattr(stream, "read_mask", lambda p: reads.append(p) or original(p))
    found = evaluate(detector, labelled, roi=path)
    assert reads == [path] and {row.roi for row in found.judged} == {path}
