"""A folded network on oneDNN: each activation inside its convolution, weights packed once.

The same arithmetic as `FoldedNetwork.forward`, a quarter faster for one image on two cores. The
operators are torch's own, used by its compiler, but not a promised interface: a plan is compared
with the plain steps when it is made, and given up for them on any difference or error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from amiss.nn.folded import FoldedNetwork, Step

Runner = Callable[[Tensor], list[Tensor]]

_ACTIVATIONS: dict[str | None, tuple[str, list[float]]] = {
    None: ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "silu": ("swish", []),
    "hardswish": ("hardswish", []),
    "sigmoid": ("sigmoid", []),
}
_TOLERANCE = 1e-5  # of the largest value of a map; what reordering float32 sums may cost

_runners: WeakKeyDictionary[FoldedNetwork, dict[tuple[int, ...], Runner | None]]
_runners = WeakKeyDictionary()  # beside the networks: packed weights are neither copied nor stored
_making = threading.Lock()


class _Convolution(NamedTuple):
    """One convolution as oneDNN takes it; `pad` goes before it where the padding is uneven."""

    weight: Tensor
    bias: Tensor
    settings: tuple[Any, ...]
    activation: tuple[str, list[float]]
    pad: tuple[int, ...] | None


def runner(network: FoldedNetwork, images: Tensor) -> Runner | None:
    """A function that equals `network` on images of this shape; None where there is none."""
    if not (torch.backends.mkldnn.is_available() and images.device.type == "cpu"):
        return None
    known = _runners.setdefault(network, {})
    shape = tuple(images.shape)
    if shape not in known:
        with _making:
            if shape not in known:
                known[shape] = _checked(network, images)
    return known[shape]


def _checked(network: FoldedNetwork, images: Tensor) -> Runner | None:
    try:
        run = _plan(network, images)
        maps = run(images)
    except (RuntimeError, AttributeError, KeyError, TypeError):
        return None
    expected = network.walk(images, network.run_step)
    alike = all(
        float((a - b).abs().max()) <= _TOLERANCE * float(b.abs().max())
        for a, b in zip(maps, expected, strict=True)
    )
    return run if alike else None


def _plan(network: FoldedNetwork, images: Tensor) -> Runner:
    convolutions: dict[int, _Convolution] = {}

    def pack_step(number: int, step: Step, inputs: list[Tensor]) -> Tensor:
        if step["op"] == "conv":
            convolutions[number] = _pack(network, number, inputs[0])
        return network.run_step(number, step, inputs)

    network.walk(images, pack_step)
    convolve = torch.ops.mkldnn._convolution_pointwise

    def run_step(number: int, step: Step, inputs: list[Tensor]) -> Tensor:
        conv = convolutions.get(number)
        if conv is None:
            return network.run_step(number, step, inputs)
        x = inputs[0] if conv.pad is None else F.pad(inputs[0], conv.pad)
        value: Tensor = convolve(x, conv.weight, conv.bias, *conv.settings, *conv.activation, "")
        return value

    return lambda x: network.walk(x, run_step)


def _pack(network: FoldedNetwork, number: int, x: Tensor) -> _Convolution:
    step = network.steps[number - 1]
    weight, bias = getattr(network, f"weight_{number}"), getattr(network, f"bias_{number}")
    pad, padding = network.padding(number, x)
    size = list(x.shape)
    if pad is not None and pad[1] - pad[0] == pad[3] - pad[2] == 1:
        # One more pixel at the bottom and right. A kernel with a zero first row and column reaches
        # as far on all sides, and oneDNN pads evenly without a copy of the map.
        weight = F.pad(weight, (1, 0, 1, 0))
        padding = pad[3], pad[1]
        pad = None
    elif pad is not None:
        size[2] += pad[2] + pad[3]
        size[3] += pad[0] + pad[1]
    settings = list(padding), step["stride"], step["dilation"], step["groups"]
    pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    packed = pack(weight.to_mkldnn(), *settings, size)
    return _Convolution(packed, bias, settings, _ACTIVATIONS[step.get("activation")], pad)
