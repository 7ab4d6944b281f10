"""PaDiM against its formulas; what its options change; merging."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import amiss
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import MemoryLimitError, NotFittedError, OptionError
from amiss.evaluation import evaluate
from amiss.learning import gaussian_learner
from amiss.learning.normals import Normals
from amiss.methods.padim import PaDiM
from amiss.nn.backbone import FeatureExtractor
from amiss.recalibrate import recalibrate
from amiss.run import Run
from made_images import textures, write

TINY: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": "random",
    "image_size": (48, 64),
    "layers": ("4", "8"),
    "dim": 20,
}


@pytest.fixture(scope="module")
def images(normals: Path) -> torch.Tensor:
    """(12, 3, 48, 64) uint8."""
    stream = ImageStream(index(normals).train, size=(48, 64))
    (batch,) = stream.batches(12)
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


def fitted(folder: Path, run: Run | None = None, **options: Any) -> PaDiM:
    return PaDiM(**{**TINY, **options}).fit(folder, max_false_alarm=0.1, run=run)


def reference(images: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    """(B, P, d): all maps nearest-upsampled to the first grid, concatenated, then chosen."""
    extractor = FeatureExtractor("test_efficientnet", ("4", "8"), weights="random", seed=0)
    maps = extractor(images)
    x = torch.cat([F.interpolate(m, size=maps[0].shape[2:], mode="nearest") for m in maps], 1)
    x = x.flatten(2).transpose(1, 2)
    return x if chosen is None else x[:, :, chosen]


def test_the_embedding_is_the_nearest_upsampled_maps_at_the_chosen_channels(
    normals: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    detector = fitted(normals)
    assert detector.channels is not None and len(set(detector.channels.tolist())) == 20
    expected = reference(images, detector.channels)
    assert torch.equal(detector._features(images), expected)
    again = amiss.load(detector.save(tmp_path / "part.amiss"))
    assert torch.equal(again.channels, detector.channels)
    other = fitted(normals, run=Run(seed=1))
    assert other.channels is not None and not torch.equal(other.channels, detector.channels)


@pytest.mark.parametrize("reduction", ["none", "random"])
def test_all_channels_are_used_where_there_are_no_more(
    normals: Path, images: torch.Tensor, reduction: str
) -> None:
    detector = fitted(normals, reduction=reduction, dim=500)
    assert torch.equal(detector._features(images), reference(images, None))


def test_pca_keeps_the_directions_of_largest_variance(normals: Path, images: torch.Tensor) -> None:
    detector = fitted(normals, reduction="pca", dim=5)
    x = reference(images, None).flatten(0, 1).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    assert detector.components is not None
    found = detector.components.double().numpy()
    np.testing.assert_allclose(np.abs((found * vectors[:, ::-1][:, :5]).sum(0)), 1, atol=1e-3)
    np.testing.assert_allclose((x @ found).var(0, ddof=1), values[::-1][:5], rtol=1e-3)


def test_scores_and_maps_by_the_formulas(normals: Path, images: torch.Tensor) -> None:
    detector = fitted(normals, blur_sigma=0)
    x = reference(images, detector.channels).double()
    query = images[:2].flip(3)
    y = reference(query, detector.channels).double()
    expected = torch.empty(2, x.shape[1], dtype=torch.float64)
    for cell in range(x.shape[1]):
        covariance = torch.from_numpy(np.cov(x[:, cell].numpy(), rowvar=False))
        covariance += 0.01 * torch.eye(20)
        centred = y[:, cell] - x[:, cell].mean(0)
        expected[:, cell] = (centred @ covariance.inverse() * centred).sum(1).sqrt()
    with torch.inference_mode():
        score, maps = detector(query)
    torch.testing.assert_close(score.double(), expected.amax(1), rtol=1e-4, atol=1e-4)
    grid = expected.view(2, 1, 12, 16).float()
    upsampled = F.interpolate(grid, size=(48, 64), mode="bicubic", align_corners=False)[:, 0]
    assert maps is not None
    torch.testing.assert_close(maps, upsampled, rtol=1e-3, atol=1e-3)


def test_the_score_can_come_from_the_map(normals: Path, images: torch.Tensor) -> None:
    detector = fitted(normals, score_from="map", upsampling="bilinear")
    with torch.inference_mode():
        score, maps = detector(images[:3])
    assert maps is not None and torch.equal(score, maps.flatten(1).amax(1))


# --- calibration -----------------------------------------------------------------------------


def test_held_out_scores_are_those_of_refitted_detectors(normals: Path) -> None:
    records = index(normals).train[:6]
    detector = PaDiM(**TINY)
    held_out = detector.learn(Normals(ImageStream(records, size=(48, 64))), Run())
    for i, record in enumerate(records):
        others = [r for r in records if r != record]
        refitted = PaDiM(**TINY).fit(others, max_false_alarm=0.5)
        found = refitted.predict(record.path)
        assert not isinstance(found, list)
        assert held_out.scores[i] == pytest.approx(found.score, rel=1e-4)


def test_features_that_are_not_kept_are_computed_again(
    normals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = fitted(normals)
    monkeypatch.setattr(gaussian_learner.GaussianLearner, "_fits", lambda *_: False)
    monkeypatch.setattr(gaussian_learner, "_CHUNK", 5)
    again = fitted(normals)
    assert kept.calibration is not None and again.calibration is not None
    np.testing.assert_allclose(again.calibration.scores, kept.calibration.scores, rtol=1e-4)


def test_the_same_image_twice_does_not_vouch_for_itself(normals: Path, tmp_path: Path) -> None:
    folder = textures(tmp_path / "twice", 6, seed=1)
    (folder / "000b.png").write_bytes((folder / "000.png").read_bytes())
    detector = fitted(folder)
    once = fitted(textures(tmp_path / "once", 6, seed=1))
    assert detector.calibration is not None and once.calibration is not None
    # Both copies score what the one image scores among the other five.
    found = detector.calibration.scores
    assert sum(np.isclose(found, s, rtol=1e-4).sum() >= 1 for s in once.calibration.scores) >= 1
    assert np.isclose(found[:-1], found[1:], rtol=1e-5).any()


def test_a_limit_that_is_too_low_is_a_named_error(normals: Path) -> None:
    with pytest.raises(MemoryLimitError, match="Gaussians of 20 dimensions"):
        fitted(normals, run=Run(max_memory_mib=16))


# --- merging ---------------------------------------------------------------------------------


def test_merged_parts_equal_one_fit_over_all(
    normals: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    records = index(normals).train
    whole = PaDiM(**TINY).fit(records, max_false_alarm=0.1)
    parts = [PaDiM(**TINY).fit(some, max_false_alarm=0.5) for some in (records[:5], records[5:])]
    merged = parts[0].merge(parts[1])
    with torch.inference_mode():
        one, other = whole(images.flip(2)), merged(images.flip(2))
    torch.testing.assert_close(other.score, one.score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.anomaly_map, one.anomaly_map, rtol=1e-4, atol=1e-4)
    assert merged.calibration is None and merged.facts["images"] == 12
    assert len(merged.training_digests) == 12
    more = textures(tmp_path / "more", 12, seed=9)
    recalibrate(merged, normals=str(more), max_false_alarm=0.1)
    loaded = amiss.load(merged.save(tmp_path / "merged.amiss"))
    assert loaded.predict(sorted(more.iterdir())[0]).is_anomalous is not None


def test_only_alike_parts_can_be_merged(normals: Path) -> None:
    detector = fitted(normals)
    with pytest.raises(OptionError, match="same options"):
        detector.merge(fitted(normals, dim=10))
    with pytest.raises(OptionError, match="same backbone weights"):
        detector.merge(fitted(normals, run=Run(seed=2)))
    with pytest.raises(NotFittedError):
        detector.merge(PaDiM(**TINY))


def test_only_detectors_can_be_merged(normals: Path) -> None:
    one = PaDiM(**TINY).fit(normals, max_false_alarm=0.4)
    with pytest.raises(OptionError, match="was given nothing"):
        one.merge()
    with pytest.raises(OptionError, match="was given str"):
        one.merge("other.amiss")  # type: ignore[arg-type]


def test_parts_with_images_in_common_cannot_be_merged(normals: Path) -> None:
    records = index(normals).train
    parts = [PaDiM(**TINY).fit(some, max_false_alarm=0.5) for some in (records[:6], records[5:])]
    with pytest.raises(OptionError, match="count twice"):
        parts[0].merge(parts[1])


# --- regions of interest ---------------------------------------------------------------------


def with_rois(normals: Path, folder: Path) -> list[Any]:
    """Records whose masks differ, so that cells are learned from different images."""
    records = []
    for i, record in enumerate(index(normals).train):
        mask = np.zeros((60, 80), np.uint8)
        mask[:, : 30 + 4 * i] = 255
        records.append(replace(record, roi=write(mask, folder / f"{i:02}.png")))
    return records


def test_images_may_have_masks_of_their_own(
    normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = with_rois(normals, tmp_path)
    at_once = PaDiM(**TINY).fit(records, max_false_alarm=0.1)
    monkeypatch.setattr(gaussian_learner.GaussianLearner, "_fits", lambda *_: False)
    in_passes = PaDiM(**TINY).fit(records, max_false_alarm=0.1)
    one, other = at_once.calibration, in_passes.calibration
    assert one is not None and other is not None
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
    assert at_once.gaussians is not None and in_passes.gaussians is not None
    assert sorted(set(at_once.gaussians.count.tolist()))[0] < 12
    torch.testing.assert_close(at_once.gaussians.mean, in_passes.gaussians.mean)
    # Left out, an image is judged as by a detector that never saw it.
    alone = PaDiM(**TINY).fit(records[:-1], max_false_alarm=0.1)
    found = evaluate(alone, [replace(records[-1], split="test")]).scores[0]
    assert np.isclose(one.scores, found, rtol=1e-4).any()


@pytest.mark.parametrize("in_passes", [False, True])
def test_groups_and_masks_together(
    normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, in_passes: bool
) -> None:
    records = with_rois(normals, tmp_path)
    twin = tmp_path / "twin.png"
    twin.write_bytes(records[3].path.read_bytes())
    records.append(replace(records[-1], path=twin))
    if in_passes:
        monkeypatch.setattr(gaussian_learner.GaussianLearner, "_fits", lambda *_: False)
    detector = PaDiM(**TINY).fit(records, max_false_alarm=0.1)
    others = [r for i, r in enumerate(records) if i not in (3, 12)]
    without = PaDiM(**TINY).fit(others, max_false_alarm=0.1)
    asked = [replace(records[i], split="test") for i in (3, 12)]
    assert detector.calibration is not None
    for expected in evaluate(without, asked).scores:
        assert np.isclose(detector.calibration.scores, expected, rtol=1e-4).any()
