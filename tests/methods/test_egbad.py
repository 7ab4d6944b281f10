"""EGBAD: three losses, running means that judge, both scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import OptionError
from amiss.learning.held_out import draw_held_out
from amiss.learning.trained import drawn
from amiss.learning.training_images import TrainingImages
from amiss.methods import egbad
from amiss.methods.egbad import EGBAD
from amiss.nn.bigan import Averaged, PairDiscriminator
from amiss.run import Run
from amiss.training import Loop

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


def test_running_means_of_the_weights_judge(normals: Path) -> None:
    """Of two steps from w0: m = a^2 w0 + a (1 - a) w1 + (1 - a) w2."""
    taken: list[dict[str, Tensor]] = []

    class Watched(Averaged):
        def follow(self, decay: float) -> None:
            taken.append({k: v.clone() for k, v in self.network.named_parameters()})
            super().follow(decay)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egbad, "Averaged", Watched)
        shape = TINY | {"epochs": 1, "batch_size": 5, "average": 0.75}
        detector = EGBAD(**shape).fit(normals, max_false_alarm=0.4)
    # Generator, encoder and critic follow in turn, in each of two steps.
    assert len(taken) == 6
    first = dict(drawn(EGBAD(**shape)._untrained, 0).encoder.named_parameters())
    for name, mean in detector.networks.encoder.named_parameters():
        w0, w1, w2 = first[name], taken[1][name], taken[4][name]
        torch.testing.assert_close(mean, 0.75**2 * w0 + 0.75 * 0.25 * w1 + 0.25 * w2)


def test_what_a_short_training_leaves_of_the_first_weights_is_said(normals: Path) -> None:
    said: list[str] = []
    EGBAD(**TINY | {"average": 0.99}).fit(normals, max_false_alarm=0.4, run=Run(say=said.append))
    # Ten images to learn from, four a step, two epochs: 4 steps.
    assert any("96% of the running mean that judges will be first" in line for line in said)
    assert any("the generator will move 4 times" in line for line in said)


def test_images_to_learn_from_and_images_for_the_threshold_are_apart(normals: Path) -> None:
    """E4."""
    learned: set[str] = set()
    step = EGBAD._step

    def watched(self: EGBAD, loop: Any, batch: Any, data: TrainingImages) -> Any:
        learned.update(record.path.name for record in data.records)
        return step(self, loop, batch, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EGBAD, "_step", watched)
        detector = EGBAD(**TINY).fit(normals, max_false_alarm=0.4)
    assert detector.calibration is not None
    files = sorted(path.name for path in normals.rglob("*.png"))
    apart = {files[i] for i in draw_held_out(range(len(files)), 0)}
    assert len(learned) == 10 and len(apart) == 2 and not learned & apart
    with torch.inference_mode():
        judged = sorted(detector.predict(normals / name).score for name in sorted(apart))
    np.testing.assert_allclose(sorted(detector.calibration.scores), judged, rtol=1e-5)


def test_a_cycle_has_the_gradients_of_one_joint_loss(normals: Path) -> None:
    """G and E learn one after the other, each as if both went by one sum."""
    shape = TINY | {"epochs": 1, "batch_size": 10, "cycle_weight": 3.0}
    found: dict[str, list[Tensor]] = {}
    update = Loop.update

    def watched(loop: Loop, name: str) -> None:
        network = loop.players[name].network
        found[name] = [
            torch.zeros_like(w) if w.grad is None else w.grad.clone()
            for w in network.parameters() if w.requires_grad
        ]  # fmt: skip
        update(loop, name)

    cycle = EGBAD._cycle

    def both(x: Tensor, made: Tensor, batch: Any) -> Tensor:
        value = cycle(x, made, batch)
        kept.append((x, value.detach()))
        return value

    kept: list[tuple[Tensor, Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "update", watched)
        patch.setattr(EGBAD, "_cycle", staticmethod(both))
        EGBAD(**shape).fit(normals, max_false_alarm=0.4)
    with_cycle = dict(found)
    assert torch.equal(kept[0][1], kept[1][1])  # of the same G and E in both steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "update", watched)
        EGBAD(**shape | {"cycle_weight": 0.0}).fit(normals, max_false_alarm=0.4)
    x = kept[0][0]
    networks = drawn(EGBAD(**shape)._untrained, 0).train()
    joint: dict[str, list[Tensor]] = {}
    value = 3.0 * (x - networks.maker(networks.encoder(x))).abs().mean()
    players = {"generator": networks.maker, "encoder": networks.encoder}
    weights = [list(network.parameters()) for network in players.values()]
    gradients = list(torch.autograd.grad(value, [w for group in weights for w in group]))
    for (name, _), group in zip(players.items(), weights, strict=True):
        joint[name] = gradients[: len(group)]
        gradients = gradients[len(group) :]
        for whole, plain, part in zip(with_cycle[name], found[name], joint[name], strict=True):
            torch.testing.assert_close(whole, plain + part, rtol=1e-3, atol=1e-6)


def test_networks_of_small_images_refuse_large_ones() -> None:
    with pytest.raises(OptionError, match="network=small, image_size=128,128"):
        EGBAD(image_size=(128, 128))
    assert EGBAD(image_size=(128, 128), network="deep").config.network == "deep"


def test_a_cycle_is_part_of_the_losses_where_it_is_asked_for(normals: Path) -> None:
    plain = EGBAD(**TINY).fit(normals, max_false_alarm=0.4).facts["losses"]
    cycled = EGBAD(**TINY, cycle_weight=10.0).fit(normals, max_false_alarm=0.4).facts["losses"]
    assert "cycle" not in plain and all(value > 0 for value in cycled["cycle"])


def test_the_small_networks_are_the_default() -> None:
    detector = EGBAD()
    assert detector.image_size == (28, 28) and detector.config.network == "small"
    assert detector.config.latent_dim == 200 and detector.config.batch_size == 100
