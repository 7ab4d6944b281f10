"""Poisson's equation on a rectangle, solved exactly, and pictures blended with it.

Perez, Gangnet, Blake, "Poisson Image Editing", SIGGRAPH 2003.
"""

from __future__ import annotations

import numpy as np

from amiss.errors import naming_extra
from amiss.types import Float64, UInt8


def laplacian(values: Float64) -> Float64:
    """The four neighbours of a pixel minus four times itself: (h + 2, w + 2, C) -> (h, w, C)."""
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    found: Float64 = around - 4 * values[1:-1, 1:-1]
    return found


def solve_poisson(target: Float64, border: Float64) -> Float64:
    """The values (h, w, C) whose `laplacian` is `target` (h, w, C), when they are set into `border`
    (h + 2, w + 2, C), of which the outermost pixels alone are read, and not the four corners.

    The sine transform of type I makes the Laplacian with a border of zeros diagonal: wave (i, j)
    has the eigenvalue 2 cos(pi i / (h + 1)) + 2 cos(pi j / (w + 1)) - 4.

    Raises MissingDependencyError without scipy.
    """
    with naming_extra("To blend by Poisson's equation", "train"):
        from scipy.fft import dstn, idstn  # type: ignore[import-untyped]
    h, w = target.shape[:2]
    # What is known of the neighbours goes to the right side; what is left has a border of zeros.
    right = target.astype(np.float64)
    right[0] -= border[0, 1:-1]
    right[-1] -= border[-1, 1:-1]
    right[:, 0] -= border[1:-1, 0]
    right[:, -1] -= border[1:-1, -1]
    down = 2 * np.cos(np.pi * np.arange(1, h + 1) / (h + 1))
    across = 2 * np.cos(np.pi * np.arange(1, w + 1) / (w + 1))
    eigenvalues = down[:, None] + across - 4  # (h, w), all below zero
    waves = dstn(right, type=1, axes=(0, 1)) / eigenvalues[:, :, None]
    values: Float64 = idstn(waves, type=1, axes=(0, 1))
    return values


def blend(patch: UInt8, ground: UInt8) -> UInt8:
    """`ground` (h + 2, w + 2, 3) uint8 whose inner pixels take the differences of `patch`, of the
    same shape, and no seam at their border."""
    values = patch.astype(np.float64)
    inner = solve_poisson(laplacian(values), ground.astype(np.float64))
    blended = ground.copy()
    blended[1:-1, 1:-1] = inner.round().clip(0, 255).astype(np.uint8)
    return blended
