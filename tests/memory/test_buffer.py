"""The bounded buffer: every row that came by is covered within the radius it states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from amiss.memory.buffer import CoresetBuffer
from amiss.memory.coreset import greedy_coreset


def stream(n: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Rows that drift, so that chunks differ, and where each comes from."""
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n, dim, generator=generator) + torch.linspace(0, 6, n)[:, None]
    number = torch.arange(n)
    origin = torch.stack([number // 100, number % 100 // 10, number % 10], dim=1)
    return rows, origin.to(torch.int32)


def fill(buffer: CoresetBuffer, rows: Tensor, origin: Tensor, steps: list[int]) -> None:
    first = 0
    while first < len(rows):
        for step in steps:
            buffer.add(rows[first : first + step], origin[first : first + step])
            first += step


@pytest.mark.parametrize("steps", [[1], [7, 100], [500], [5000]])
def test_every_row_ever_added_lies_within_the_radius(steps: list[int]) -> None:
    rows, origin = stream(1000)
    buffer = CoresetBuffer(8, chunk_rows=150, keep=0.2)
    fill(buffer, rows, origin, steps)
    assert buffer.rows_seen == 1000
    members, _, radius = buffer.finish(60)
    assert members.shape == (60, 8)
    farthest = float(torch.cdist(rows.double(), members.double()).min(dim=1).values.max())
    assert farthest <= radius + 1e-5
    assert radius <= 4 * greedy_coreset(rows, 60).radius  # of use, not just true


def test_members_keep_their_origins() -> None:
    rows, origin = stream(700)
    buffer = CoresetBuffer(8, chunk_rows=128, keep=0.3)
    fill(buffer, rows, origin, [90])
    members, found, _ = buffer.finish(40)
    assert found.dtype == torch.int32 and found.shape == (40, 3)
    numbers = found[:, 0] * 100 + found[:, 1] * 10 + found[:, 2]
    assert torch.equal(rows[numbers.long()], members)
    assert len(set(numbers.tolist())) == 40


def test_in_chunks_of_any_size_the_same_rows_come_out() -> None:
    rows, origin = stream(900)
    found = []
    for steps in ([900], [13], [450, 1]):
        buffer = CoresetBuffer(8, chunk_rows=200, keep=0.25)
        fill(buffer, rows, origin, steps)
        found.append(buffer.finish(50)[0])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_one_chunk_that_keeps_all_equals_the_plain_selection() -> None:
    rows, origin = stream(300)
    buffer = CoresetBuffer(8, chunk_rows=400, keep=1.0)
    buffer.add(rows, origin)
    members, _, radius = buffer.finish(30)
    plain = greedy_coreset(rows, 30)
    assert radius == pytest.approx(plain.radius, rel=1e-5)
    assert torch.equal(members, rows[torch.from_numpy(plain.indices)])


def test_more_than_was_kept_gives_what_was_kept() -> None:
    rows, origin = stream(100)
    buffer = CoresetBuffer(8, chunk_rows=50, keep=0.1)
    buffer.add(rows, origin)
    members, _, radius = buffer.finish(80)
    assert len(members) == 10
    farthest = float(torch.cdist(rows.double(), members.double()).min(dim=1).values.max())
    assert farthest <= radius + 1e-5


def test_the_buffer_does_not_hold_on_to_the_callers_rows() -> None:
    rows, origin = stream(120)
    buffer = CoresetBuffer(8, chunk_rows=60, keep=0.5)
    kept = rows.clone()
    buffer.add(rows, origin)
    rows.zero_()
    members, found, _ = buffer.finish(20)
    numbers = found[:, 0] * 100 + found[:, 1] * 10 + found[:, 2]
    assert torch.equal(kept[numbers.long()], members)


def test_the_rows_held_stay_within_the_share() -> None:
    rows, origin = stream(2000)
    buffer = CoresetBuffer(8, chunk_rows=100, keep=0.1)
    fill(buffer, rows, origin, [33])
    held = sum(map(len, buffer.kept)) + buffer.filled
    assert held <= np.ceil(0.1 * 2000) + 100
