"""PatchCore's formulas on known answers, and its ways of learning against each other."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from amiss.data.stream import ImageStream
from amiss.errors import AmissError, OptionError
from amiss.learning.normals import Normals
from amiss.memory.bank import MemoryBank
from amiss.methods.patchcore import PatchCore, PatchCoreConfig
from amiss.run import Run
from amiss.types import Record
from made_images import textures


def frames(detector: PatchCore, folder: Path) -> Tensor:
    records = [Record(path) for path in sorted(folder.rglob("*.png"))]
    stream = ImageStream(records, size=detector.image_size)
    (batch,) = stream.batches(len(records))
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


def bank_of(rows: list[list[float]], num_neighbors: int) -> MemoryBank:
    table = torch.tensor(rows, dtype=torch.float32)
    origin = torch.zeros(len(rows), 3, dtype=torch.int32)
    return MemoryBank(table, num_neighbors=num_neighbors, origin=origin)


# --- equation 7: the weight of the image score -----------------------------------------------


def weight(distances: list[float], num_neighbors: int) -> float:
    """The weight of a query at 0 whose bank lies at these distances on a line."""
    bank = bank_of([[d] for d in distances], num_neighbors)
    nearest = torch.tensor([int(np.argmin(distances))])
    return float(PatchCore()._weight(bank, torch.zeros(1, 1), nearest))


def test_distances_1_2_3_weigh_as_computed_by_hand() -> None:
    assert weight([1, 2, 3], 3) == pytest.approx(1 - 1 / (1 + math.e + math.e**2), abs=1e-6)
    assert weight([1, 2, 3], 3) == pytest.approx(0.90997, abs=1e-5)


def test_large_distances_do_not_overflow() -> None:
    assert weight([1001, 1002, 1003], 3) == pytest.approx(0.90997, abs=1e-4)


def test_one_neighbour_is_no_weighting() -> None:
    assert weight([1, 2, 3], 1) == 1
    assert weight([5], 9) == 1  # a bank of one row has no others


@pytest.mark.parametrize("b", [2, 3, 9])
def test_the_weight_lies_between_its_bounds(b: int) -> None:
    rng = np.random.default_rng(b)
    for _ in range(20):
        w = weight(rng.uniform(0, 4, 12).tolist(), b)
        assert 0 < w < 1
    assert weight([2.0] * 12, b) == pytest.approx(1 - 1 / b)


def test_the_neighbourhood_is_that_of_the_bank_row_and_not_of_the_query() -> None:
    # The query at 0 has its nearest row at 1. That row's own neighbour is at 1.5, while the row at
    # -1.2 is nearer to the query.
    expected = 1 - math.exp(1) / (math.exp(1) + math.exp(1.5))
    bank = bank_of([[1.0], [1.5], [-1.2]], 2)
    found = PatchCore()._weight(bank, torch.zeros(1, 1), torch.tensor([0]))
    assert float(found) == pytest.approx(expected, abs=1e-6)


# --- scores and maps -------------------------------------------------------------------------


def plain(detector: PatchCore, images: Tensor) -> tuple[Tensor, list[Any]]:
    """Scores and maps by the definitions, in float64 and by SciPy."""
    assert detector.extractor is not None and detector.bank is not None
    with torch.inference_mode():
        maps = detector.extractor(images)
    height, width = maps[0].shape[2:]
    pooled = [F.avg_pool2d(m, 3, 1, 1) for m in maps]
    same = [F.interpolate(m, (height, width), mode="bilinear") for m in pooled]
    embedding = torch.cat(same, dim=1).double()  # (B, D, h, w)
    rows = detector.bank.rows.double()
    b = min(detector.config.num_neighbors, len(rows))
    scores, found = [], []
    for one in embedding:
        patches = one.flatten(1).T
        distance = torch.cdist(patches, rows)
        nearest, index = distance.min(dim=1)
        worst = int(nearest.argmax())
        row = rows[index[worst]]
        around = torch.cdist(row[None], rows)[0].argsort()[:b]
        to_query = (rows[around] - patches[worst]).norm(dim=1)
        w = 1 - torch.softmax(to_query, 0)[0]
        scores.append(nearest[worst] * w)
        grid = nearest.view(1, 1, height, width)
        large = F.interpolate(grid, detector.image_size, mode="bilinear")[0, 0]
        found.append(gaussian_filter(large.numpy(), detector.config.blur_sigma))
    return torch.stack(scores), found


def test_scores_and_maps_are_those_of_the_definitions(detector: PatchCore, labelled: Path) -> None:
    images = frames(detector, labelled / "test")[:6]
    with torch.inference_mode():
        found = detector(images)
    scores, maps = plain(detector, images)
    torch.testing.assert_close(found.score.double(), scores, rtol=1e-4, atol=1e-6)
    assert found.anomaly_map is not None
    np.testing.assert_allclose(found.anomaly_map.numpy(), np.stack(maps), rtol=1e-4, atol=1e-6)


def test_a_training_image_is_at_zero_from_a_bank_of_everything(
    normals: Path, tiny: dict[str, Any]
) -> None:
    detector = PatchCore(**(tiny | {"coreset_ratio": 1.0})).fit(normals)
    with torch.inference_mode():
        found = detector(frames(detector, normals)[:3])
    assert not found.score.any()
    assert found.anomaly_map is not None and float(found.anomaly_map.max()) < 1e-6


def test_squared_distances_are_the_squares(labelled: Path, tiny: dict[str, Any]) -> None:
    options = tiny | {"num_neighbors": 1, "blur_sigma": 0.0}
    one = PatchCore(**options).fit(labelled)
    other = PatchCore(**options, distance="squared").fit(labelled)
    images = frames(one, labelled / "test")[:4]
    with torch.inference_mode():
        a, b = one(images), other(images)
    torch.testing.assert_close(a.score.square(), b.score)
    assert a.anomaly_map is not None and b.anomaly_map is not None
    assert float(b.anomaly_map.max()) == pytest.approx(float(a.anomaly_map.max()) ** 2, rel=0.3)


def test_a_smaller_bank_never_comes_nearer(labelled: Path, tiny: dict[str, Any]) -> None:
    options = tiny | {"num_neighbors": 1}
    small = PatchCore(**options, coreset_size=30).fit(labelled)
    large = PatchCore(**options, coreset_size=300).fit(labelled)
    images = frames(small, labelled / "test")
    with torch.inference_mode():
        s, m = small(images).score, large(images).score
    assert (m <= s + 1e-6).all()
    radius = small.facts["covering_radius"]
    assert radius > large.facts["covering_radius"]
    assert (s <= m + radius + 1e-5).all()  # the sandwich


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"coreset_ratio": 0.1}, 230),  # floor(0.1 * 12 * 192)
        ({"coreset_ratio": 1.0}, 2304),
        ({"coreset_ratio": 1e-6}, 1),
        ({"coreset_size": 77}, 77),
        ({"coreset_size": 99_999}, 2304),
        ({"stride": 2, "coreset_ratio": 0.5}, 12 * 48 // 2),
    ],
)
def test_the_bank_has_as_many_rows_as_asked(
    options: dict[str, Any], size: int, normals: Path, tiny: dict[str, Any]
) -> None:
    detector = PatchCore(**(tiny | options)).fit(normals)
    assert detector.bank is not None and len(detector.bank) == size
    assert detector.facts["rows"] == size


def test_the_facts_are_those_of_the_bank(normals: Path, tiny: dict[str, Any]) -> None:
    detector = PatchCore(**tiny).fit(normals)
    assert detector.bank is not None
    assert detector.facts["patches_seen"] == 12 * 12 * 16
    images = frames(detector, normals)
    with torch.inference_mode():
        patches = detector._embedding(images).flatten(2).transpose(1, 2).flatten(0, 1)
    distance, _ = detector.bank.nearest(patches)
    assert detector.facts["covering_radius"] == pytest.approx(float(distance.max()), rel=1e-4)
    origin = detector.bank.origin.long()
    numbers = origin[:, 0] * 192 + origin[:, 1] * 16 + origin[:, 2]
    torch.testing.assert_close(patches[numbers], detector.bank.rows, rtol=1e-4, atol=1e-5)


# --- evidence --------------------------------------------------------------------------------


def test_evidence_names_the_patch_that_is_nearest(detector: PatchCore, labelled: Path) -> None:
    images = frames(detector, labelled / "test")[:4]
    with torch.inference_mode():
        found = detector.evidence(images)
        patches = detector._embedding(images).flatten(2).transpose(1, 2)
        trained = detector._embedding(frames(detector, labelled / "train"))
    assert found is not None and detector.bank is not None
    for i, facts in enumerate(found):
        distance = torch.cdist(patches[i].double(), detector.bank.rows.double())
        nearest, _ = distance.min(dim=1)
        assert facts["distance"] == pytest.approx(float(nearest.max()), rel=1e-4)
        row, column = round(facts["query_box"][0] * 12), round(facts["query_box"][1] * 16)
        assert row * 16 + column == int(nearest.argmax())
        row, column = round(facts["box"][0] * 12), round(facts["box"][1] * 16)
        normal = trained[facts["image"], :, row, column]
        query = patches[i, int(nearest.argmax())]
        assert float((normal - query).norm()) == pytest.approx(facts["distance"], rel=1e-3)


def test_evidence_stays_inside_the_roi(detector: PatchCore, labelled: Path) -> None:
    images = frames(detector, labelled / "test")
    roi = torch.zeros((len(images), 48, 64), dtype=torch.bool)
    roi[:, 16:32, 16:32] = True
    with torch.inference_mode():
        found = detector.evidence(images, roi)
    assert found is not None
    for facts in found:
        top, left, bottom, right = facts["query_box"]
        assert top >= 16 / 48 and left >= 16 / 64 and bottom <= 32 / 48 and right <= 32 / 64


# --- learning --------------------------------------------------------------------------------


def test_held_out_scores_are_those_of_a_fit_without_the_image(
    normals: Path, tiny: dict[str, Any]
) -> None:
    # 12 images make 12 folds, so each is judged by a bank of the other 11.
    paths = sorted(normals.iterdir())
    options = tiny | {"coreset_ratio": 1.0, "folds": 0}
    detector = PatchCore(**options)
    stream = ImageStream([Record(p) for p in paths], size=detector.image_size)
    held_out = detector.learn(Normals(stream), Run())
    for i in (0, 7):
        others = PatchCore(**options).fit([p for j, p in enumerate(paths) if j != i])
        found = others.predict(paths[i])
        assert not isinstance(found, list) and found.score > 0
        assert held_out.scores[i] == pytest.approx(found.score, rel=1e-4)


def test_new_normals_are_called_anomalous_as_often_as_said(
    normals: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    new = textures(tmp_path, 30, seed=99)
    detector = PatchCore(**tiny).fit(normals, max_false_alarm=0.2)
    found = detector.predict(sorted(new.iterdir()))
    assert isinstance(found, list) and detector.calibration is not None
    false_alarms = sum(bool(r.is_anomalous) for r in found)
    low, high = detector.calibration.expected_rates(30, level=0.999)
    assert low * 30 <= false_alarms <= high * 30


def stream_limit(monkeypatch: pytest.MonkeyPatch, chunk: int = 500) -> Run:
    """A run whose memory holds no more than a chunk of patches."""
    from amiss.memory import plan

    monkeypatch.setattr(plan, "_CHUNK_ROWS", chunk)
    monkeypatch.setattr(plan, "resident_mib", lambda: 100.5)
    monkeypatch.setattr(plan, "_SEARCH_MIB", 0)
    return Run(max_memory_mib=101)


def test_streaming_comes_close_to_holding_everything(
    normals: Path, labelled: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PatchCore(**tiny).fit(normals)
    said: list[str] = []
    run = stream_limit(monkeypatch)
    run = Run(max_memory_mib=run.max_memory_mib, say=said.append)
    streamed = PatchCore(**tiny).fit(normals, run=run)
    assert any("chunks of 500" in sentence for sentence in said)
    assert streamed.calibration is not None and len(streamed.calibration.scores) == 12 // 5
    assert "held out" in streamed.calibration.how
    assert streamed.facts["covering_radius"] <= 3 * whole.facts["covering_radius"]
    images = frames(whole, labelled / "test")
    with torch.inference_mode():
        one, other = whole(images).score, streamed(images).score
    assert float((one / other - 1).abs().max()) < 0.3
    assert np.corrcoef(one, other)[0, 1] > 0.95


def test_the_radius_of_a_stream_covers_every_patch_it_learned_from(
    normals: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = PatchCore(**tiny).fit(normals, run=stream_limit(monkeypatch))
    assert detector.bank is not None
    held_out = set(np.random.default_rng(0).permutation(12)[:2].tolist())
    images = frames(detector, normals)
    learned = [i for i in range(12) if i not in held_out]
    assert detector.facts["patches_seen"] == len(learned) * 192
    with torch.inference_mode():
        patches = detector._embedding(images[learned]).flatten(2).transpose(1, 2).flatten(0, 1)
    distance, _ = detector.bank.nearest(patches)
    assert float(distance.max()) <= detector.facts["covering_radius"] + 1e-4
    assert {int(i) for i in detector.bank.origin[:, 0]} <= set(learned)


@pytest.mark.parametrize(("option", "value"), [("coreset", "random"), ("projection_dim", 4)])
def test_a_stream_heeds_the_way_of_choosing_or_refuses_it(
    option: str,
    value: object,
    normals: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = stream_limit(monkeypatch)
    plain_stream = PatchCore(**tiny).fit(normals, run=run)
    try:
        other = PatchCore(**(tiny | {option: value})).fit(normals, run=run)
    except AmissError:
        return
    assert plain_stream.bank is not None and other.bank is not None
    assert not torch.equal(plain_stream.bank.rows, other.bank.rows)


def test_the_approximate_search_gives_nearly_the_same_scores(
    normals: Path, labelled: Path, tiny: dict[str, Any]
) -> None:
    said: list[str] = []
    options = tiny | {"coreset_size": 1500}
    exact = PatchCore(**options, search="exact").fit(normals)
    near = PatchCore(**options, search="approximate").fit(normals, run=Run(say=said.append))
    again = PatchCore(**options, search="approximate").fit(normals)
    assert any("recall@1" in sentence for sentence in said)
    images = frames(exact, labelled / "test")
    with torch.inference_mode():
        a, b, c = exact(images).score, near(images).score, again(images).score
    torch.testing.assert_close(a, b, rtol=0.05, atol=1e-4)
    assert torch.equal(b, c)


# --- interruptions and failures --------------------------------------------------------------


class Interrupt:
    """A progress that interrupts at the n-th report of a stage."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.at = stage, at

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == self.stage:
            self.at -= 1
            if self.at == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize(("stage", "at"), [("features", 3), ("coreset", 1), ("calibration", 2)])
def test_an_interrupted_fit_goes_on_to_the_same_result(
    stage: str, at: int, normals: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    partial = tmp_path / "x.partial"
    detector = PatchCore(**tiny)
    with pytest.raises(KeyboardInterrupt):
        detector.fit(normals, run=Run(batch_size=2, partial=partial, progress=Interrupt(stage, at)))
    assert partial.is_file()
    said: list[str] = []
    again = PatchCore(**tiny).fit(normals, run=Run(partial=partial, say=said.append))
    assert any("going on" in sentence for sentence in said)
    fresh = PatchCore(**tiny).fit(normals)
    assert again.bank is not None and fresh.bank is not None
    assert torch.equal(again.bank.rows, fresh.bank.rows)
    assert again.calibration is not None and fresh.calibration is not None
    assert np.array_equal(again.calibration.scores, fresh.calibration.scores)
    assert np.array_equal(again.training_digests, fresh.training_digests)


@pytest.mark.parametrize("change", ["roi", "window", "image", "option", "seed"])
def test_what_another_job_left_is_not_used(
    change: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    from PIL import Image

    from made_images import write

    folder = tmp_path / "deep"
    for path in textures(tmp_path / "eight", 6, seed=3).iterdir():
        write(np.array(Image.open(path))[:, :, 0].astype(np.uint16) * 16, folder / path.name)
    roi = np.zeros((60, 80), np.uint8)
    roi[:, :40] = 255
    mask = write(roi, tmp_path / "roi.png")
    partial = tmp_path / "x.partial"
    with pytest.raises(KeyboardInterrupt):
        PatchCore(**tiny).fit(
            folder,
            window="0:4095",
            run=Run(partial=partial, progress=Interrupt("calibration", 1)),
        )
    if change == "image":
        shutil.copy(folder / "005.png", folder / "004.png")
    options = tiny | ({"neighborhood": 1} if change == "option" else {})
    arguments: dict[str, Any] = {"window": "0:9000" if change == "window" else "0:4095"}
    if change == "roi":
        arguments["roi"] = mask
    seed = int(change == "seed")
    one = PatchCore(**options).fit(folder, **arguments, run=Run(partial=partial, seed=seed))
    other = PatchCore(**options).fit(folder, **arguments, run=Run(seed=seed))
    assert one.bank is not None and other.bank is not None
    assert torch.equal(one.bank.rows, other.bank.rows)


def test_a_partial_file_of_noise_is_as_good_as_none(
    normals: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    partial = tmp_path / "x.partial"
    partial.write_bytes(bytes(range(256)))
    assert PatchCore(**tiny).fit(normals, run=Run(partial=partial)).is_fitted


def test_a_fit_that_fails_leaves_no_half_fitted_detector(
    normals: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(normals, bad)
    (bad / "011.png").write_bytes(b"no image")
    detector = PatchCore(**tiny)
    with pytest.raises(AmissError):
        detector.fit(bad)
    assert not detector.is_fitted


def test_a_second_fit_that_fails_leaves_the_first_as_it_was(
    normals: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    detector = PatchCore(**tiny).fit(normals)
    path = normals / "000.png"
    before = detector.predict(path)
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(AmissError):
        detector.fit(tmp_path)
    after = detector.predict(path)
    assert not isinstance(before, list) and not isinstance(after, list)
    assert after.score == before.score and after.p_value == before.p_value


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"neighborhood": 4},
        {"neighborhood": 0},
        {"stride": 0},
        {"coreset_ratio": 0.0},
        {"coreset_ratio": 1.5},
        {"coreset_ratio": float("nan")},
        {"coreset_size": 0},
        {"num_neighbors": 0},
        {"blur_sigma": -1.0},
        {"folds": 1},
        {"folds": -1},
        {"embedding": "mean"},
        {"coreset": "first"},
        {"distance": "cosine"},
        {"search": "fast"},
        {"resize": "crop"},
        {"layers": ()},
        {"layers": ["8", "16"]},
        {"layers": "8"},
        {"image_size": 256.0},
        {"image_size": (256,)},
        {"image_size": (256, 8)},
        {"coreset_ratio": "0.1"},
        {"num_neighbors": True},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        PatchCore(**options)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="coreset_rato"):
        PatchCore(coreset_rato=0.1)  # type: ignore[call-arg]


def test_options_come_back_from_json() -> None:
    config = PatchCoreConfig(layers=("4", "8"), image_size=(48, 64), coreset_size=9)
    assert PatchCoreConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(OptionError, match="magic"):
        PatchCoreConfig.from_dict({"magic": 1})
