"""EGBAD: three losses, running means that judge, both scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.methods.egbad import EGBAD
from amiss.nn.bigan import PairDiscriminator

TINY: dict[str, Any] = {
    "image_size": (16, 32), "network": "deep", "width": 4, "latent_dim": 6, "epochs": 2,
    "batch_size": 4, "average": 0.5,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::amiss.errors.TrainingWarning")


@pytest.fixture(scope="module")
def images(normals: Path) -> Tensor:
    (batch,) = ImageStream(index(normals).train[:3], size=(16, 32)).batches(3)
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def fitted(normals: Path) -> EGBAD:
    return EGBAD(**TINY).fit(normals, max_false_alarm=0.4)


def at(fitted: EGBAD, **change: Any) -> EGBAD:
    other = EGBAD(**TINY | change)
    other.restore(*fitted.artifact())
    return other


def test_a_discriminator_that_knows_nothing_costs_logarithms(
    normals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E2."""

    def undecided(self: PairDiscriminator, images: Tensor, codes: Tensor) -> Tensor:
        return 0 * (images.flatten(1).mean(1, keepdim=True) + codes.mean(1, keepdim=True)) + (
            0 * self.head.bias
        )

    monkeypatch.setattr(PairDiscriminator, "forward", undecided)
    facts = EGBAD(**TINY | {"epochs": 1}).fit(normals, max_false_alarm=0.4).facts
    assert facts["losses"]["discriminator"] == pytest.approx([2 * math.log(2)], rel=1e-5)
    assert facts["losses"]["generator"] == pytest.approx([math.log(2)], rel=1e-5)
    assert facts["losses"]["encoder"] == pytest.approx([math.log(2)], rel=1e-5)


def test_scores_are_those_of_the_paper(fitted: EGBAD, images: Tensor) -> None:
    """E3: without the discriminator, the L1 distance alone."""
    x = images.float() / 127.5 - 1
    networks = fitted.networks
    with torch.inference_mode():
        code = networks.encoder(x)
        again = networks.maker(code)
        l1 = (x - again).abs().sum((1, 2, 3))
        features = networks.critic.features
        apart = (features(x, code) - features(again, code)).abs().sum(1)
        entropy = F.softplus(-networks.critic(again, code)[:, 0])
        torch.testing.assert_close(at(fitted, discrimination_weight=0.0)(images).score, l1)
        torch.testing.assert_close(fitted(images).score, 0.9 * l1 + 0.1 * apart)
        by_logits = at(fitted, discrimination="logits", discrimination_weight=0.4)(images).score
        torch.testing.assert_close(by_logits, 0.6 * l1 + 0.4 * entropy)
        assert fitted(images).anomaly_map is not None


def test_running_means_judge_and_the_last_weights_do_not(normals: Path) -> None:
    last = EGBAD(**TINY | {"average": 0.0}).fit(normals, max_false_alarm=0.4)
    mean = EGBAD(**TINY | {"average": 0.9}).fit(normals, max_false_alarm=0.4)
    torch.manual_seed(0)
    first = EGBAD(**TINY)
    # Trained alike (the running mean takes no part in it), so means lie between first and last.
    assert last.facts["losses"] == mean.facts["losses"]
    one = last.networks.encoder.head.weight
    other = mean.networks.encoder.head.weight
    assert not torch.equal(one, other)
    assert isinstance(first._untrained(), nn.Module)


def test_a_cycle_is_part_of_the_losses_where_it_is_asked_for(normals: Path) -> None:
    plain = EGBAD(**TINY).fit(normals, max_false_alarm=0.4).facts["losses"]
    cycled = EGBAD(**TINY, cycle_weight=10.0).fit(normals, max_false_alarm=0.4).facts["losses"]
    assert "cycle" not in plain and all(value > 0 for value in cycled["cycle"])


def test_the_small_networks_are_the_default() -> None:
    detector = EGBAD()
    assert detector.image_size == (28, 28) and detector.config.network == "small"
    assert detector.config.latent_dim == 200 and detector.config.batch_size == 100
