"""The report page: what it says in every case, and what it must never do."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_report import (
    Elements,
    H,
    W,
    assert_self_contained,
    judged_row,
    report_of,
    text_of,
    write_image,
)
from PIL import Image

from amiss.data.geometry import fit_frame
from amiss.errors import DataError
from amiss.metrics import min_max
from amiss.outcome import Report
from amiss.report import write_report
from amiss.report.gallery import pictured
from amiss.report.html import render
from amiss.types import Region

MAX_PAGE_BYTES = 5_000_000
HOSTILE = "<script>alert(1)</script>.png"


def test_full_page_says_everything(full: Report, tmp_path: Path) -> None:
    path = write_report(full, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    words = text_of(page)
    assert path == tmp_path / "report.html"
    assert_self_contained(page)
    assert (
        "At the threshold set for at most 1 % false alarms (0.5 %–2.2 % expected), it caught 2 of "
        "3 anomalous images and raised 1 alarm on 4 normal ones." in words
    )
    assert "neither the model nor the threshold saw" in words
    for part in (
        "Image AUROC 0.9731 95 % interval 0.9100–0.9980",
        "Pixel AUROC 0.9642",
        "AU-PRO 0.9137",
        "Time 1.55 s",
        "Peak memory 512 MiB",
        "120 images, 0 above (0 %)",
        "4 images, 1 above (25 %)",
        "Realised false-alarm rate: 25 % of 4 normal test images",
        "7 maps of 32 × 48 px, 3 truth masks",
        "scratch 2 of 3 66.7 %",
        "False alarms 1",
        "Misses 1",
        "Highest-scoring anomalies 2",
        "Most typical normals 3",
        "true defect",
        "23 × 15 at 22, 15 345",
        "Compared with train/good/007.png, distance 2.750",
        "coreset_ratio 0.01",
        "Only 4 normal test images.",
    ):
        assert part in words, part
    # Verdict, figures, scores, curves, kinds, pictures, table, how: in this order.
    anchors = ["verdict", "cards", 'id="scores"', 'id="curves"', 'id="kinds"', 'id="gallery"']
    places = [page.index(f'"{a}"' if "=" not in a else a) for a in anchors]
    places += [page.index('id="images"'), page.index('id="made"')]
    assert places == sorted(places)


def test_mistakes_come_first_and_no_image_twice(full: Report) -> None:
    page = render(full)
    names = re.findall(r'<h4 class="name">(.*?)</h4>', page)
    names = [name.replace("<wbr>", "") for name in names]
    assert names[:3] == ["good/2.png", "scratch/1.png", "scratch/0.png"]
    assert names[-3:] == ["good/0.png", "good/1.png", "good/3.png"]
    assert len(set(names)) == len(names)


def test_accessible_structure(full: Report) -> None:
    found = Elements(render(full)).found
    assert all(attributes.get("alt") for tag, attributes in found if tag == "img")
    assert all(attributes.get("scope") for tag, attributes in found if tag == "th")
    for tag, attributes in found:
        if tag == "svg":
            assert attributes.get("aria-hidden") or attributes.get("aria-label")
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    targets = {a["href"][1:] for t, a in found if t == "a" and a.get("href")}  # type: ignore[index]
    assert len(ids) == len(set(ids))
    assert targets <= set(ids)


def test_an_interval_without_spread_is_not_sold_as_certainty(full: Report) -> None:
    full.metrics["image_auroc"] = 1.0
    full.intervals["image_auroc"] = (1.0, 1.0)
    words = text_of(render(full))
    assert "Image AUROC 1.0000 the same in every resample, so no interval" in words
    assert "1.0000–1.0000" not in words


def test_no_anomalous_images(tmp_path: Path) -> None:
    rows = [judged_row(write_image(tmp_path / "a" / f"{k}.png"), 0, 0.5 + k) for k in range(3)]
    page = render(report_of(rows))
    words = text_of(page)
    assert "it raised 1 alarm on 3 normal images; there were no anomalous images" in words
    assert "AUROC" not in words
    assert 'id="curves"' not in page
    assert 'id="kinds"' not in page
    assert "Test anomalies" not in words
    assert_self_contained(page)


def test_no_normal_test_images(tmp_path: Path) -> None:
    rows = [judged_row(write_image(tmp_path / "a" / f"{k}.png"), 1, 1.5 + k) for k in range(3)]
    words = text_of(render(report_of(rows)))
    assert "it caught 2 of 3 anomalous images; there were no normal images" in words
    assert "the false-alarm rate could not be checked" in words
    assert "Test normals 0" not in words


def test_no_maps(tmp_path: Path) -> None:
    rows = [
        judged_row(write_image(tmp_path / "a" / f"{k}.png"), k % 2, 1.0 + k, maps=False)
        for k in range(4)
    ]
    page = render(report_of(rows, display=None))
    words = text_of(page)
    assert "this detector scores whole images and gives no maps" in words
    assert "Pixel" not in words
    assert "Heat map" not in page
    assert 'class="scale"' not in page


def test_maps_but_no_masks_give_no_pixel_figures(tmp_path: Path) -> None:
    rows = [judged_row(write_image(tmp_path / "a" / f"{k}.png"), k % 2, 1.0 + k) for k in range(4)]
    words = text_of(render(report_of(rows)))
    assert "There are no pixel figures: the test images have no truth masks." in words
    assert "Pixel AUROC" not in words
    assert "AU-PRO" not in words
    assert "true defect" not in words


def test_no_calibration(tmp_path: Path) -> None:
    rows = [
        judged_row(write_image(tmp_path / "a" / f"{k}.png"), k % 2, 1.0 + k, threshold=None)
        for k in range(6)
    ]
    page = render(report_of(rows, threshold=None))
    words = text_of(page)
    assert "No threshold is set, so the detector ranks but does not decide" in words
    assert "97.3 % of all pairs" in words
    assert "Normal images that scored highest" in words
    assert "taken from these images' own maps" in words
    assert "false alarm " not in words
    assert 'class="threshold"' not in page


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("threshold", [2.0, None])
def test_one_image(tmp_path: Path, label: int, threshold: float | None) -> None:
    row = judged_row(write_image(tmp_path / "one.png"), label, 2.5, threshold=threshold)
    page = render(report_of([row], threshold=threshold))
    assert "one.png" in page
    assert "1 image" in text_of(page)
    assert_self_contained(page)


def test_no_image_at_all() -> None:
    words = text_of(render(report_of([])))
    assert "No image was judged" in words


def test_missing_files_leave_placeholders(full: Report) -> None:
    full.judged[4].path.unlink()
    assert full.judged[5].mask is not None
    full.judged[5].mask.unlink()
    assert full.judged[4].nearest is not None
    Path(full.judged[4].nearest["path"]).write_bytes(b"no image")
    page = render(full)
    words = text_of(page)
    assert "No picture: the file could not be read when this page was written." in words
    assert "The truth mask could not be read" in words
    assert "Compared with train/good/007.png, distance 2.750 (could not be read" in words
    assert "Heat map of scratch/0.png" in page  # the map alone is still worth showing


def test_file_names_and_all_text_are_escaped(tmp_path: Path) -> None:
    evil = write_image(tmp_path / "data" / HOSTILE)
    row = judged_row(evil, 1, 3.0)
    row.kind = '"><img src=x onerror=alert(2)>'
    row.nearest = {"path": str(evil), "box": (0, 0, 10, 10), "distance": 1.0}
    plain = judged_row(write_image(tmp_path / "data" / "plain.png"), 0, 0.5)
    report = report_of([row, plain], notes=["<b>note</b>"])
    report.operating_point["recall_by_kind"] = {row.kind: [1, 1]}
    report.dataset["name"] = "</title><script>alert(3)</script>"
    report.detector["config"] = {"<i>": "</dd><script>alert(4)</script>"}
    page = render(report)
    scripts = re.findall(r"<script", page)
    assert len(scripts) == 1
    assert "onerror=alert(2)>" not in page.replace("onerror=alert(2)&gt;", "")
    assert "&lt;script&gt;alert(1)&lt;/" in page
    assert "<b>note" not in page
    assert [tag for tag, _ in Elements(page).found].count("script") == 1
    assert_self_contained(page)


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"broken\xff.png")
    try:
        write_image(path)
    except OSError:
        pytest.skip("this file system allows only UTF-8 names")
    other = judged_row(write_image(tmp_path / "b.png"), 0, 0.5)
    written = write_report(report_of([judged_row(path, 1, 3.0), other]), tmp_path / "r.html")
    assert "broken\ufffd.png" in written.read_text(encoding="utf-8")


def test_security_policy_names_the_inline_style_and_script(full: Report) -> None:
    page = render(full)
    policy = next(
        attributes["content"] or ""
        for tag, attributes in Elements(page).found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_five_thousand_images(tmp_path: Path) -> None:
    files = []
    for k in range(6):  # noise: the worst case for JPEG
        path = tmp_path / "data" / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (330, 330, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, compress_level=1)
        files.append(path)
    scores = np.random.default_rng(3).normal(1.8, 0.8, 5000)
    rows = [judged_row(files[k % 6], k % 2, float(scores[k])) for k in range(5000)]
    path = write_report(report_of(rows), tmp_path / "big.html")
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < MAX_PAGE_BYTES
    assert page.count("<tr><td") >= 5000
    shown = page.count('<article class="case')
    assert 8 <= shown <= 30
    assert re.search(r"Showing 8; \d{3,} more are in the table below", text_of(page))


def test_many_regions_and_strips(tmp_path: Path) -> None:
    strip = write_image(tmp_path / "strip.png", size=(40, 400))
    rows = []
    for left in (0, 40):
        row = judged_row(strip, 1, 3.0 + left)
        row.crop = (0, left, 40, 40)
        row.result.regions = [
            Region((k, k, k + 3, k + 4), 12, 2.0 + k, (k, k)) for k in range(0, 32, 4)
        ]
        rows.append(row)
    words = text_of(render(report_of(rows)))
    assert "strip.png [0, 40]" in words
    assert "8 regions above the pixel threshold" in words
    assert "and 3 with lower peaks, not drawn" in words


def test_letterbox_bars_are_cut_from_the_map(tmp_path: Path) -> None:
    image = np.full((100, 300, 3), 90, np.uint8)
    Image.fromarray(image).save(tmp_path / "wide.png")
    row = judged_row(tmp_path / "wide.png", 1, 3.0)
    row.result.regions = []
    # 60 x 60 with the image in its middle 20 rows: everything outside is hot and must not show.
    row.map = np.full((60, 60), 9.0, np.float32)
    row.map[20:40] = 0.0
    report = report_of([row])
    report.detector["config"] = {"resize": "letterbox"}
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', render(report))
    report.detector["config"] = {"resize": "squash"}
    squashed = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', render(report))
    assert sources[1] == sources[0]  # no heat: the same picture
    assert squashed[1] != squashed[0]


def test_scores_next_to_the_threshold_are_told_from_it(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    rows = [judged_row(path, 1, 2.00003), judged_row(path, 0, 1.0), judged_row(path, 1, 9.0)]
    words = text_of(render(report_of(rows)))
    assert "2.00003 threshold 2.00000" in words
    rows = [judged_row(path, 1, 2.3), judged_row(path, 0, 1.0)]
    assert "2.300 threshold 2.000" in text_of(render(report_of(rows)))


def test_geometry_and_boxes_of_the_evaluation_are_used(full: Report) -> None:
    row = full.judged[4]
    assert row.map is not None
    assert row.nearest is not None
    row.geometry = fit_frame((H, W), row.map.shape, "letterbox")
    row.nearest |= {"query_box": (0, 0, 12, 12)}
    with_box = render(full)
    assert "The most anomalous patch of scratch/0.png" in with_box
    del row.nearest["box"]  # the training image is gone
    without = render(full)
    assert "The most anomalous patch of scratch/0.png" in without
    assert "The closest normal patch, from" not in without
    assert "could not be read when this page was written" in text_of(without)


def test_what_is_pictured_can_be_asked_for(full: Report) -> None:
    shown = [row.path.name for row in pictured(full)]
    assert sorted(shown) == sorted(row.path.name for row in full.judged)
    assert shown[0] == "2.png"


def test_facts_of_any_shape_are_listed(full: Report) -> None:
    full.detector["method"] = "patchcore"
    full.detector["training"] = {
        "least_normal": [{"file": "a.png", "score": 1.5}, {"file": "b.png", "score": 1.25}],
        "files": [f"{k}.png" for k in range(20)],
        "roi": None,
        "warnings": ["kept for the notes of the top level only"],
    }
    full.dataset["warnings"] = ["three files were skipped"]
    words = text_of(render(full))
    assert "PatchCore on screws" in words
    assert "file a.png, score 1.5; file b.png, score 1.25" in words
    assert "11.png, and 8 more" in words
    assert "2 notes on how to read this" in words
    assert "three files were skipped" in words


# --- writing ----------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_page(
    full: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "report.html"
    path.write_text("old")

    def refuse(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match="No space left"):
        write_report(full, path)
    assert path.read_text() == "old"
    assert list(folder.iterdir()) == [path]


def test_a_page_that_cannot_be_made_leaves_nothing(full: Report, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    full.curves["roc"] = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        write_report(full, folder / "report.html")
    assert list(folder.iterdir()) == []


def test_missing_folder_is_a_named_error(full: Report, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_report(full, tmp_path / "nowhere" / "report.html")


def test_imports_stay_light() -> None:
    code = (
        "import sys, amiss.report.overlay; assert 'jinja2' not in sys.modules;"
        "import amiss.report.html; print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- other rates -----------------------------------------------------------------------------


def test_other_rates_are_counted_by_their_own_thresholds(tmp_path: Path) -> None:
    scores = [0.5, 1.1, 1.9, 2.6]
    rows = [judged_row(tmp_path / f"{i}.png", label, score) for label in (0, 1)
            for i, score in enumerate(s + label for s in scores)]  # fmt: skip
    report = report_of(rows)
    report.calibration_scores = np.linspace(0.0, 2.0, 99)
    found = {row["max_false_alarm"]: row for row in report.other_rates()}
    assert set(found) == {0.01, 0.02, 0.05, 0.1, 0.2}  # 99 images support no less than 1 %
    for rate, row in found.items():
        expected = np.sort(report.calibration_scores)[-round(100 * rate)]
        assert row["threshold"] == expected
        assert row["false_alarms"] == sum(s > expected for s in scores)
        assert row["detected"] == sum(s + 1 > expected for s in scores)
    assert found[0.2]["false_alarms"] > found[0.01]["false_alarms"]
    page = render(report)
    assert 'id="rates"' in page and f"{found[0.2]['detected']} of 4" in page
    report.operating_point["policy"] = "f1"
    assert report.other_rates() == [] and 'id="rates"' not in render(report)


def test_a_training_is_shown_by_its_losses_and_samples(full: Report) -> None:
    assert 'id="training"' not in render(full)
    losses = {"critic": [3.0, 2.0, -1.0], "distance": [0.5, 0.25, 0.125], "once": [1.0]}
    learned = {"losses": losses, "sample_diversity": 0.05, "images": 10}
    random = np.random.default_rng(0)
    pictures = [(step, random.integers(0, 255, (16, 32, 32, 3), dtype=np.uint8)) for step in (7, 9)]
    shown = replace(full, detector={"method": "wgan", "learned": learned}, pictures=pictures)
    page = render(shown)
    words = text_of(page)
    assert_self_contained(page)
    assert "critic: 3 in the first epoch, −1 in the last of 3." in page
    assert "distance: 0.5 in the first epoch" in page and "once:" not in page
    assert "after 7 batches" in words and "after 9 batches" in words
    assert "differ from one another by 5 % of what images do" in words and "mode collapse" in words
    assert "Detector: learned" in words and "losses" not in words  # drawn, not listed
    sheets = [a for t, a in Elements(page).found if (a.get("alt") or "").startswith("Samples")]
    # 8 in a row of 2 rows, each twice as large, 2 px apart.
    assert [(a["width"], a["height"]) for a in sheets] == [("540", "132")] * 2


def test_what_networks_make_of_an_image_stands_beside_it(full: Report) -> None:
    assert "what the networks make of it" not in text_of(render(full))
    for row in full.judged:
        row.made = np.full((32, 48, 3), 90, dtype=np.uint8)
    page = render(full)
    pictures = [a for tag, a in Elements(page).found if tag == "img"]
    made = [a for a in pictures if (a.get("alt") or "").startswith("What the networks")]
    assert made and {a["width"] for a in made} == {"270"}  # as the picture beside it
    assert {a["height"] for a in made} == {"180"}
    bars = [a for tag, a in Elements(page).found if tag == "svg" and a.get("class") == "scale"]
    assert bars and {a["width"] for a in bars} == {"270"}
    assert page.count(" with-made") >= len(made) and " no-map" not in page.split("</style>")[1]


def test_the_scale_of_ganomalys_authors_is_a_note_alone(full: Report) -> None:
    shown = replace(full, detector={"method": "ganomaly"})
    words = text_of(render(shown))
    scaled = min_max(full.scores)
    normal = int(((scaled > 0.2) & (full.labels == 0)).sum())
    anomalous = int(((scaled > 0.2) & (full.labels == 1)).sum())
    assert f"{normal} normal and {anomalous} anomalous images lie above 0.2" in words
    assert "lie above 0.2" not in text_of(render(full))
