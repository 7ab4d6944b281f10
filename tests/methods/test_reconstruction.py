"""Autoencoder, MemAE and DAAD: what reaches the decoder, what is descended, what is scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amiss
from amiss.data.images import write_png
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import OptionError, TrainingWarning
from amiss.learning.reconstruction import Evenness, flipped, mean_inside
from amiss.learning.training_images import ImageBatch
from amiss.methods.daad import DAAD
from amiss.methods.memae import MemAE
from amiss.nn.memory_module import entropy
from amiss.run import Run
from amiss.training import Loop

SHAPE: dict[str, Any] = {"image_size": (16, 32), "width": 4, "epochs": 3, "batch_size": 4}
SIZE = (16, 32)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": ("AutoEncoder", {**SHAPE, "scales": 2}),
    "skip": ("AutoEncoder", {**SHAPE, "scales": 2, "skip": True, "loss": "ssim"}),
    "memae": ("MemAE", {**SHAPE, "network": "deep", "scales": 2, "items": 9, "shrinkage": 0.05,
                        "flips": "both"}),
    "daad": ("DAAD", {**SHAPE, "scales": 2, "items": 9}),
    "daad+": ("DAAD", {**SHAPE, "scales": 2, "items": 9, "adversarial": True,
                       "discriminator_width": 4, "flips": "horizontal"}),
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::amiss.errors.TrainingWarning")


def make(name: str, **change: Any) -> Any:
    kind, options = KINDS[name]
    return getattr(amiss, kind)(**options | change)


@pytest.fixture(scope="module")
def fitted(normals: Path) -> dict[str, Any]:
    return {name: make(name).fit(normals, max_false_alarm=0.4) for name in KINDS}


@pytest.fixture(scope="module")
def images(normals: Path) -> Tensor:
    (batch,) = ImageStream(index(normals).train[:3], size=SIZE).batches(3)
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


def at(name: str, fitted: dict[str, Any], **change: Any) -> Any:
    """The same networks with other options."""
    other = make(name, **change)
    other.restore(*fitted[name].artifact())
    return other


# --- all of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_an_interrupted_fit_ends_alike(
    name: str, fitted: dict[str, Any], normals: Path, tmp_path: Path
) -> None:
    def stop(_: str, done: int, __: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    partial = tmp_path / "x.partial"
    with pytest.raises(KeyboardInterrupt):
        make(name).fit(normals, run=Run(partial=partial, progress=stop))
    steps: list[int] = []
    run = Run(partial=partial, progress=lambda at, done, _: steps.append(done) if at == "training"
              else None)  # fmt: skip
    again = make(name).fit(normals, max_false_alarm=0.4, run=run)
    assert steps[0] == 4
    one, other = fitted[name].artifact()[1], again.artifact()[1]
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", KINDS)
def test_regions_hide_what_lies_outside(name: str, normals: Path, tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :40] = 255
    roi = write_png(mask, tmp_path / "left.png")
    records = [replace(record, roi=roi) for record in index(normals).train]
    detector = make(name).fit(records, max_false_alarm=0.4)
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    seen = torch.zeros(2, *SIZE, dtype=torch.bool)
    seen[:, :, :16] = True
    other = images.clone()
    other[..., 16:] = 255 - other[..., 16:]
    with torch.inference_mode():
        one, same = detector(images, seen), detector(other, seen)
        assert not torch.equal(detector(images).score, one.score)
    assert torch.equal(one.score, same.score) and one.anomaly_map is not None
    assert not one.anomaly_map[..., 16:].any() and one.anomaly_map[..., :16].any()


@pytest.mark.parametrize("name", KINDS)
def test_what_is_made_stands_behind_the_map(
    name: str, fitted: dict[str, Any], images: Tensor
) -> None:
    detector = at(name, fitted, **({"loss": "mse"} if name == "skip" else {}))
    with torch.inference_mode():
        made = detector.reconstruct(images)
        found = detector(images)
    assert made is not None and made.dtype == torch.uint8 and found.anomaly_map is not None
    apart = ((images.float() - made.float()) / 127.5).square().mean(1)
    # Levels are rounded in what is shown: by half of one, at most two apart.
    torch.testing.assert_close(found.anomaly_map, apart, atol=4 * 0.6 / 127.5, rtol=0)


def test_mirrored_images_keep_their_regions() -> None:
    images = torch.arange(32, dtype=torch.uint8).view(1, 1, 4, 8).expand(60, 3, 4, 8).clone()
    rois = images[:, 0] < 3  # the first three cells of the first row
    torch.manual_seed(0)
    assert torch.equal(flipped(ImageBatch(images, rois), "none").images, images)
    for flips, kinds in (("horizontal", 2), ("vertical", 2), ("both", 4)):
        found = flipped(ImageBatch(images, rois), flips)
        assert found.rois is not None
        for image, roi in zip(found.images, found.rois, strict=True):
            assert sorted(image[0][roi].tolist()) == [0, 1, 2]
        assert len({int(image[0, 0, 0]) for image in found.images}) == kinds


def test_means_are_of_what_is_looked_at() -> None:
    maps = torch.tensor([[[1.0, 3.0], [8.0, 8.0]]])
    assert float(mean_inside(maps, None)) == 5
    assert float(mean_inside(maps, torch.tensor([[[True, True], [False, False]]]))) == 2


def test_shares_of_entropy_go_from_one_item_to_all() -> None:
    evenness = Evenness()
    evenness.add(torch.full((2, 4), 0.25))
    assert evenness.share() == pytest.approx(1, abs=1e-4)
    evenness.add(torch.eye(4)[:2])
    assert evenness.share() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("name", [*KINDS, "ganomaly"])
def test_networks_are_settled_whatever_their_norms_have_gathered(
    name: str, normals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Tensor]] = []
    update = Loop.update

    def spoiling(loop: Loop, player: str) -> None:
        update(loop, player)
        for buffer_name, buffer in loop.players[player].network.named_buffers():
            if buffer_name.endswith(("running_mean", "running_var")):
                buffer.mul_(3)

    for spoils in (False, True):
        if spoils:
            monkeypatch.setattr(Loop, "update", spoiling)
        if name == "ganomaly":
            detector: Any = amiss.GANomaly(**SHAPE, latent_dim=4)
        else:
            detector = make(name)
        found.append(detector.fit(normals, max_false_alarm=0.4).artifact()[1])
    one, other = found
    assert any("running_mean" in key for key in one)
    assert all(torch.equal(one[key], other[key]) for key in one)


# --- autoencoder -----------------------------------------------------------------------------


def test_an_autoencoder_is_scored_by_what_it_descends(
    fitted: dict[str, Any], images: Tensor
) -> None:
    for name in ("autoencoder", "skip"):
        detector = fitted[name]
        x = images.float() / 127.5 - 1
        with torch.inference_mode():
            found = detector(images)
            loss = detector._losses(detector.networks, x, None)["loss"]
        assert found.anomaly_map is not None
        torch.testing.assert_close(found.score, found.anomaly_map.mean((1, 2)))
        torch.testing.assert_close(found.score.mean(), loss)
    with torch.inference_mode():
        made = fitted["skip"].networks(x)
        by_error = at("skip", fitted, loss="mse")(images).score
    torch.testing.assert_close(by_error, (x - made).square().mean((1, 2, 3)))


# --- MemAE -----------------------------------------------------------------------------------


def test_a_memory_stays_as_it_was_learned(fitted: dict[str, Any], images: Tensor) -> None:
    """M5: of both methods with one, whatever is asked of them."""
    for name in ("memae", "daad+"):
        networks = fitted[name].networks
        before = {k: v.clone() for k, v in networks.state_dict().items()}
        assert not any(weight.requires_grad for weight in networks.parameters())
        assert not any(module.training for module in networks.modules())
        fitted[name](images)
        fitted[name].reconstruct(images)
        fitted[name].predict(images[0].permute(1, 2, 0).numpy())
        assert all(torch.equal(before[k], v) for k, v in networks.state_dict().items())


def test_the_entropy_of_the_weights_is_descended_too(
    fitted: dict[str, Any], images: Tensor
) -> None:
    x = images.float() / 127.5 - 1
    detector = at("memae", fitted, entropy_weight=3.0)
    with torch.inference_mode():
        losses = detector._losses(detector.networks, x, None)
        made, weights = detector.networks(x)
    error, spread = (x - made).square().mean(), entropy(weights).mean()
    torch.testing.assert_close(losses["loss"], error + 3 * spread)
    torch.testing.assert_close(losses["entropy"], spread)


def test_queries_are_of_images_or_of_cells(normals: Path) -> None:
    for query, items in (("image", (5, 16 * 4 * 8)), ("position", (5, 16))):
        detector = MemAE(**SHAPE | {"width": 8}, network="deep", scales=2, items=5, query=query)
        assert tuple(detector._untrained().memory.memory.items.shape) == items


def test_a_memory_whose_weights_are_all_small_says_so(normals: Path) -> None:
    options = KINDS["memae"][1] | {"shrinkage": 0.9}
    with pytest.warns(TrainingWarning, match="no weight is above shrinkage=0.9"):
        detector = MemAE(**options).fit(normals, max_false_alarm=0.4)
    assert detector.facts["unshrunk_share"] == 1
    sharp = MemAE(**options | {"shrinkage": 0.0}).fit(normals, max_false_alarm=0.4)
    assert sharp.facts["unshrunk_share"] == 0 and 0 < sharp.facts["entropy_share"] <= 1


def test_small_networks_are_for_small_images() -> None:
    assert MemAE().config.network == "cifar" and MemAE().config.items == 500
    with pytest.raises(OptionError, match="up to 64"):
        MemAE(image_size=(128, 128))
    with pytest.raises(OptionError, match="network is mnist"):
        MemAE(network="mnist", image_size=(28, 28), width=8)


# --- DAAD ------------------------------------------------------------------------------------


def test_nothing_reaches_the_decoder_past_a_memory(fitted: dict[str, Any], images: Tensor) -> None:
    """B4: with all items alike, what is made does not depend on the image."""
    detector = at("daad", fitted)
    for memory in detector.networks.maker.memories:
        items = memory.memory.items
        items.copy_(items[:1].expand_as(items))
    with torch.inference_mode():
        made = detector.networks.maker(images.float() / 127.5 - 1).made
        before = fitted["daad"].networks.maker(images.float() / 127.5 - 1).made
    torch.testing.assert_close(made[0], made[1], atol=1e-5, rtol=0)
    assert (before[0] - before[1]).abs().max() > 1e-4


def test_every_memory_learns(normals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B7."""
    seen: list[bool] = []
    update = Loop.update

    def watched(loop: Loop, name: str) -> None:
        network = loop.players[name].network
        if name in ("network", "maker"):
            seen.extend(
                memory.memory.items.grad is not None and bool(memory.memory.items.grad.any())
                for memory in network.memories  # type: ignore[union-attr]
            )
        update(loop, name)

    monkeypatch.setattr(Loop, "update", watched)
    detector = make("daad", epochs=1).fit(normals, max_false_alarm=0.4)
    assert seen == [True] * 4  # two memories, two steps
    assert not [k for k in detector.artifact()[1] if "discriminator" in k]
    plus = make("daad+", epochs=1).fit(normals, max_false_alarm=0.4)
    assert [k for k in plus.artifact()[1] if "discriminator" in k]


def test_gamma_weighs_the_terms_of_the_score(fitted: dict[str, Any], images: Tensor) -> None:
    """B6, and the norms."""
    x = images.float() / 127.5 - 1
    parts = fitted["daad+"].networks
    with torch.inference_mode():
        made = parts.maker(x).made
        apart = (x - made).flatten(1).norm(dim=1)
        features = parts.discriminator.features
        aligned = (features(x) - features(made)).norm(dim=1)
        for gamma in (1.0, 0.9, 0.0):
            found = at("daad+", fitted, gamma=gamma)(images).score
            torch.testing.assert_close(found, gamma * apart + (1 - gamma) * aligned)
        squares = at("daad+", fitted, norm="mse")(images).score
        wanted = (
            0.9 * (x - made).square().mean((1, 2, 3))
            + 0.1 * (features(x) - features(made)).square().mean(1)
        )  # fmt: skip
        torch.testing.assert_close(squares, wanted)
        alone = fitted["daad"].networks.maker(x).made
        torch.testing.assert_close(fitted["daad"](images).score, (x - alone).flatten(1).norm(dim=1))


def test_a_region_is_scored_as_if_it_filled_the_image(fitted: dict[str, Any]) -> None:
    x = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    made = torch.zeros_like(x)
    for norm in ("l2", "mse"):
        detector = at("daad", fitted, norm=norm)
        whole = detector._residual(x, made, None)
        for rows in (8, 4):
            roi = torch.zeros(1, *SIZE, dtype=torch.bool)
            roi[:, :rows] = True
            part = detector._residual(x * roi[:, None], made, roi)
            torch.testing.assert_close(part, whole, rtol=0.15, atol=0)
            inner = x[:, :, :rows]
            wanted = inner.square().sum().mul(16 / rows).sqrt() if norm == "l2" else (
                inner.square().mean())  # fmt: skip
            torch.testing.assert_close(part[0], wanted)


def test_each_descends_its_own_losses(normals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weighted sum for the networks, of which D learns nothing; and cross-entropy for D."""
    found: dict[str, list[bool]] = {}
    update = Loop.update

    def watched(loop: Loop, name: str) -> None:
        other = loop.players["maker" if name == "discriminator" else "discriminator"].network
        found.setdefault(name, []).append(
            all(p.grad is None or not p.grad.any() for p in other.parameters())
        )
        update(loop, name)

    monkeypatch.setattr(Loop, "update", watched)
    facts = make("daad+", epochs=1, batch_size=10).fit(normals, max_false_alarm=0.4).facts
    losses = {name: values[0] for name, values in facts["losses"].items()}
    assert found == {"maker": [True], "discriminator": [True]}
    wanted = 50 * losses["reconstruction"] + 0.5 * losses["adversarial"] + 0.5 * losses["alignment"]
    assert losses["loss"] == pytest.approx(wanted, rel=1e-4)
    assert len(facts["entropy_shares"]) == 2 and all(0 < s <= 1 for s in facts["entropy_shares"])


def test_rates_and_divisions_are_the_papers() -> None:
    assert DAAD().config.rate == 1e-4 and DAAD(adversarial=True).config.rate == 2e-4
    assert DAAD(learning_rate=3e-4).config.rate == 3e-4
    network = DAAD(width=8, items=3)._untrained().maker
    assert [m.memory.items.shape[1] for m in network.memories] == [2048, 1024, 512, 256]
    with pytest.raises(OptionError, match="does not divide a map"):
        DAAD(division=(3, 8, 1))
    with pytest.raises(OptionError, match="adversarial is False"):
        DAAD(gamma=0.5)


def test_the_items_of_the_paper_take_the_memory_that_the_page_says() -> None:
    """15.36 million values at 256 px and N = 500."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "uniform_", lambda *_: None)
        network = DAAD()._untrained().maker
    assert sum(m.memory.items.numel() for m in network.memories) == 15_360_000
