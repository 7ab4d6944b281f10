"""Exact nearest rows, against a plain search in float64 and against faiss."""

from __future__ import annotations

import faiss
import pytest
import torch
from torch import Tensor

from amiss.memory import neighbors
from amiss.memory.approximate import build_inverted_file
from amiss.memory.bank import MemoryBank
from amiss.memory.neighbors import Rows, distances_to
from amiss.run import mute


def made(n: int, dim: int = 16, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("n", [1, 7, 1500])
def test_the_nearest_is_that_of_a_plain_search(n: int) -> None:
    rows, queries = made(n), made(333, seed=1)
    distance, index = Rows(rows).nearest(queries)
    expected = torch.cdist(queries.double(), rows.double()).min(dim=1)
    assert distance.dtype == torch.float32 and index.dtype == torch.int64
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(distance.double(), expected.values, rtol=1e-5, atol=1e-6)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = made(90), made(200, seed=1)
    whole = Rows(rows).nearest(queries)
    monkeypatch.setattr(neighbors, "_BLOCK", 1000)
    parts = Rows(rows).nearest(queries)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])


def test_faiss_finds_the_same() -> None:
    rows, queries = made(800), made(150, seed=2)
    index = faiss.IndexFlatL2(16)
    index.add(rows.numpy())
    squared, found = index.search(queries.numpy(), 1)
    distance, row = Rows(rows).nearest(queries)
    assert row.tolist() == found[:, 0].tolist()
    torch.testing.assert_close(distance.square(), torch.from_numpy(squared[:, 0]))


@pytest.mark.parametrize("shift", [0.0, 10.0, 100.0])
def test_a_member_is_at_exactly_zero(shift: float) -> None:
    rows = made(500, shift=shift)
    distance, index = Rows(rows).nearest(rows)
    assert not distance.any()
    assert torch.equal(rows[index], rows)


def test_distances_are_taken_from_the_difference() -> None:
    one = torch.tensor([[1000.0, 1000.0]])
    other = torch.tensor([[1000.0, 1000.001]])
    assert float(distances_to(one, other)) == pytest.approx(0.001, rel=0.05)


def test_each_row_leads_its_own_list_of_neighbours() -> None:
    rows = made(60)
    rows[7] = rows[3]  # a duplicate must not push a row out of its own list
    found = Rows(rows).neighborhoods(torch.arange(60), 5)
    assert found.shape == (60, 5)
    assert found[:, 0].tolist() == list(range(60))
    expected = torch.cdist(rows.double(), rows.double())
    for i in range(60):
        by_distance = expected[i, found[i]]
        assert (by_distance.diff() >= -1e-6).all()
        assert float(by_distance[-1]) == pytest.approx(float(expected[i].sort().values[4]))


def test_lists_of_neighbours_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(70)
    some = torch.tensor([3, 69, 0, 41] * 9)
    whole = Rows(rows).neighborhoods(some, 4)
    monkeypatch.setattr(neighbors, "_BLOCK", 500)
    assert torch.equal(Rows(rows).neighborhoods(some, 4), whole)
    assert torch.equal(whole[:, 0], some)


# --- the bank --------------------------------------------------------------------------------


def bank_of(rows: Tensor, num_neighbors: int = 4) -> MemoryBank:
    origin = torch.zeros(len(rows), 3, dtype=torch.int32)
    return MemoryBank(rows, num_neighbors=num_neighbors, origin=origin)


def test_a_bank_comes_back_from_its_tensors() -> None:
    bank = bank_of(made(50))
    bank.tabulate()
    again = MemoryBank.from_tensors(bank.tensors())
    queries = made(20, seed=3)
    for one, other in zip(bank.nearest(queries), again.nearest(queries), strict=True):
        assert torch.equal(one, other)
    rows = torch.arange(50)
    assert torch.equal(bank.neighborhood(rows), again.neighborhood(rows))


def test_neighbourhoods_are_the_same_from_a_table_and_without() -> None:
    bank = bank_of(made(40))
    some = torch.tensor([5, 5, 39, 0])
    before = bank.neighborhood(some)
    bank.tabulate()
    assert torch.equal(bank.neighborhood(some), before)


def test_a_bank_smaller_than_the_neighbourhood_uses_what_it_has() -> None:
    bank = bank_of(made(3), num_neighbors=9)
    assert bank.neighborhood(torch.tensor([1, 2])).shape == (2, 3, 16)
    assert torch.equal(bank.neighborhood(torch.tensor([1]))[0, 0], bank.rows[1])


def test_an_approximate_index_reaches_its_recall_and_says_so() -> None:
    rows, sample = made(3000, dim=8), made(400, dim=8, seed=4)
    index, measured = build_inverted_file(rows, sample, seed=0)
    distance, row = index.nearest(sample)
    exact, true_row = Rows(rows).nearest(sample)
    recall = float((row == true_row).float().mean())
    assert measured.recall == pytest.approx(recall) and recall >= 0.99
    assert (distance >= exact - 1e-6).all()
    assert f"{measured.recall:.4f}" in measured.describe()


def test_an_approximate_bank_comes_back_from_its_tensors() -> None:
    bank = bank_of(made(2000, dim=8))
    bank.choose_search("approximate", made(200, dim=8, seed=5), seed=0, say=mute)
    bank.tabulate()
    again = MemoryBank.from_tensors(bank.tensors())
    queries = made(100, dim=8, seed=6)
    for one, other in zip(bank.nearest(queries), again.nearest(queries), strict=True):
        assert torch.equal(one, other)


def test_a_small_bank_is_searched_exactly_unless_asked() -> None:
    bank = bank_of(made(500))
    bank.choose_search("auto", made(10), seed=0, say=mute)
    assert bank.index is None
