"""The losses of FYD by their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amiss.nn.alignment import AlignmentNetwork, fine_loss, move_back, pairwise_distance, spread
from amiss.nn.backbone import FeatureExtractor
from amiss.nn.stn import rigid, warp


def network(**options: object) -> AlignmentNetwork:
    extractor = FeatureExtractor("test_efficientnet", ("4", "8", "16"), weights="random")
    settings: dict[str, object] = {
        "image_level": True, "feature_level": True, "max_degrees": 20.0, "max_shift": 0.1,
        "head_dim": 32, "ica_weight": 1.0, "feature_share": 0.25, "drift_weight": 10.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return AlignmentNetwork(extractor, **(settings | options))  # type: ignore[arg-type]


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (count, 3, 6, 8), generator=generator).float()
    fine = torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bilinear")
    return fine.to(torch.uint8)


def test_the_pairwise_distance_is_the_sum_over_pairs() -> None:
    x = torch.rand(5, 3, 4, 6)
    total, pairs = 0.0, 0
    for a in range(5):
        for b in range(5):
            if a < b:
                total += float((x[a] - x[b]).norm(dim=0).mean())
                pairs += 1
    assert float(pairwise_distance(x)) == pytest.approx(total / pairs, rel=1e-5)
    assert float(pairwise_distance(x[:1])) == 0
    same = x[:1].expand(3, -1, -1, -1).clone().requires_grad_()
    pairwise_distance(same).backward()  # where images agree the norm has no gradient
    assert same.grad is not None and torch.isfinite(same.grad).all()


def test_the_fine_loss_is_minus_one_for_alike_and_one_for_opposite() -> None:
    z = torch.rand(1, 8, 3, 4).expand(2, -1, -1, -1) + 0.1
    assert float(fine_loss(3 * z, z)) == pytest.approx(-1)
    assert float(fine_loss(-2 * z, z)) == pytest.approx(1)
    p = torch.randn(2, 8, 3, 4)
    scale = torch.rand(2, 1, 3, 4) + 0.5
    assert float(fine_loss(scale * p, z)) == pytest.approx(float(fine_loss(p, z)), rel=1e-5)
    other = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(fine_loss(p, scale * other), fine_loss(p, other))


def test_the_fine_loss_pairs_an_image_with_another() -> None:
    p, z = torch.randn(2, 8, 3, 4), torch.randn(2, 8, 3, 4)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0).mean())

    expected = -0.5 * cosine(p[0], z[1]) - 0.5 * cosine(p[1], z[0])
    assert float(fine_loss(p, z)) == pytest.approx(expected, rel=1e-5)


def test_no_gradient_passes_where_it_is_stopped() -> None:
    p = torch.randn(3, 8, 2, 2, requires_grad=True)
    z = torch.randn(3, 8, 2, 2, requires_grad=True)
    fine_loss(p, z).backward()
    assert z.grad is None and p.grad is not None and p.grad.any()


def test_the_spread_tells_a_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(4, 64, 8, 8, generator=generator)
    assert float(spread(healthy)) == pytest.approx(1, abs=0.05)
    assert float(spread(healthy[:1, :, :1, :1].expand(4, -1, 8, 8))) < 1e-6


def test_at_first_nothing_moves_and_the_coarse_loss_is_that_of_the_images() -> None:
    net, x = network(), images()
    found = net.align(x)
    plain = net.extractor(x)
    for a, b in zip(found.maps, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    losses = net(x)
    expected = pairwise_distance(x.float() / 127.5 - 1)
    torch.testing.assert_close(losses["coarse"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["loss"], losses["fine"] + losses["coarse"])
    assert not net.settle().is_moving


def test_a_step_lowers_the_losses_without_a_collapse() -> None:
    net, x = network(), images(8)
    learning = [p for p in net.parameters() if p.requires_grad]
    assert all(not b.requires_grad for b in net.extractor.buffers())
    optimizer = torch.optim.SGD(learning, lr=0.05, momentum=0.9)
    first = net(x)
    losses = first
    for _ in range(100):
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        losses = net(x)
        assert float(losses["spread"]) > 0.5
    assert losses["fine"] < first["fine"] - 0.1
    assert losses["coarse"] <= first["coarse"]
    assert net.settle().is_moving


def test_one_step_lowers_the_fine_loss() -> None:
    net, x = network(), images(8)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
    before = net(x)
    before["fine"].backward()
    optimizer.step()
    assert net(x)["fine"] < before["fine"]


def test_the_path_of_the_transformers_at_identity_is_the_plain_one() -> None:
    net, x = network().eval(), images(3)
    with torch.inference_mode():
        found, plain = net.align(x), net.extractor(x)
    assert len(found.moves) == 4
    for a, b in zip(found.maps, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_maps_come_back_to_where_they_were() -> None:
    theta = rigid(torch.tensor([0.1]), torch.tensor([0.05]), torch.tensor([-0.04]), aspect=0.75)
    grid = torch.zeros(1, 12, 16)
    grid[0, 6, 9] = 1
    moved = warp(grid[:, None], theta, padding="zeros")[:, 0]
    again = move_back(moved, theta)[0]
    assert divmod(int(again.argmax()), 16) == (6, 9)
    assert move_back(grid, None) is grid
