"""What methods with a generator have in common: resuming, samples, pictures, reconstructions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amiss
from amiss.data.images import write_png
from amiss.data.index import index
from amiss.errors import NotFittedError, OptionError
from amiss.methods.base import Detector
from amiss.run import Run

TINY: dict[str, Any] = {
    "image_size": (16, 32), "width": 4, "latent_dim": 6, "epochs": 3, "batch_size": 4,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "DCGAN": {},
    "WGAN": {"n_critic": 2},
    "WGANGP": {"n_critic": 2},
    "AnoGAN": {"search_steps": 5},
    "EGBAD": {"network": "deep"},
    "FAnoGAN": {"n_critic": 2, "encoder_epochs": 3, "flip": True},
}
pytestmark = pytest.mark.filterwarnings("ignore::amiss.errors.TrainingWarning")


def make(name: str, **change: Any) -> Any:
    return getattr(amiss, name)(**TINY | KINDS[name] | change)


@pytest.fixture(scope="module")
def fitted(normals: Path) -> dict[str, Any]:
    return {name: make(name).fit(normals, max_false_alarm=0.4) for name in KINDS}


@pytest.mark.parametrize(
    ("name", "watched"),
    [(name, "generator" if name == "FAnoGAN" else "training") for name in KINDS]
    + [("FAnoGAN", "encoder")],
)
def test_an_interrupted_fit_ends_alike(
    name: str, watched: str, fitted: dict[str, Any], normals: Path, tmp_path: Path
) -> None:
    def stop(at: str, done: int, total: int) -> None:
        if at == watched and done == 3:
            raise KeyboardInterrupt

    partial = tmp_path / "x.partial"
    with pytest.raises(KeyboardInterrupt):
        make(name).fit(normals, run=Run(partial=partial, progress=stop))
    steps: list[tuple[str, int]] = []

    def note(at: str, done: int, total: int) -> None:
        if at in ("training", "generator", "encoder"):
            steps.append((at, done))

    run = Run(partial=partial, progress=note)
    again = make(name).fit(normals, max_false_alarm=0.4, run=run)
    assert steps[0] == (watched, 4)  # what was done is not done again, also of earlier stages
    one, other = fitted[name].artifact()[1], again.artifact()[1]
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert fitted[name].facts["losses"] == again.facts["losses"]


@pytest.mark.parametrize("name", KINDS)
def test_samples_follow_from_the_seed_and_survive_the_file(
    name: str, fitted: dict[str, Any], tmp_path: Path
) -> None:
    detector = fitted[name]
    made = detector.sample(20, seed=3)
    assert made.shape == (20, 16, 32, 3) and made.dtype == np.uint8
    assert np.array_equal(made, detector.sample(20, seed=3))
    assert not np.array_equal(made, detector.sample(20, seed=4))
    # Which others are made with it is of no matter to an image, but for the last bit of a sum.
    part = detector.sample(5, seed=3, start=12).astype(int)
    assert np.abs(part - made[12:17].astype(int)).max() <= 1
    again = amiss.load(detector.save(tmp_path / "x.amiss"))
    assert np.array_equal(again.sample(20, seed=3), made)
    kept, of_file = detector.pictures(), again.pictures()
    assert [step for step, _ in kept] == [step for step, _ in of_file] and kept[-1][0] == 6
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(kept, of_file, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_what_was_learned_is_said(name: str, fitted: dict[str, Any]) -> None:
    facts = fitted[name].facts
    assert facts["images"] == 10 and facts["sample_diversity"] >= 0
    assert "16 x 32 px" in fitted[name].summary()
    assert all(len(values) == 3 for values in facts["losses"].values())


def test_reconstructions_are_what_scores_are_made_of(
    fitted: dict[str, Any],
) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 32), dtype=torch.uint8)
    for name in ("AnoGAN", "EGBAD", "FAnoGAN"):
        detector = fitted[name]
        with torch.inference_mode():
            made = detector.reconstruct(images)
            found = detector(images)
        assert made is not None and made.dtype == torch.uint8 and found.anomaly_map is not None
        apart = (images.float() - made.float()).abs().mean(1) / 127.5
        # Levels are rounded in what is shown.
        torch.testing.assert_close(found.anomaly_map, apart, atol=0.6 / 127.5, rtol=0)
    for name in ("DCGAN", "WGAN", "WGANGP"):
        assert fitted[name].reconstruct(images) is None


def test_grey_generators_make_grey(normals: Path) -> None:
    detector = make("DCGAN", colors="gray").fit(normals, max_false_alarm=0.4)
    made = detector.sample(2)
    assert made.shape == (2, 16, 32, 3)
    assert np.array_equal(made[..., 0], made[..., 1]) and np.array_equal(made[..., 0], made[..., 2])


def test_a_uniform_prior_is_drawn_from(normals: Path) -> None:
    normal, uniform = make("DCGAN"), make("DCGAN", latent="uniform")
    assert not np.array_equal(
        normal.fit(normals, max_false_alarm=0.4).sample(3),
        uniform.fit(normals, max_false_alarm=0.4).sample(3),
    )


def test_only_what_has_a_generator_makes_samples(normals: Path) -> None:
    with pytest.raises(NotFittedError):
        make("DCGAN").sample(3)
    ganomaly = amiss.GANomaly(**TINY).fit(normals, max_false_alarm=0.4)
    with pytest.raises(OptionError, match="ganomaly makes no images"):
        ganomaly.sample(3)
    assert isinstance(ganomaly, Detector) and ganomaly.pictures() == []


def test_critics_score_normal_images_zero_on_average(fitted: dict[str, Any], normals: Path) -> None:
    """F5, of the images that the mean was taken over."""
    critic = make("FAnoGAN", score="critic").fit(normals, max_false_alarm=0.4)
    for detector in (fitted["WGAN"], fitted["WGANGP"], critic):
        scores = [found.score for found in _trained_on(detector, normals)]
        scale = abs(detector.facts["mean_answer"]) + np.abs(scores).max()
        assert np.mean(scores) == pytest.approx(0, abs=1e-5 * scale + 1e-7)


def _trained_on(detector: Any, normals: Path) -> list[Any]:
    from amiss.learning.held_out import draw_held_out

    paths = sorted(normals.rglob("*.png"))
    apart = set(draw_held_out(range(len(paths)), 0).tolist())
    found = detector.predict([path for i, path in enumerate(paths) if i not in apart])
    assert isinstance(found, list) and len(found) == 10
    return found


@pytest.mark.parametrize("name", KINDS)
def test_images_with_regions_are_learned_from(name: str, normals: Path, tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :40] = 255
    roi = write_png(mask, tmp_path / "left.png")
    records = [replace(record, roi=roi) for record in index(normals).train]
    detector = make(name).fit(records, max_false_alarm=0.4)
    images = torch.randint(0, 256, (2, 3, 16, 32), dtype=torch.uint8)
    seen = torch.zeros(2, 16, 32, dtype=torch.bool)
    seen[:, :, :16] = True
    other = images.clone()
    other[..., 16:] = 255 - other[..., 16:]
    with torch.inference_mode():
        one, same = detector(images, seen), detector(other, seen)
        assert not torch.equal(detector(images).score, one.score)
    assert torch.equal(one.score, same.score)
    if one.anomaly_map is not None:
        assert not one.anomaly_map[..., 16:].any() and one.anomaly_map[..., :16].any()
