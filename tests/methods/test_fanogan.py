"""f-AnoGAN: three ways to teach the encoder, six scores, and what stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import OptionError
from amiss.learning.training_images import ImageBatch
from amiss.methods.fanogan import SCORES, FAnoGAN
from amiss.run import Run

TINY: dict[str, Any] = {
    "image_size": (16, 32), "width": 4, "latent_dim": 6, "epochs": 2, "batch_size": 4,
    "n_critic": 1, "encoder_epochs": 2,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::amiss.errors.TrainingWarning")


@pytest.fixture(scope="module")
def images(normals: Path) -> Tensor:
    (batch,) = ImageStream(index(normals).train[:3], size=(16, 32)).batches(3)
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def fitted(normals: Path) -> FAnoGAN:
    return FAnoGAN(**TINY, score="critic").fit(normals, max_false_alarm=0.4)


def at(fitted: FAnoGAN, **change: Any) -> FAnoGAN:
    other = FAnoGAN(**TINY | change)
    other.restore(*fitted.artifact())
    return other


@pytest.mark.parametrize("training", ["izi_f", "izi", "ziz"])
def test_the_encoder_learns_and_nothing_else_does(
    normals: Path, training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2."""
    kept: dict[str, Tensor] = {}
    teach = FAnoGAN._train_encoder

    def watched(self: FAnoGAN, *arguments: Any) -> Any:
        kept.update({k: v.clone() for k, v in self.networks.state_dict().items()})
        return teach(self, *arguments)

    monkeypatch.setattr(FAnoGAN, "_train_encoder", watched)
    detector = FAnoGAN(**TINY, encoder_training=training).fit(normals, max_false_alarm=0.4)
    after = detector.networks.state_dict()
    for name, value in kept.items():
        if not name.startswith("encoder."):
            assert torch.equal(value, after[name]), name
    assert any(not torch.equal(kept[k], after[k]) for k in kept if k.startswith("encoder."))


def test_without_kappa_the_features_do_not_count(fitted: FAnoGAN, images: Tensor) -> None:
    """F3, in what is learned and in what is scored."""
    x = images.float() / 127.5 - 1
    encoder = fitted.networks.encoder
    alone, _ = at(fitted, encoder_training="izi")._encoder_loss(encoder, x, None)
    without, parts = at(fitted, kappa=0.0)._encoder_loss(encoder, x, None)
    both, _ = fitted._encoder_loss(encoder, x, None)
    assert torch.equal(alone, without) and parts["features"] > 0 and both > alone
    with torch.inference_mode():
        izi = at(fitted, score="izi")(images).score
        zero = at(fitted, score_kappa=0.0)(images).score
    assert torch.equal(izi, zero)


class _Inverse(nn.Module):
    """Stands for G o E where what is made again is the image."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, codes: Tensor) -> Tensor:
        return self.x


def test_what_is_made_without_fault_scores_nothing(fitted: FAnoGAN, images: Tensor) -> None:
    x = images[:1].float() / 127.5 - 1
    for score in SCORES:
        detector = at(fitted, score=score)
        detector.networks.maker = _Inverse(x)
        with torch.inference_mode():
            found = detector(images[:1])
        assert found.anomaly_map is not None and found.anomaly_map.max() < 1e-6
        assert (abs(float(found.score)) < 1e-9) == (score != "critic"), score


def test_codes_of_the_prior_cost_an_encoder_that_says_nothing_their_square(
    fitted: FAnoGAN,
) -> None:
    """F4: E at 0 and z of N(0, I): (1/d) ||z||^2, 1 on average."""

    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 6)

    detector = at(fitted, encoder_training="ziz")
    torch.manual_seed(0)
    loss, _ = detector._encoder_loss(Silent(), torch.zeros(4000, 3, 16, 32), None)
    assert float(loss) == pytest.approx(1, rel=0.05)


def test_scores_are_put_together_of_the_same_terms(fitted: FAnoGAN, images: Tensor) -> None:
    """F6, and each by its formula."""
    x = images.float() / 127.5 - 1
    networks = fitted.networks
    with torch.inference_mode():
        code = networks.encoder(x).tanh()
        made = networks.maker(code)
        again = networks.encoder(made).tanh()
        residual = (x - made).square().mean((1, 2, 3))
        apart = (networks.critic.features(x) - networks.critic.features(made)).square().mean(1)
        expected = {
            "izi_f": residual + apart,
            "izi": residual,
            "feature": apart,
            "z": (code - again).square().mean(1),
            "latent": (code - again).square().sum(1) + apart,
            "critic": fitted.facts["mean_answer"] - networks.critic(x)[:, 0],
        }
        for score, values in expected.items():
            found = at(fitted, score=score)(images).score
            torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("bound", "largest"), [("tanh", 1.0), ("tanh3", 3.0), ("clip", 3.0), ("none", 50.0)]
)
def test_codes_are_bounded_as_asked(fitted: FAnoGAN, bound: str, largest: float) -> None:
    codes = torch.tensor([[-50.0, 50.0]])
    bounded = at(fitted, bound=bound)._bounded(codes)
    assert bounded.abs().max() == largest
    small = torch.tensor([[0.01]])
    slope = 3.0 if bound == "tanh3" else 1.0
    torch.testing.assert_close(
        at(fitted, bound=bound)._bounded(small), slope * small, rtol=1e-3, atol=0
    )


def test_another_encoder_goes_on_from_the_same_generator(normals: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    run = Run(
        partial=tmp_path / "x.partial",
        progress=lambda stage, done, total: stages.append(stage),
    )
    FAnoGAN(**TINY).fit(normals, max_false_alarm=0.4, run=run)
    assert {"generator", "encoder"} <= set(stages)
    stages.clear()
    FAnoGAN(**TINY, encoder_training="ziz").fit(normals, max_false_alarm=0.4, run=run)
    assert "encoder" in stages and "generator" not in stages


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(OptionError, match="encoder_training is ziz"):
        FAnoGAN(encoder_training="ziz", kappa=2.0)
    with pytest.raises(OptionError, match="score is izi"):
        FAnoGAN(score="izi", score_kappa=2.0)


def test_regions_are_mirrored_with_their_images() -> None:
    images = torch.arange(8, dtype=torch.uint8).expand(40, 3, 4, 8).clone()
    rois = torch.zeros(40, 4, 8, dtype=torch.bool)
    rois[:, :, :3] = True
    torch.manual_seed(0)
    plain = FAnoGAN(**TINY)._augmented(ImageBatch(images, rois))
    assert torch.equal(plain.images, images)
    found = FAnoGAN(**TINY, flip=True)._augmented(ImageBatch(images, rois))
    assert found.rois is not None
    for image, roi in zip(found.images, found.rois, strict=True):
        # What is looked at holds the same levels, mirrored or not.
        assert sorted(set(image[0][roi].tolist())) == [0, 1, 2]
    mirrored = found.images[:, 0, 0, 0] == 7
    assert 8 < int(mirrored.sum()) < 32
    assert FAnoGAN(**TINY, flip=True)._augmented(ImageBatch(images, None)).rois is None


def test_the_encoder_is_judged_with_by_statistics_of_what_it_learned_from(normals: Path) -> None:
    """A momentum of 0.01 leaves most of the first ones after a few steps."""
    detector = FAnoGAN(**TINY).fit(normals, max_false_alarm=0.4)
    (batch,) = ImageStream(index(normals).train, size=(16, 32)).batches(12)
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
    norm = detector.networks.encoder.blocks[0].norm1
    with torch.no_grad():
        inner = detector.networks.encoder.first(images.float() / 127.5 - 1)
    # Of ten of the twelve images, so near those of all.
    torch.testing.assert_close(norm.running_mean, inner.mean((0, 2, 3)), rtol=0.2, atol=0.05)
    ratio = norm.running_var / inner.var((0, 2, 3))
    assert ((ratio > 0.7) & (ratio < 1.4)).all()
