"""AnoGAN: the search finds what the generator can make, image by image, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import OptionError
from amiss.methods import anogan
from amiss.methods.anogan import AnoGAN
from amiss.nn.gan import ConvEncoder, ConvGenerator, folded

TINY: dict[str, Any] = {
    "image_size": (16, 32), "width": 4, "latent_dim": 6, "epochs": 2, "batch_size": 4,
    "search_steps": 20, "search_rate": 0.1,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::amiss.errors.TrainingWarning")


@pytest.fixture(scope="module")
def images(normals: Path) -> Tensor:
    (batch,) = ImageStream(index(normals).train[:4], size=(16, 32)).batches(4)
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def fitted(normals: Path) -> AnoGAN:
    return AnoGAN(**TINY).fit(normals, max_false_alarm=0.4)


def at(fitted: AnoGAN, **change: Any) -> AnoGAN:
    """The same networks with other options of the search."""
    other = AnoGAN(**TINY | change)
    other.restore(*fitted.artifact())
    return other


def test_what_the_generator_makes_is_found_again(normals: Path) -> None:
    """A1: of a generator whose batch norms are warm, the loss falls below 1 % of its first. At the
    default rate no value of a code gets further than 2.2, and a part of the loss stays."""
    torch.manual_seed(0)
    detector = AnoGAN(image_size=(32, 32), colors="gray", epochs=1)
    detector.networks = detector._untrained()
    maker = detector.networks.maker
    for _ in range(20):
        maker(maker.draw(64))
    detector.networks.eval().requires_grad_(False)
    detector.facts = {"images": 0}
    with torch.no_grad():
        x = maker.make(maker.draw(4, seed=5))
        wanted = detector._features(x)
        at_truth, _ = detector._loss(maker.draw(4, seed=5), x, None, wanted)
        start, _ = detector._loss(maker.draw(1, seed=0).expand(4, -1), x, None, wanted)
    assert at_truth.max() < 1e-2
    assert (detector._closest(x, None).loss > 0.1 * start).all()
    faster = AnoGAN(image_size=(32, 32), colors="gray", epochs=1, search_rate=0.03)
    faster.networks, faster.facts = detector.networks, detector.facts
    assert (faster._closest(x, None).loss < 0.01 * start).all()


def test_a_search_leaves_the_networks_alone(fitted: AnoGAN, images: Tensor) -> None:
    before = {k: v.clone() for k, v in fitted.networks.state_dict().items()}
    with torch.inference_mode():
        fitted(images)
    after = fitted.networks.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in fitted.networks.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"search_steps": 500, "search_rate": 0.03},
        {"patience": 3},
        {"keep": "best"},
        {"restarts": 3},
        {"reduction": "mean"},
    ],
)
def test_a_batch_is_searched_as_its_images_one_by_one(
    fitted: AnoGAN, images: Tensor, change: dict[str, Any]
) -> None:
    detector = at(fitted, **change)
    with torch.inference_mode():
        together = detector(images)
        alone = [detector(image) for image in images.split(1)]
    torch.testing.assert_close(
        together.score, torch.cat([p.score for p in alone]), rtol=1e-4, atol=0
    )
    assert together.anomaly_map is not None
    maps = torch.cat([p.anomaly_map for p in alone if p.anomaly_map is not None])
    torch.testing.assert_close(together.anomaly_map, maps, rtol=1e-3, atol=1e-4)


def test_the_weight_of_the_features_goes_from_none_to_all(fitted: AnoGAN, images: Tensor) -> None:
    """A4: with lambda 0 the score is the residual, with 1 it is that of the features."""
    for weight in (0.0, 1.0):
        detector = at(fitted, feature_weight=weight)
        x = images.float() / 127.5 - 1
        found = detector._closest(x, None)
        residual = (x - found.image).abs().sum((1, 2, 3))
        critic = fitted.networks.critic
        with torch.no_grad():
            apart = (critic.features(x) - critic.features(found.image)).abs().sum((1, 2, 3))
        torch.testing.assert_close(
            found.loss, residual if weight == 0 else apart, rtol=1e-4, atol=0
        )


def test_logits_ask_whether_what_is_made_looks_real(fitted: AnoGAN, images: Tensor) -> None:
    detector = at(fitted, feature_weight=1.0, discrimination="logits")
    found = detector._closest(images.float() / 127.5 - 1, None)
    with torch.no_grad():
        logits = fitted.networks.critic(found.image)[:, 0]
    torch.testing.assert_close(found.loss, F.softplus(-logits), rtol=1e-4, atol=1e-6)


def test_a_search_is_of_the_networks_there_are(fitted: AnoGAN, images: Tensor) -> None:
    detector = at(fitted)
    x = images.float() / 127.5 - 1
    before = detector._closest(x, None)
    facts, tensors = fitted.artifact()
    detector.restore(
        facts, {k: v * 0.5 if v.is_floating_point() else v for k, v in tensors.items()}
    )
    changed = detector._closest(x, None)
    assert not torch.equal(changed.image, before.image)
    detector.restore(facts, tensors)
    assert torch.equal(detector._closest(x, None).image, before.image)


def test_large_images_are_searched_a_few_at_a_time(
    fitted: AnoGAN, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    search = anogan.search_codes

    def watched(loss_of: Any, start: Tensor, how: Any) -> Tensor:
        sizes.append(len(start))
        return search(loss_of, start, how)

    monkeypatch.setattr(anogan, "search_codes", watched)
    x = images.float() / 127.5 - 1
    rois = torch.ones(4, 16, 32, dtype=torch.bool)
    rois[2, :, :16] = False
    at_once = fitted._closest(x, rois)
    monkeypatch.setattr(anogan, "_AT_ONCE", 3 * 16 * 32 * 4)
    in_parts = fitted._closest(x, rois)
    assert sizes == [4, 3, 1]
    torch.testing.assert_close(in_parts.loss, at_once.loss, rtol=1e-4, atol=0)


def test_folded_networks_say_what_they_did() -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder((32, 32), 1, channels=3, width=8)
    generator = ConvGenerator((32, 32), 5, channels=3, width=8)
    x, z = torch.rand(3, 3, 32, 32), torch.randn(3, 5)
    for _ in range(3):
        encoder(x)
        generator(z)
    encoder.eval()
    generator.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            folded(encoder.body)(x), encoder.features(x), rtol=1e-4, atol=1e-6
        )
        made = folded(generator.body)(z[:, :, None, None])
        torch.testing.assert_close(made, generator(z), rtol=1e-4, atol=1e-6)


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(OptionError, match="no image stops"):
        AnoGAN(tolerance=0.5)
    with pytest.raises(OptionError, match="no bound"):
        AnoGAN(clamp_codes=True)
