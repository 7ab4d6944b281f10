"""The data doctor: every trouble it must find, and none where there is none."""

from __future__ import annotations

import json
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from amiss.data import check, index
from amiss.data.doctor import _round_up
from amiss.data.duplicates import near_groups, same_groups
from amiss.errors import DataError, OptionError
from amiss.types import Record


def part(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A photograph of one product: the same bright frame in all, and a surface of its own."""
    rng = np.random.default_rng(seed)
    height, width = size
    surface = rng.normal(0, 40, (height // 4, width // 4))
    values = 120 + np.kron(surface, np.ones((4, 4)))
    values[:8], values[-8:], values[:, :8], values[:, -8:] = 230, 230, 230, 230
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(1))


def make(root: Path, normal: int = 20, test: int = 4, defects: int = 3) -> Path:
    """A clean MVTec-like set."""
    seed = 0
    for folder, count in (("train/good", normal), ("test/good", test), ("test/dent", defects)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            part(seed).save(root / folder / f"{i:03}.png")
            seed += 1
    (root / "ground_truth/dent").mkdir(parents=True)
    for i in range(defects):
        mask = np.zeros((96, 96), np.uint8)
        mask[20 : 30 + i, 20:40] = 255
        Image.fromarray(mask).save(root / f"ground_truth/dent/{i:03}_mask.png")
    return root


def codes(findings, *severities):
    return {f.code for f in findings.findings if f.severity in (severities or ("error", "warning"))}


def found(findings, code):
    """The finding of a code, with its paths as names."""
    (finding,) = [f for f in findings.findings if f.code == code]
    return finding, sorted(path.name for path in finding.paths)


def test_a_clean_set_has_no_findings(tmp_path):
    calls = []
    findings = check(
        make(tmp_path),
        max_false_alarm=0.05,
        progress=lambda stage, done, total: calls.append((stage, done, total)),
    )
    assert findings.ok and findings.exit_status == 0 and findings.findings == ()
    assert findings.smallest_false_alarm == pytest.approx(1 / 21)
    assert calls == [("images", i + 1, 27) for i in range(27)] + [
        ("masks", i + 1, 3) for i in range(3)
    ]
    text = findings.describe()
    assert "20 normal" in text and text.endswith("Ready to fit: 0 errors, 0 warnings.")


def test_json_is_of_plain_types(tmp_path):
    findings = check(make(tmp_path))
    again = json.loads(json.dumps(findings.as_dict()))
    assert again["ok"] is True and again["counts"]["train"]["normal"] == 20
    assert again["findings"][0]["code"] == "too-few-normals"
    assert set(again["findings"][0]) == {"severity", "code", "message", "paths", "hint"}


# --- files


def test_unreadable_files(tmp_path):
    good = make(tmp_path) / "train/good"
    (good / "empty.png").touch()
    (good / "text.png").write_text("hello")
    (good / "cut.png").write_bytes((good / "000.png").read_bytes()[:900])
    (good / "link.png").symlink_to(tmp_path / "gone.png")
    frames = [part(100), part(101)]
    frames[0].save(good / "pages.tif", save_all=True, append_images=frames[1:])
    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        bomb += struct.pack(">I", len(body)) + kind + body + crc
    (good / "bomb.png").write_bytes(bomb)
    findings = check(tmp_path, max_false_alarm=0.05)
    assert not findings.ok and findings.exit_status == 1
    for code, name in {
        "empty": "empty.png",
        "not-an-image": "text.png",
        "truncated": "cut.png",
        "missing": "link.png",
        "animated": "pages.tif",
        "too-large": "bomb.png",
    }.items():
        finding, names = found(findings, code)
        assert finding.severity == "error" and names == [name]
    # They count as nothing: 20 readable normals are left.
    assert findings.smallest_false_alarm == pytest.approx(1 / 21)
    assert "Mend the errors before a fit: 6 errors" in findings.describe()


def test_no_readable_normal(tmp_path):
    make(tmp_path, normal=1)
    (tmp_path / "train/good/000.png").write_bytes(b"")
    findings = check(tmp_path)
    assert {"empty", "no-normals"} <= codes(findings, "error")
    assert findings.smallest_false_alarm == 1


def test_a_folder_that_is_no_set_raises(tmp_path):
    with pytest.raises(DataError):
        check(tmp_path)
    with pytest.raises(OptionError, match="max_false_alarm is 0"):
        check(tmp_path, max_false_alarm=0)


# --- masks


def test_masks(tmp_path):
    make(tmp_path, defects=8)
    truth = tmp_path / "ground_truth/dent"
    (truth / "000_mask.png").unlink()
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(truth / "001_mask.png")
    Image.fromarray(np.full((90, 96), 255, np.uint8)).save(truth / "002_mask.png")
    Image.fromarray(np.full((96, 96), 7, np.uint8)).save(truth / "003_mask.png")
    (truth / "004_mask.png").write_bytes(b"no")
    ramp = np.tile(np.arange(96, dtype=np.uint8) * 2, (96, 1))
    Image.fromarray(ramp).save(truth / "005_mask.png")
    Image.fromarray(ramp).save(truth / "077_mask.png")
    Image.fromarray(ramp // 48 * 85).save(truth / "006_mask.png")
    (tmp_path / "ground_truth/good").mkdir()
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(tmp_path / "ground_truth/good/001.png")
    findings = check(tmp_path, max_false_alarm=0.05)
    for code, severity, names in (
        ("mask-missing", "warning", ["000.png"]),
        ("mask-orphan", "warning", ["077_mask.png"]),
        ("mask-empty", "warning", ["001_mask.png"]),
        ("mask-size", "error", ["002_mask.png"]),
        ("mask-values", "error", ["003_mask.png"]),
        ("mask-unreadable", "error", ["004_mask.png"]),
        ("mask-picture", "error", ["005_mask.png"]),
        ("mask-levels", "info", ["006_mask.png"]),
        ("mask-on-normal", "error", ["001.png"]),
    ):
        finding, paths = found(findings, code)
        assert (finding.severity, paths) == (severity, names), code


def test_a_set_without_any_mask_misses_none(tmp_path):
    make(tmp_path)
    for path in (tmp_path / "ground_truth/dent").iterdir():
        path.unlink()
    assert codes(check(tmp_path, max_false_alarm=0.05)) == set()


# --- duplicates


def test_exact_duplicates_within_and_across(tmp_path):
    make(tmp_path)
    good, test = tmp_path / "train/good", tmp_path / "test/good"
    (good / "copy.png").write_bytes((good / "003.png").read_bytes())
    # The same pixels in another format, and as RGB.
    Image.open(good / "005.png").convert("RGB").save(test / "other.bmp")
    findings = check(tmp_path, max_false_alarm=0.05)
    inside, names = found(findings, "duplicate")
    assert inside.severity == "warning" and names == ["003.png", "copy.png"]
    across, names = found(findings, "duplicate-across")
    assert across.severity == "error" and names == ["005.png", "other.bmp"]
    assert "test normal, train normal" in across.message
    assert "near-duplicate" not in codes(findings, "info", "warning")
    # A copy is no further normal.
    assert findings.smallest_false_alarm == pytest.approx(1 / 21)


def test_the_same_image_labelled_both_ways(tmp_path):
    make(tmp_path)
    (tmp_path / "test/good/x.png").write_bytes((tmp_path / "test/dent/001.png").read_bytes())
    findings = check(tmp_path)
    finding, names = found(findings, "label-conflict")
    assert finding.severity == "error" and names == ["001.png", "x.png"]
    assert not codes(findings) & {"duplicate", "duplicate-across"}


def test_a_record_listed_in_both_splits(tmp_path):
    make(tmp_path)
    paths = sorted((tmp_path / "train/good").iterdir())
    records = [Record(path, 0, split="train") for path in paths]
    findings = check([*records, Record(paths[0], 0, split="test"), Record(paths[1], 0)])
    assert found(findings, "duplicate-across")[1] == ["000.png"]
    assert found(findings, "duplicate")[1] == ["001.png"]
    # Two crops of one strip are two images.
    strips = [Record(paths[0], 0, split="train", crop=(0, x, 48, 48)) for x in (0, 48)]
    assert codes(check(strips)) == {"too-few-normals"}
    assert check(strips).smallest_false_alarm == pytest.approx(1 / 3)


def copies(image: Image.Image) -> dict[str, Image.Image]:
    jpeg = BytesIO()
    image.save(jpeg, "JPEG", quality=60)
    brighter = np.asarray(image).astype(int) + 15
    noise = np.random.default_rng(9).normal(0, 3, np.asarray(image).shape)
    return {
        "jpeg": Image.open(jpeg),
        "half": image.resize((48, 48), Image.Resampling.LANCZOS),
        "brighter": Image.fromarray(brighter.clip(0, 255).astype(np.uint8)),
        "noisy": Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)),
    }


def test_near_duplicates_within_and_across(tmp_path):
    make(tmp_path)
    for i, (name, image) in enumerate(copies(part(3)).items()):
        image.save(tmp_path / ("test/good" if i == 0 else "train/good") / f"{name}.png")
    copies(part(24))["jpeg"].save(tmp_path / "test/dent/again.png")
    findings = check(tmp_path, max_false_alarm=0.05)
    across, names = found(findings, "near-duplicate-across")
    assert across.severity == "warning"
    assert names == ["003.png", "brighter.png", "half.png", "jpeg.png", "noisy.png"]
    inside, names = found(findings, "near-duplicate")
    assert inside.severity == "info" and names == ["000.png", "again.png"]
    assert findings.ok


def thumbs(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.resize((64, 64))) for image in images])


@pytest.mark.parametrize("count", [8, 20, 120])
def test_near_groups_finds_planted_copies_and_nothing_else(count):
    images = [part(seed) for seed in range(count)]
    assert near_groups(thumbs(images)) == []
    planted = [*images, copies(images[0])["jpeg"], copies(images[5])["noisy"]]
    assert near_groups(thumbs(planted)) == [[0, count], [5, count + 1]]


def test_near_groups_of_many_copies_of_few_things():
    images = [copies(part(seed))[kind] for seed in range(6) for kind in ("jpeg", "half", "noisy")]
    assert near_groups(thumbs(images)) == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(6)]


def test_near_groups_leaves_blank_images_and_tiny_sets_alone():
    blank = [Image.new("L", (64, 64), 100 + i % 2) for i in range(20)]
    assert near_groups(thumbs(blank)) == []
    assert near_groups(thumbs([part(0)] * 2)) == []


def test_same_groups_joins_through_any_key():
    assert same_groups([("a", 1), ("b", 2), ("a", 3), ("c", 3), ("d", 4)]) == [[0, 2, 3]]
    assert same_groups([]) == []


# --- numbers and looks


@pytest.mark.parametrize(
    ("count", "rate", "enough"), [(19, 0.05, True), (18, 0.05, False), (3, 0.25, True)]
)
def test_too_few_normals_for_the_rate(tmp_path, count, rate, enough):
    findings = check(make(tmp_path, normal=count), max_false_alarm=rate)
    assert ("too-few-normals" not in codes(findings)) == enough
    assert findings.smallest_false_alarm == pytest.approx(1 / (count + 1))
    assert findings.ok


def test_the_advised_rate_works(tmp_path):
    finding, _ = found(check(make(tmp_path, normal=18)), "too-few-normals")
    assert (
        "18 different normal training images" in finding.message and "needs 99" in finding.message
    )
    assert finding.hint == "Add 81 normal images, or ask for 0.053."
    for n in range(1, 400):
        assert 1 / (n + 1) <= _round_up(1 / (n + 1)) < 1.11 / (n + 1)


def test_sizes_aspects_and_modes(tmp_path):
    make(tmp_path)
    part(200, (96, 160)).save(tmp_path / "train/good/wide.png")
    part(201).convert("RGB").save(tmp_path / "train/good/rgb.png")
    deep = np.asarray(part(202)).astype(np.uint16) * 100
    Image.fromarray(deep).save(tmp_path / "train/good/deep.png")
    findings = check(tmp_path, max_false_alarm=0.05)
    assert codes(findings) == {"aspects"}
    assert "from 1.00 to 1.67" in found(findings, "aspects")[0].message
    assert "2 image sizes (height x width), from 96 x 96 to 96 x 160" in findings.describe()
    assert "L 28, I;16 1, RGB 1" in found(findings, "modes")[0].message
    assert "1 image with more than 8 bits" in found(findings, "deep")[0].message


def test_constant_images_and_odd_brightness(tmp_path):
    make(tmp_path)
    Image.new("L", (96, 96), 120).save(tmp_path / "train/good/blank.png")
    dark = np.asarray(part(300)) // 4
    Image.fromarray(dark).save(tmp_path / "train/good/dark.png")
    findings = check(tmp_path, max_false_alarm=0.05)
    assert found(findings, "constant")[1] == ["blank.png"]
    assert found(findings, "brightness")[1] == ["blank.png", "dark.png"]


def test_one_sided_tests_are_said(tmp_path):
    make(tmp_path, test=0)
    assert "only anomalous" in found(check(tmp_path), "one-sided-test")[0].message


def test_outliers_are_shown(tmp_path):
    make(tmp_path)
    path = tmp_path / "train/good/004.png"
    findings = check(index(tmp_path), max_false_alarm=0.05, outliers=[(path, 3.25, 0.0476)])
    finding, names = found(findings, "least-normal")
    assert names == ["004.png"] and "score 3.25, p = 0.0476" in finding.message
    assert findings.ok and "train/good/004.png" in findings.describe().replace("\\", "/")


def test_the_text_cuts_long_lists_short(tmp_path):
    make(tmp_path)
    for i in range(5):
        data = (tmp_path / f"train/good/00{i}.png").read_bytes()
        (tmp_path / f"train/good/copy{i}.png").write_bytes(data)
        (tmp_path / f"train/good/empty{i}.png").touch()
    text = check(tmp_path).describe()
    assert text.count("more than once") == 3 and "and 2 more of the kind duplicate." in text
    assert "5 image files are empty" in text and "          and 2 more" in text
