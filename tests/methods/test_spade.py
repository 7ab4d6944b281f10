"""SPADE against its formulas; what its options change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

import amiss
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import MemoryLimitError
from amiss.methods.spade import SPADE
from amiss.nn.backbone import FeatureExtractor
from amiss.recalibrate import recalibrate
from amiss.run import Run
from made_images import textures

TINY: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": "random",
    "image_size": (48, 64),
    "layers": ("4", "8"),
    "descriptor_layer": "16",
    "num_images": 3,
}


@pytest.fixture(scope="module")
def images(normals: Path) -> torch.Tensor:
    """(12, 3, 48, 64) uint8."""
    (batch,) = ImageStream(index(normals).train, size=(48, 64)).batches(12)
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


def fitted(folder: Path, run: Run | None = None, **options: Any) -> SPADE:
    return SPADE(**{**TINY, **options}).fit(folder, max_false_alarm=0.1, run=run)


def layers(images: torch.Tensor) -> list[torch.Tensor]:
    extractor = FeatureExtractor("test_efficientnet", ("4", "8", "16"), weights="random", seed=0)
    return [m.double() for m in extractor(images)]


def score(detector: SPADE, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        found = detector(images)
    assert found.anomaly_map is not None
    return found.score, found.anomaly_map


def joined(maps: list[torch.Tensor]) -> torch.Tensor:
    """(B, P, D): the second layer bilinearly at the cells of the first."""
    grid = maps[0].shape[2:]
    merged = torch.cat([maps[0], F.interpolate(maps[1], size=grid, mode="bilinear")], dim=1)
    return merged.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("num_neighbors", [1, 5])
def test_both_stages_by_the_formulas(
    normals: Path, images: torch.Tensor, num_neighbors: int
) -> None:
    detector = fitted(normals, num_neighbors=num_neighbors, blur_sigma=2)
    query = images[4:5].flip(3)
    found, maps = score(detector, query)
    train, asked = layers(images), layers(query)
    squared = (train[2].mean((2, 3)) - asked[2].mean((2, 3))).square().sum(1)
    nearest = squared.argsort()[:3]
    assert float(found) == pytest.approx(float(squared[nearest].mean()), rel=1e-4)
    gallery = joined(train)[nearest].flatten(0, 1)
    assert len(gallery) == 3 * 12 * 16
    all_squared = torch.cdist(joined(asked)[0], gallery).square()
    grid = all_squared.topk(num_neighbors, largest=False).values.mean(1).view(1, 1, 12, 16)
    upsampled = F.interpolate(grid, size=(48, 64), mode="bilinear", align_corners=False)[0, 0]
    expected = gaussian_filter(upsampled.numpy(), 2)
    np.testing.assert_allclose(maps[0].numpy(), expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_the_form_of_the_well_known_code(normals: Path, images: torch.Tensor) -> None:
    detector = fitted(normals, patches="per_layer", distance="euclidean", blur_sigma=0)
    query = images[4:5].flip(3)
    found, maps = score(detector, query)
    train, asked = layers(images), layers(query)
    distance = (train[2].mean((2, 3)) - asked[2].mean((2, 3))).norm(dim=1)
    nearest = distance.argsort()[:3]
    assert float(found) == pytest.approx(float(distance[nearest].mean()), rel=1e-4)
    expected = torch.zeros(48, 64, dtype=torch.float64)
    for layer in (0, 1):
        rows = train[layer][nearest].permute(0, 2, 3, 1).flatten(0, 2)
        queries = asked[layer][0].permute(1, 2, 0).flatten(0, 1)
        grid = torch.cdist(queries, rows).amin(1).view(1, 1, *asked[layer].shape[2:])
        up = F.interpolate(grid, size=(48, 64), mode="bilinear", align_corners=False)
        expected += up[0, 0] / 2
    torch.testing.assert_close(maps[0].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_images", [1, 3])
def test_a_training_image_has_a_map_of_zeros(
    normals: Path, images: torch.Tensor, num_images: int
) -> None:
    detector = fitted(normals, num_images=num_images)
    found, maps = score(detector, images[:1])
    assert not maps.any()
    assert detector.descriptors is not None
    others = (detector.descriptors - detector.descriptors[0]).square().sum(1).sort().values
    expected = float(others[1:num_images].sum()) / num_images
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_order_of_the_training_images_does_not_matter(
    normals: Path, images: torch.Tensor
) -> None:
    records = index(normals).train
    one = SPADE(**TINY).fit(records, max_false_alarm=0.1)
    other = SPADE(**TINY).fit(records[::-1], max_false_alarm=0.1)
    query = images[:2].flip(2)
    for a, b in zip(score(one, query), score(other, query), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_held_out_scores_are_those_of_the_others(normals: Path) -> None:
    records = index(normals).train[:6]
    detector = SPADE(**TINY).fit(records, max_false_alarm=0.3)
    scores, peaks = [], []
    for record in records:
        others = SPADE(**TINY).fit([r for r in records if r != record], max_false_alarm=0.3)
        (batch,) = ImageStream([record], size=(48, 64)).batches(1)
        x = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
        found, maps = score(others, x)
        scores.append(float(found))
        peaks.append(float(maps.max()))
    assert detector.calibration is not None and detector.calibration.map_maxima is not None
    np.testing.assert_allclose(detector.calibration.scores, sorted(scores), rtol=1e-4)
    np.testing.assert_allclose(detector.calibration.map_maxima, sorted(peaks), rtol=1e-4)


def test_maps_of_a_part_set_the_pixel_threshold(normals: Path, tmp_path: Path) -> None:
    detector = fitted(normals, calibration_maps=5)
    calibration = detector.calibration
    assert calibration is not None and calibration.map_maxima is not None
    assert len(calibration.scores) == 12 and len(calibration.map_maxima) == 5
    assert calibration.pixel_threshold == calibration.map_maxima[-1]  # 5 do not support 0.1
    again = amiss.load(detector.save(tmp_path / "part.amiss"))
    assert again.calibration.map_maxima.tolist() == calibration.map_maxima.tolist()


def test_only_flagged_images_get_a_map_when_asked(normals: Path, tmp_path: Path) -> None:
    detector = fitted(normals, localize="flagged")
    normal = sorted(normals.iterdir())[0]
    bad = textures(tmp_path / "bad", 1, seed=4, defects=True) / "000.png"
    calm, loud = detector.predict([normal, bad])  # type: ignore[misc]
    assert not calm.is_anomalous and not calm.anomaly_map.any()
    assert loud.is_anomalous and loud.anomaly_map.any()


def test_half_precision_moves_scores_little(normals: Path, images: torch.Tensor) -> None:
    query = images[:3].flip(2)
    one, other = (score(fitted(normals, storage=s), query) for s in ("float32", "float16"))
    assert torch.equal(one[0], other[0])  # descriptors stay in float32
    assert not torch.equal(one[1], other[1])
    torch.testing.assert_close(one[1], other[1], rtol=0.02, atol=0.02 * float(one[1].max()))


def test_a_gallery_that_does_not_fit_is_a_named_error(normals: Path) -> None:
    with pytest.raises(MemoryLimitError, match="feature maps of all images"):
        fitted(normals, run=Run(max_memory_mib=16))


def test_the_evidence_is_a_patch_of_a_training_image(normals: Path, images: torch.Tensor) -> None:
    detector = fitted(normals)
    query = images[:2].clone()
    query[1, :, 10:24, 20:34] = 250
    with torch.inference_mode():
        found = detector.evidence(query)
    assert found is not None and len(found) == 2
    assert found[0]["distance"] == 0 and found[0]["image"] == 0  # itself
    top, left, bottom, right = found[1]["query_box"]
    assert found[1]["distance"] > 0 and 0 <= found[1]["image"] < 12
    assert bottom > 10 / 48 and top < 24 / 48 and right > 20 / 64 and left < 34 / 64


def test_new_normals_get_maps_whatever_the_threshold_was(normals: Path, tmp_path: Path) -> None:
    detector = fitted(normals, localize="flagged")
    more = textures(tmp_path / "more", 12, seed=30)
    changed = recalibrate(detector, normals=str(more), max_false_alarm=0.1)
    assert changed.map_maxima is not None and (changed.map_maxima > 0).all()
    assert changed.pixel_threshold is not None and changed.pixel_threshold > 0
