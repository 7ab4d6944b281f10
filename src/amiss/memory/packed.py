"""A linear layer whose weights are laid out once for the processor.

oneDNN's, a third faster than the general matrix product where there are many rows. Its operators
are torch's own, used by its compiler, but not a promised interface: they are tried before they are
relied on, and the plain layer stands in where they are not there.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 64  # rows of input below which packing is not worth it


class PackedLinear:
    """x (B, D) -> x W^T + b (B, N), with W (N, D) and b (N,) float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self._packed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        few = torch.compiler.is_compiling() or len(x) < _FEW
        if few or torch.is_grad_enabled() or not _packs():
            return F.linear(x, self.weight, self.bias)
        if self._packed is None:  # threads that come here at once pack the same thing
            self._packed = _pack(self.weight)
        return _multiply(x, self._packed, self.bias)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def _multiply(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


@functools.cache
def _packs() -> bool:
    """Whether the packed layer is there and computes what the plain one does."""
    rows = torch.linspace(-1, 1, _FEW * 8).view(_FEW, 8)
    try:
        found = _multiply(rows, _pack(rows), rows[:, 0].contiguous())
    except (RuntimeError, AttributeError, TypeError):
        return False
    return torch.allclose(found, F.linear(rows, rows, rows[:, 0]), atol=1e-5)
