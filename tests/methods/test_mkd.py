"""MKD: the cloner of the paper, its losses and weights, its map as a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amiss
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import OptionError
from amiss.methods.mkd import MKD
from amiss.nn.cloner import Cloner
from amiss.run import Run

TINY: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": "random",
    "image_size": (64, 96),
    "epochs": 3,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def images(normals: Path) -> Tensor:
    """(3, 3, 64, 96) uint8."""
    (batch,) = ImageStream(index(normals).train[:3], size=(64, 96)).batches(3)
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def fitted(normals: Path) -> MKD:
    return MKD(**TINY).fit(normals, max_false_alarm=0.4)


def test_the_cloner_of_a_vgg_is_the_papers() -> None:
    cloner = Cloner((4, 8, 16, 32), (128, 256, 512, 512), signed=False, ceil=False)
    assert sum(p.numel() for p in cloner.parameters()) == 343_984
    widths = [[m.out_channels for m in b if isinstance(m, nn.Conv2d)] for b in cloner.blocks]  # type: ignore[union-attr]
    assert widths == [[16, 16], [16, 128], [16, 16, 256], [16, 16, 512], [16, 16, 512]]
    assert all(m.bias is None for m in cloner.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        found = cloner.eval()(torch.rand(2, 3, 128, 128))
    shapes = [(128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]
    assert [tuple(y.shape[1:]) for y in found] == shapes
    assert all(bool((y >= 0).all()) for y in found)


def test_the_poolings_of_a_vgg_are_its_critical_points(normals: Path) -> None:
    detector = MKD(backbone="vgg11", weights="random", image_size=(32, 32), epochs=1, batch_size=2)
    detector.fit(normals, max_false_alarm=0.4)
    assert detector.facts["strides"] == [4, 8, 16, 32] and not detector.facts["signed"]
    assert detector.facts["channels"] == [128, 256, 512, 512]


def test_points_that_no_halving_leads_to_are_refused() -> None:
    for strides in ((3, 6), (4, 4)):
        with pytest.raises(OptionError):
            Cloner(strides, (8, 8), signed=True, ceil=True)


def test_both_terms_begin_with_the_same_weight(normals: Path) -> None:
    detector = MKD(**TINY | {"epochs": 1, "batch_size": 64}).fit(normals, max_false_alarm=0.4)
    value, direction = detector.facts["weights"]
    (first,) = detector.facts["losses"]["value"]  # of the one step: on the untrained cloner
    (second,) = detector.facts["losses"]["direction"]
    assert value == 1 and direction * second == pytest.approx(value * first, rel=1e-4)


def test_the_codes_weights_are_taken_as_given(normals: Path) -> None:
    detector = MKD(**TINY, value_weight=0.5, direction_weight=1.0)
    detector.fit(normals, max_false_alarm=0.4)
    assert detector.facts["weights"] == [0.5, 1.0]


def test_the_gradient_is_that_of_finite_differences(fitted: MKD, images: Tensor) -> None:
    assert fitted.extractor is not None and fitted.cloner is not None
    double = amiss.MKD(**TINY)
    _, by_forward = fitted._loss_and_gradient(images[:1], None)
    double.restore(*fitted.artifact())
    assert double.extractor is not None and double.cloner is not None
    double.extractor.double()
    double.cloner.double()
    # Levels are taken in as float32 elsewhere; here all is float64.
    double.extractor.normalised = lambda x: torch.addcmul(  # type: ignore[method-assign]
        double.extractor.shift,
        x,
        double.extractor.scale,  # type: ignore[union-attr]
    )
    x = images[:1].double().requires_grad_()
    (gradient,) = torch.autograd.grad(double.total_loss(x).sum(), x)
    # The map is made of this one, by levels in [0, 1].
    scale = float(by_forward.abs().max())
    torch.testing.assert_close(by_forward.double(), 255 * gradient, rtol=1e-3, atol=1e-4 * scale)
    largest = gradient.abs().flatten().topk(5).indices
    for place in largest.tolist():
        step = torch.zeros(x.numel(), dtype=torch.float64)
        step[place] = 1e-4
        step = step.view_as(x)
        with torch.no_grad():
            rise = double.total_loss(x + step) - double.total_loss(x - step)
        assert float(rise) / 2e-4 == pytest.approx(float(gradient.flatten()[place]), rel=1e-4)


def test_a_perfect_clone_has_no_loss_and_no_gradient(fitted: MKD, images: Tensor) -> None:
    class Perfect(nn.Module):
        def __init__(self, source: nn.Module) -> None:
            super().__init__()
            self.source = source

        def forward(self, x: Tensor) -> list[Tensor]:
            return list(self.source(x))

    clone = MKD(**TINY)
    clone.restore(*fitted.artifact())
    assert clone.extractor is not None
    clone.cloner = Perfect(clone.extractor.network)  # type: ignore[assignment]
    with torch.inference_mode():
        found = clone(images)
    assert found.score.abs().max() < 1e-4 * fitted.facts["weights"][1]
    assert found.anomaly_map is not None and found.anomaly_map.abs().max() < 1e-4


def test_the_score_is_the_weighted_loss_and_maps_are_of_one_scale(
    fitted: MKD, images: Tensor
) -> None:
    with torch.inference_mode():
        found, faint = fitted(images), fitted(images.float().mul(0.3).to(torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(found.score, fitted.total_loss(images.float()))
    assert found.anomaly_map is not None and faint.anomaly_map is not None
    assert not torch.allclose(found.anomaly_map.amax((1, 2)), faint.anomaly_map.amax((1, 2)))
    assert (found.anomaly_map >= 0).all()


def test_more_judges_than_points_are_refused(normals: Path) -> None:
    with pytest.raises(OptionError, match="judged_points=5 of 4"):
        MKD(**TINY, judged_points=5).fit(normals)


def test_an_interrupted_training_ends_alike(normals: Path, tmp_path: Path) -> None:
    whole = MKD(**TINY).fit(normals, max_false_alarm=0.4)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 2:
            raise KeyboardInterrupt

    partial = tmp_path / "x.partial"
    with pytest.raises(KeyboardInterrupt):
        MKD(**TINY).fit(normals, run=Run(partial=partial, progress=stop))
    said: list[str] = []
    again = MKD(**TINY).fit(normals, max_false_alarm=0.4, run=Run(partial=partial, say=said.append))
    assert any("going on after step 2" in sentence for sentence in said)
    one, other = whole.artifact()[1], again.artifact()[1]
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert np.array_equal(whole.calibration.scores, again.calibration.scores)  # type: ignore[union-attr]
