"""Lower bounds find exactly what a plain search in float64 finds, or step aside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amiss.memory import neighbors, packed
from amiss.memory.neighbors import Rows, first_minimum
from amiss.memory.pruning import GROUP, LowerBounds, lower_bounds


def flat_cloud(n: int, dim: int, inside: int, seed: int, shift: float = 0.0) -> Tensor:
    """(n, dim) points near a subspace of `inside` dimensions, like patch features."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(inside, dim, generator=torch.Generator().manual_seed(99))
    noise = 0.2 * torch.randn(n, dim, generator=generator)
    return torch.randn(n, inside, generator=generator) @ frame + noise + shift


def bounds_of(rows: Tensor) -> LowerBounds:
    found = lower_bounds(rows, rows.mean(0))
    assert found is not None
    return found


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("n", [1024, 1500, 3001])
def test_what_the_bounds_find_is_what_a_plain_search_finds(n: int, shift: float) -> None:
    rows = flat_cloud(n, 96, 12, 0, shift)
    queries = flat_cloud(700, 96, 12, 1, shift)
    found = bounds_of(rows).nearest(queries)
    assert found is not None
    squared, index = found
    expected = torch.cdist(queries.double(), rows.double()).min(dim=1)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(squared.double().sqrt(), expected.values, rtol=1e-5, atol=1e-5)


def test_bounds_lie_below_the_distances_for_any_directions() -> None:
    rows, queries = flat_cloud(1200, 64, 5, 0), flat_cloud(300, 64, 5, 1)
    any_frame = torch.linalg.qr(torch.randn(64, 15, generator=torch.Generator().manual_seed(7)))[0]
    found = LowerBounds(rows, rows.mean(0), any_frame)
    q = queries - found.center
    inside = found.project(q)
    outside = (q.square().sum(1) - inside.square().sum(1)).clamp_min(0).sqrt()
    lower = found.bounds(torch.cat([inside, outside[:, None]], 1)) + q.square().sum(1)[:, None]
    true = torch.cdist(queries.double(), rows.double()).square()
    slack = 1e-5 * true.max()
    assert bool((lower[:, : len(rows)] <= true + slack).all())
    assert float((lower[:, : len(rows)] / true).mean()) > 0.1  # not the trivial bound


def test_members_and_their_copies_are_found_at_zero_the_first_one_named() -> None:
    rows = flat_cloud(1100, 96, 12, 0)
    rows[1000:] = rows[:100]
    squared, index = bounds_of(rows).nearest(rows) or pytest.fail("nothing found")
    assert not squared.any()
    assert index.tolist() == [*range(1000), *range(100)]


def test_the_same_rows_give_the_same_bounds_and_leave_the_generator_alone() -> None:
    rows = flat_cloud(1100, 96, 12, 0)
    state = torch.random.get_rng_state()
    first, second = bounds_of(rows), bounds_of(rows)
    assert torch.equal(first.bounds.weight, second.bounds.weight)
    assert torch.equal(state, torch.random.get_rng_state())


def test_there_are_no_bounds_where_they_would_not_pay() -> None:
    few = flat_cloud(500, 96, 12, 0)
    assert lower_bounds(few, few.mean(0)) is None
    noise = torch.randn(2000, 96, generator=torch.Generator().manual_seed(0))
    assert lower_bounds(noise, noise.mean(0)) is None  # no direction says more than another
    narrow = flat_cloud(2000, 16, 3, 0)
    assert lower_bounds(narrow, narrow.mean(0)) is None


def test_where_all_rows_look_alike_the_plain_product_answers() -> None:
    rows = flat_cloud(1500, 96, 12, 0)
    away = torch.randn(200, 96, generator=torch.Generator().manual_seed(3))
    frame = torch.linalg.svd(rows, full_matrices=False)[2][:12]
    queries = 1000 * (away - away @ frame.T @ frame)  # far off the rows' subspace
    assert bounds_of(rows).nearest(queries) is None
    expected = torch.cdist(queries.double(), rows.double()).min(dim=1)
    distance, _ = Rows(rows).nearest(queries)
    torch.testing.assert_close(distance.double(), expected.values, rtol=1e-5, atol=1e-2)


def test_rows_use_them_and_answer_alike_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = flat_cloud(1500, 96, 12, 0), flat_cloud(400, 96, 12, 1)
    used = []
    plain = LowerBounds.nearest
    monkeypatch.setattr(LowerBounds, "nearest", lambda *a: used.append(1) or plain(*a))
    with_bounds = Rows(rows).nearest(queries)
    assert used
    monkeypatch.setattr(neighbors, "lower_bounds", lambda rows, center: None)
    without = Rows(rows).nearest(queries)
    assert torch.equal(with_bounds[1], without[1])
    assert torch.equal(with_bounds[0], without[0])


def test_an_answer_does_not_depend_on_the_other_queries() -> None:
    rows, queries = Rows(flat_cloud(1500, 96, 12, 0)), flat_cloud(300, 96, 12, 1)
    together = rows.nearest(queries)
    alone = [rows.nearest(query) for query in queries.split(100)]
    assert torch.equal(together[0], torch.cat([d for d, _ in alone]))
    assert torch.equal(together[1], torch.cat([i for _, i in alone]))


def test_the_first_of_equal_minima_is_taken() -> None:
    values = torch.ones(3, 2 * GROUP)
    values[0, 5] = values[0, 70] = 0
    values[1, 127] = -1
    assert first_minimum(values).tolist() == [5, 127, 0]


def test_the_packed_layer_equals_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias, x = torch.randn(70, 33), torch.randn(70), torch.randn(130, 33)
    layer = packed.PackedLinear(weight, bias)
    with torch.inference_mode():
        quick = layer(x)
    torch.testing.assert_close(quick, torch.nn.functional.linear(x, weight, bias))
    monkeypatch.setattr(packed, "_packs", lambda: False)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), quick)
