"""Uninformed Students: disagreement, its units, where teachers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import amiss
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import DataError, OptionError, WeightsError
from amiss.learning.held_out import draw_held_out
from amiss.learning.spread import spread, sums
from amiss.methods.uninformed_students import UninformedStudents
from amiss.nn.student_ensemble import StudentEnsemble, disagreement, regression_loss
from amiss.run import Run
from made_images import textures

TINY: dict[str, Any] = {
    "teacher": "random",
    "image_size": (40, 48),
    "patch_sizes": (17, 33),
    "students": 2,
    "stride": 8,
    "width": 0.05,
    "epochs": 2,
    "learning_rate": 1e-2,
}
TAUGHT: dict[str, Any] = TINY | {
    "teacher": "distill",
    "backbone": "test_efficientnet",
    "weights": "random",
    "teacher_steps": 3,
    "teacher_batch": 4,
}


@pytest.fixture(scope="module")
def fitted(normals: Path) -> UninformedStudents:
    return UninformedStudents(**TINY).fit(normals, max_false_alarm=0.4)


def test_variance_is_the_mean_square_less_the_square_of_the_mean() -> None:
    torch.manual_seed(0)
    said, wanted = torch.randn(3, 2, 8, 4, 5, dtype=torch.float64), torch.randn(2, 8, 4, 5)
    error, variance = disagreement(wanted, said)
    mean = said.mean(0)
    squares = said.square().sum(2).mean(0) - mean.square().sum(1)
    torch.testing.assert_close(variance, squares)
    torch.testing.assert_close(error, (mean - wanted).square().sum(1))
    assert (variance >= 0).all()


def test_students_that_say_the_same_do_not_vary_and_the_truth_is_no_error() -> None:
    wanted = torch.randn(2, 8, 4, 5)
    error, variance = disagreement(wanted, wanted.expand(3, *wanted.shape))
    assert error.abs().max() < 1e-10 and variance.abs().max() < 1e-10
    assert regression_loss(wanted, wanted) == 0


def test_the_loss_is_a_mean_over_the_cells_that_count() -> None:
    said, wanted = torch.zeros(1, 3, 1, 2), torch.tensor([1.0, 2.0]).expand(1, 3, 1, 2)
    assert regression_loss(said, wanted) == (3 + 12) / 2
    assert regression_loss(said, wanted, torch.tensor([[[False, True]]])) == 12


def test_scaled_teachers_have_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    ensemble = StudentEnsemble((33,), 1, 0.1, 4)
    images = torch.randint(0, 256, (5, 3, 40, 48), dtype=torch.uint8)
    with torch.no_grad():
        (said,) = ensemble.taught(images)
        ensemble.scales[0] = spread(torch.stack([sums(y) for y in said]).sum(0))
        values = ensemble.scaled(0, said).transpose(0, 1).flatten(1)
    assert values.mean(1).abs().max() < 1e-3
    assert (values.std(1, correction=0) - 1).abs().max() < 1e-3


def test_the_score_is_the_mean_over_sizes_of_error_and_variance_in_their_units(
    fitted: UninformedStudents, normals: Path
) -> None:
    (batch,) = ImageStream(index(normals).train[:2], size=(40, 48)).batches(2)
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
    assert fitted.ensemble is not None and fitted.spread is not None
    with torch.inference_mode():
        found, levels = fitted(images), fitted.ensemble(images)
    total = torch.zeros(2, 5, 6)
    for level in range(2):
        for part in range(2):  # e, v
            mean, deviation = fitted.spread[level, part]
            total += (levels[:, level, part] - mean) / deviation
    torch.testing.assert_close(found.score, (total / 2).amax((1, 2)))


def test_units_are_those_of_images_that_were_held_out(
    fitted: UninformedStudents, normals: Path
) -> None:
    """Spec 5, check 3: over them, error and variance have mean 0 and deviation 1."""
    names = fitted.training_facts["files"]
    assert len(names) == 12
    apart = draw_held_out(range(len(names)), 0, least=2)
    records = [index(normals).train[i] for i in apart]
    (batch,) = ImageStream(records, size=(40, 48)).batches(len(records))
    assert fitted.ensemble is not None and fitted.spread is not None
    with torch.inference_mode():
        found = fitted.ensemble(torch.from_numpy(batch.images).permute(0, 3, 1, 2))
    mean, deviation = fitted.spread[..., 0, None], fitted.spread[..., 1, None]
    values = (found.transpose(0, 2).transpose(0, 1).flatten(2) - mean) / deviation
    assert values.mean(-1).abs().max() < 1e-3
    assert (values.std(-1, correction=0) - 1).abs().max() < 1e-3


def test_scales_are_those_of_the_images_that_were_trained_on(
    fitted: UninformedStudents, normals: Path
) -> None:
    records = index(normals).train
    apart = set(draw_held_out(range(len(records)), 0, least=2).tolist())
    mine = [record for i, record in enumerate(records) if i not in apart]
    (batch,) = ImageStream(mine, size=(40, 48)).batches(len(mine))
    assert fitted.ensemble is not None
    with torch.inference_mode():
        said = fitted.ensemble.taught(torch.from_numpy(batch.images).permute(0, 3, 1, 2))
        for level, y in enumerate(said):
            values = fitted.ensemble.scaled(level, y).transpose(0, 1).flatten(1)
            assert values.mean(1).abs().max() < 1e-3
            assert (values.std(1, correction=0) - 1).abs().max() < 1e-3


def test_one_student_alone_is_judged_by_its_error(normals: Path) -> None:
    detector = UninformedStudents(**TINY | {"students": 1}).fit(normals, max_false_alarm=0.4)
    found = detector.predict(sorted(normals.rglob("*.png"))[0])
    assert isinstance(found, amiss.ImageResult) and abs(found.score) < 1e3


def test_taught_teachers_say_where_they_come_from_and_serve_again(
    normals: Path, tmp_path: Path
) -> None:
    textures(tmp_path / "pictures", 3, seed=5)
    options = TAUGHT | {"distill_data": str(tmp_path / "pictures")}
    said: list[str] = []
    first = UninformedStudents(**options).fit(
        normals, max_false_alarm=0.4, run=Run(say=said.append)
    )
    teacher = first.facts["teacher"]
    assert teacher["pictures"] == "3 pictures of pictures" and teacher["steps"] == 3
    assert any("3 pictures of pictures" in sentence for sentence in said)
    path = first.save(tmp_path / "first.amiss")
    second = UninformedStudents(**TINY | {"teacher": str(path)}).fit(normals, max_false_alarm=0.4)
    assert second.facts["teacher"]["file"] == "first.amiss"
    assert second.facts["teacher"]["pictures"] == teacher["pictures"]
    assert first.ensemble is not None and second.ensemble is not None
    one, other = first.ensemble.teachers.state_dict(), second.ensemble.teachers.state_dict()
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("change", [{"patch_sizes": (33,)}, {"width": 0.1}])
def test_teachers_of_another_kind_are_refused(
    fitted: UninformedStudents, normals: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = fitted.save(tmp_path / "other.amiss")
    with pytest.raises(WeightsError, match="holds no teachers"):
        UninformedStudents(**TINY | change | {"teacher": str(path)}).fit(normals)


def test_a_file_that_is_no_detector_is_refused(normals: Path) -> None:
    with pytest.raises(WeightsError, match="holds no teachers"):
        UninformedStudents(**TINY | {"teacher": __file__}).fit(normals)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch_sizes": (18,)}, "17, 33, 65"),
        ({"patch_sizes": (33, 17)}, "in this order"),
        ({"stride": 3}, "1, 2, 4 or 8"),
        ({"image_size": (40, 44)}, "multiple"),
        ({"patch_sizes": (65,), "image_size": (32, 32)}, "image_size"),
        ({"crop_low": 9.0, "crop_high": 8.0}, "multiples"),
        ({"teacher_batch": 6, "crop_grid": 2}, "multiple of 4, 4 or more"),
        ({"teacher_batch": 4, "crop_grid": 2, "triplet_weight": 1.0}, "multiple of 4, 8 or more"),
        ({"margin": 5.0}, "Leave margin out"),
        ({"teacher": "random"}, "Leave backbone out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        UninformedStudents(**TAUGHT | change)
    assert says in caught.value.hint


def test_a_teacher_that_is_no_file_is_refused(normals: Path) -> None:
    with pytest.raises(OptionError, match=r"distil is no file"):
        UninformedStudents(**TINY | {"teacher": "distil"}).fit(normals)


def test_what_little_memory_cannot_keep_is_asked_for_in_every_step(
    fitted: UninformedStudents, normals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amiss.learning.training_images.room_bytes", lambda run: 0.0)
    other = UninformedStudents(**TINY).fit(normals, max_false_alarm=0.4)
    one, two = fitted.artifact()[1], other.artifact()[1]
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)


def test_one_image_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="kept apart"):
        UninformedStudents(**TINY).fit(textures(tmp_path / "one", 1, seed=1))


@pytest.mark.parametrize(("stage", "step"), [("teachers", 2), ("students", 5)])
def test_an_interrupted_fit_ends_alike(
    normals: Path, tmp_path: Path, stage: str, step: int
) -> None:
    options = TAUGHT
    whole = UninformedStudents(**options).fit(normals, max_false_alarm=0.4)

    def stop(now: str, done: int, total: int) -> None:
        if now == stage and done == step:
            raise KeyboardInterrupt

    partial = tmp_path / "x.partial"
    with pytest.raises(KeyboardInterrupt):
        UninformedStudents(**options).fit(normals, run=Run(partial=partial, progress=stop))
    done: list[tuple[str, int]] = []
    run = Run(partial=partial, progress=lambda now, n, _: done.append((now, n)))
    again = UninformedStudents(**options).fit(normals, max_false_alarm=0.4, run=run)
    taught = [n for now, n in done if now == "teachers"]
    assert taught == ([3] if stage == "teachers" else [])
    learned = [n for now, n in done if now == "students"]
    assert learned[0] == (1 if stage == "teachers" else step + 1)
    one, other = whole.artifact()[1], again.artifact()[1]
    assert all(torch.equal(one[k], other[k]) for k in one)
