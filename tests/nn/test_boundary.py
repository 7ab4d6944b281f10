"""BGAD's boundary and its losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amiss.nn.boundary import boundary_of, focal_weights, likelihood_losses, semi_push_pull

NORMAL = torch.tensor([-5.0, -4.0, -3.0, -2.0], dtype=torch.float64) / 10
ANOMALOUS = torch.tensor([-4.5, -7.0], dtype=torch.float64) / 10


def loss(normal: Tensor, anomalous: Tensor, reduction: str = "sum", beta: float = 0.25) -> Tensor:
    return semi_push_pull(
        normal, anomalous, boundary_of(normal, beta), margin=0.1, reduction=reduction
    )


def test_the_toy_example() -> None:
    """Section 8, check 1: b_n = -0.4, so that one normal is pulled and one anomalous pushed."""
    assert float(boundary_of(NORMAL, 0.25)) == pytest.approx(-0.4)
    nothing = NORMAL[:0]
    boundary = boundary_of(NORMAL, 0.25)

    def part(normal: Tensor, anomalous: Tensor, reduction: str) -> float:
        found = semi_push_pull(normal, anomalous, boundary, margin=0.1, reduction=reduction)
        return float(found)

    assert part(NORMAL, nothing, "sum") == pytest.approx(0.10)
    assert part(nothing, ANOMALOUS, "sum") == pytest.approx(0.05)
    more = torch.cat([NORMAL, torch.tensor([-0.6])])
    assert part(more, nothing, "sum") == pytest.approx(0.30)
    assert part(more, nothing, "mean") == pytest.approx(0.15)
    assert part(NORMAL, ANOMALOUS, "mean") == pytest.approx(0.15)


def test_nothing_violates_and_nothing_is_not_a_number() -> None:
    """Section 8, check 2: no loss and no gradient, where the official code has NaN."""
    for reduction in ("sum", "mean"):
        normal = torch.tensor([-0.3, -0.2], requires_grad=True)
        anomalous = torch.tensor([-0.5, -0.9], requires_grad=True)
        found = semi_push_pull(
            normal, anomalous, torch.tensor(-0.3), margin=0.1, reduction=reduction
        )
        found.backward()
        assert float(found.detach()) == 0 and not normal.grad.any() and not anomalous.grad.any()
        slightly = semi_push_pull(
            normal, anomalous + 0.11, torch.tensor(-0.3), margin=0.1, reduction=reduction
        )
        assert float(slightly.detach()) == pytest.approx(0.01, abs=1e-6)


def test_no_gradient_passes_through_the_boundary() -> None:
    normal = NORMAL.clone().requires_grad_()
    loss(normal, ANOMALOUS).backward()
    assert normal.grad is not None
    torch.testing.assert_close(normal.grad, torch.tensor([-1.0, 0, 0, 0]).double())


def test_all_may_be_shifted() -> None:
    """Section 8, check 2."""
    for reduction in ("sum", "mean"):
        torch.testing.assert_close(
            loss(NORMAL + 3.7, ANOMALOUS + 3.7, reduction), loss(NORMAL, ANOMALOUS, reduction)
        )


@pytest.mark.parametrize("n", [3, 100, 4096])
def test_at_most_the_share_beta_lies_below_the_boundary(n: int) -> None:
    """Section 8, check 3; a larger share raises the boundary."""
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    found = []
    for beta in (0.0, 0.01, 0.05, 0.29, 0.5):
        boundary = boundary_of(values, beta)
        assert int((values < boundary).sum()) <= beta * n + 1e-9
        found.append(float(boundary))
    assert found == sorted(found)
    assert n == 3 or found[0] < found[2] < found[4]
    if n == 4096:  # the official code's place
        assert float(boundary_of(values, 0.01)) == float(values.sort().values[40])


def test_weights_join_where_the_official_code_s_do() -> None:
    normal, anomalous = focal_weights(
        torch.tensor([-0.199, -0.2, -1.0, 0.5]), torch.tensor([-1.0, -0.999, -0.1, 0.2])
    )
    assert normal.tolist() == pytest.approx([1, 0.996, 9.302, 1], abs=2e-3)
    assert anomalous.tolist() == pytest.approx([1, 0.992, 19.23, 13.09], rel=2e-3)


def test_weights_count_in_the_loss() -> None:
    boundary = boundary_of(NORMAL, 0.25)
    found = semi_push_pull(
        NORMAL, ANOMALOUS, boundary, margin=0.1, reduction="sum",
        weights=(torch.full((4,), 2.0), torch.full((2,), 3.0)),
    )  # fmt: skip
    assert float(found) == pytest.approx(2 * 0.10 + 3 * 0.05)


def test_likelihood_losses() -> None:
    log_p = torch.tensor([-2.0, 0.5])
    assert likelihood_losses(log_p, "nll").tolist() == [2.0, -0.5]
    expected = torch.log1p(torch.exp(-log_p))
    torch.testing.assert_close(likelihood_losses(log_p, "logsigmoid"), expected)
