"""Regions of interest, packed and brought to the cells of a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amiss.errors import DataError
from amiss.nn.roi import RoiStore, roi_cells


def test_a_cell_lies_inside_when_half_of_it_does() -> None:
    roi = torch.zeros(1, 8, 12, dtype=torch.bool)
    roi[0, :4, :4] = True  # the first cell, whole
    roi[0, :4, 4:6] = True  # half of the second
    roi[0, 4:, 8:9] = True  # a quarter of the last
    cells = roi_cells(roi, (2, 3))
    assert cells.shape == (1, 6) and cells.dtype == torch.bool
    assert cells[0].tolist() == [True, True, False, False, False, False]


def test_grids_that_do_not_divide_the_image_are_taken() -> None:
    roi = torch.zeros(2, 7, 9, dtype=torch.bool)
    roi[0] = True
    roi[1, :3, :3] = True
    cells = roi_cells(roi, (3, 4))
    assert cells[0].all() and cells[1].tolist() == [True] + 11 * [False]


def test_a_region_thinner_than_a_cell_keeps_the_cells_that_hold_it() -> None:
    roi = torch.zeros(1, 8, 12, dtype=torch.bool)
    roi[0, 3, :] = True  # one line: a quarter of each upper cell
    assert roi_cells(roi, (2, 3))[0].tolist() == [True, True, True, False, False, False]


def test_a_region_without_a_pixel_is_an_error() -> None:
    roi = torch.ones(2, 8, 12, dtype=torch.bool)
    roi[1] = False
    with pytest.raises(DataError, match="nothing of its image"):
        roi_cells(roi, (2, 3))


def test_nothing_is_held_until_a_region_is_put() -> None:
    store = RoiStore(4, (5, 7))
    store.put(np.array([0, 1]), None)
    assert store.packed is None and store.get(2) is None
    assert store.cells((2, 3)).shape == (4, 6) and store.cells((2, 3)).all()


def test_what_is_put_comes_back_bit_for_bit() -> None:
    store = RoiStore(5, (5, 7))  # 35 pixels: not a whole number of bytes
    rois = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    store.put(np.array([1, 3, 4]), rois)
    for row, i in enumerate((1, 3, 4)):
        found = store.get(i)
        assert found is not None and torch.equal(found[0], rois[row])
    for i in (0, 2):  # images without one are looked at everywhere
        found = store.get(i)
        assert found is not None and found.all()
    expected = roi_cells(rois, (2, 3)).numpy()
    assert np.array_equal(store.cells((2, 3))[[1, 3, 4]], expected)
    assert store.cells((2, 3))[[0, 2]].all()
