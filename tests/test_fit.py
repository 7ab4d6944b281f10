"""What a fit leaves in a detector, and what a failed one leaves alone."""

from __future__ import annotations

import hashlib
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amiss
from amiss.data.index import index
from amiss.data.stream import digest
from amiss.errors import CalibrationWarning, DataError, ImageError, OptionError
from amiss.fit import fit
from amiss.methods.patchcore import PatchCore
from amiss.run import Run
from amiss.types import NORMAL, Record
from made_images import SIZE, spoil, texture, write


def test_a_fit_returns_the_detector_with_what_it_was_fitted_on(
    labelled: Path, tiny: dict[str, Any]
) -> None:
    detector = PatchCore(**tiny)
    config = detector.config
    said: list[str] = []
    assert (
        fit(detector, labelled, max_false_alarm=0.1, run=Run(seed=3, say=said.append)) is detector
    )
    assert detector.config is config and detector.is_fitted and not detector.training
    facts = detector.training_facts
    names = [f"train/good/{i:03}.png" for i in range(12)]
    digests = [digest((labelled / name).read_bytes()) for name in names]
    assert (facts["name"], facts["layout"], facts["root"]) == (
        labelled.name, "mvtec", str(labelled)
    )  # fmt: skip
    assert facts["files"] == names and facts["n_normal"] == 12
    assert facts["fingerprint"] == hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    assert [bytes(row) for row in detector.training_digests] == digests
    assert facts["seed"] == 3 and facts["window"] == "percentile" and facts["roi"] is None
    assert facts["fit_seconds"] > 0 and "amiss" in facts["versions"]
    assert said[0] == index(labelled).describe()
    assert detector.calibration is not None and detector.calibration.max_false_alarm == 0.1
    assert len(detector.calibration.scores) == 12


def test_anomalous_and_test_images_are_not_learned_from(
    labelled: Path, tiny: dict[str, Any]
) -> None:
    alone = [Record(r.path, NORMAL, split="train") for r in index(labelled).train]
    one, other = PatchCore(**tiny).fit(labelled), PatchCore(**tiny).fit(alone)
    assert one.calibration is not None and other.calibration is not None
    assert np.array_equal(one.calibration.scores, other.calibration.scores)
    assert one.training_facts["fingerprint"] == other.training_facts["fingerprint"]


def test_the_least_normal_images_come_first_and_are_ten_at_most(
    normals: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    image = texture(np.random.default_rng(7))
    spoil(image, 20, 30)
    dirty = write(image, tmp_path / "dirty.png")
    detector = PatchCore(**tiny).fit([*sorted(normals.iterdir()), dirty])
    least = detector.training_facts["least_normal"]
    assert least[0]["file"] == dirty.as_posix()
    assert [row["rank"] for row in least] == list(range(1, 11))
    assert detector.calibration is not None
    highest = np.sort(detector.calibration.scores)[::-1][:10]
    assert [row["score"] for row in least] == highest.tolist()


def test_one_mask_for_all_images_is_kept_for_every_later_one(
    normals: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[:, :40] = 255
    path = write(mask, tmp_path / "left.png")
    detector = PatchCore(**tiny).fit(normals, roi=str(path), window="0:255")
    assert detector.training_facts["roi"] == "left.png"
    assert detector.training_facts["window"] == "0:255"
    assert detector.roi is not None
    assert detector.roi[:, :32].all() and not detector.roi[:, 32:].any()
    again = detector.fit(normals)
    assert again.roi is None and again.training_facts["roi"] is None


def test_one_image_gives_scores_without_decisions_and_says_so(
    normals: Path, tiny: dict[str, Any]
) -> None:
    said: list[str] = []
    detector = fit(PatchCore(**tiny), [normals / "000.png"], run=Run(say=said.append))
    assert detector.calibration is None and detector.training_facts["least_normal"] == []
    assert said[-1].startswith("One image cannot calibrate")


def test_too_few_images_for_the_rate_are_said(normals: Path, tiny: dict[str, Any]) -> None:
    said: list[str] = []
    detector = fit(PatchCore(**tiny), normals, max_false_alarm=0.01, run=Run(say=said.append))
    assert detector.calibration is not None
    assert detector.calibration.notes and said[-1] == detector.calibration.notes[-1]


def test_nothing_to_learn_from_is_a_named_error(labelled: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no normal image") as caught:
        fit(PatchCore(**tiny), index(labelled).test)
    assert caught.value.hint


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_out_of_range_is_refused_before_anything_is_read(
    rate: float, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    with pytest.raises(OptionError):
        fit(PatchCore(**tiny), tmp_path / "nowhere", max_false_alarm=rate)


def test_a_failed_fit_leaves_what_was_fitted_before(
    detector: PatchCore, normals: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    before = detector.predict(normals / "000.png")
    assert not isinstance(before, list)
    facts, calibration = detector.training_facts, detector.calibration
    with pytest.raises(ImageError, match=r"bad\.png"):
        fit(detector, [*sorted(normals.iterdir()), bad])
    assert detector.training_facts is facts and detector.calibration is calibration
    after = detector.predict(normals / "000.png")
    assert not isinstance(after, list) and after.score == before.score
    fresh = PatchCore(**vars(detector.config))
    with pytest.raises(ImageError):
        fit(fresh, [normals / "000.png", bad])
    assert not fresh.is_fitted and fresh.training_facts == {}


def test_too_few_images_for_the_rate_are_said_in_python_too(
    tiny: dict[str, object], normals: Path
) -> None:
    with pytest.warns(CalibrationWarning, match="cannot support a false-alarm rate of 0.01"):
        PatchCore(**tiny).fit(normals)  # type: ignore[arg-type]
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PatchCore(**tiny).fit(normals, run=Run(say=said.append))  # type: ignore[arg-type]
    assert any("cannot support" in sentence for sentence in said)


def test_a_method_that_holds_images_out_says_how_many_it_takes_in_all(normals: Path) -> None:
    said: list[str] = []
    options = {"teacher": "random", "image_size": (32, 32), "patch_sizes": (17,), "students": 1,
               "stride": 8, "width": 0.02, "epochs": 1}  # fmt: skip
    amiss.UninformedStudents(**options).fit(normals, max_false_alarm=0.05, run=Run(say=said.append))
    count = len(list(normals.rglob("*.png")))
    apart = count // 5
    wanted = math.ceil(19 * count / apart)
    assert any(f"{apart} of {count} normal images, held out; about {wanted} in all" in s
               for s in said)  # fmt: skip


@pytest.mark.parametrize("given", [{"device": "cuda"}, {"precision": "bf16-mixed"}])
def test_what_only_a_training_has_use_for_is_refused(
    tiny: dict[str, Any], normals: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match="patchcore does not train by gradients"):
        PatchCore(**tiny).fit(normals, run=Run(**given))


def test_normals_that_all_score_the_same_are_told(
    tiny: dict[str, Any], normals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = PatchCore.learn

    def saturated(self: PatchCore, images: Any, run: Run) -> Any:
        found = learn(self, images, run)
        return found._replace(scores=np.full_like(found.scores, 2.0))

    said: list[str] = []
    fit(PatchCore(**tiny), normals, max_false_alarm=0.5, run=Run(say=said.append))
    assert not any("have the same score" in line for line in said)
    monkeypatch.setattr(PatchCore, "learn", saturated)
    fit(PatchCore(**tiny), normals, max_false_alarm=0.5, run=Run(say=said.append))
    assert any("judged normal images have the same score, 2:" in line for line in said)
